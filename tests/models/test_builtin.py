import json
import threading

import pytest
import torch

from core.errors import ModelError
from core.models import builtin
from core.models.builtin import CONFIG, builtin_directory, gguf_file


def test_the_architecture_known_beforehand_is_what_the_package_says():
    from gguf import GGUFReader

    fields = GGUFReader(gguf_file()).fields
    said = {key: field.contents() for key, field in fields.items() if key.startswith("llama.")}
    assert said == {
        "llama.block_count": CONFIG["num_hidden_layers"],
        "llama.context_length": CONFIG["max_position_embeddings"],
        "llama.embedding_length": CONFIG["hidden_size"],
        "llama.feed_forward_length": CONFIG["intermediate_size"],
        "llama.attention.head_count": CONFIG["num_attention_heads"],
        "llama.attention.head_count_kv": CONFIG["num_key_value_heads"],
        "llama.rope.freq_base": CONFIG["rope_theta"],
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(CONFIG["rms_norm_eps"], rel=1e-6),
        "llama.vocab_size": CONFIG["vocab_size"],
        "llama.rope.dimension_count": CONFIG["head_dim"],
    }
    for name in ("bos", "eos"):
        assert fields[f"tokenizer.ggml.{name}_token_id"].contents() == CONFIG[f"{name}_token_id"]
    assert fields["tokenizer.ggml.padding_token_id"].contents() == CONFIG["pad_token_id"]


def test_the_conversion_holds_the_weights_that_transformers_reads_from_the_gguf(smollm2):
    from transformers import AutoModelForCausalLM

    source = gguf_file()
    theirs = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.float32)
    ours = smollm2.model.state_dict()
    expected = theirs.state_dict()
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert theirs.config.rope_parameters == smollm2.model.config.rope_parameters


def test_nothing_of_the_quantisation_is_left_in_the_folder(smollm2):
    config = json.loads((builtin_directory() / "config.json").read_text())
    assert config == CONFIG
    assert not hasattr(smollm2.model.config, "quantization_config")
    assert smollm2.source_dtype == smollm2.dtype == "float32"


def test_the_model_answers_through_its_own_chat_template(smollm2):
    tokenizer = smollm2.tokenizer
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = smollm2.model.generate(**inputs, max_new_tokens=10, do_sample=False)
    text = tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "The capital of France is Paris."


def test_text_comes_back_from_the_tokenizer_as_it_was(smollm2):
    text = "Hello  world, it's 12345 °C\n\tdef f(x): return x"
    ids = smollm2.tokenizer(text)["input_ids"]
    assert ids == smollm2.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert smollm2.tokenizer.decode(ids) == text


@pytest.fixture
def quick_conversion(monkeypatch, tmp_path):
    """A cache of the test's own, and a stand-in for the ten seconds of dequantising: locking and renaming are real."""
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    runs = []

    def convert(source, directory, progress):
        runs.append(source)
        threading.Event().wait(0.3)
        progress(1, 1, "tensors")
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(builtin, "_convert", convert)
    return runs


def test_several_who_need_the_model_at_once_convert_it_once(quick_conversion):
    found = []
    threads = [threading.Thread(target=lambda: found.append(builtin_directory())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(quick_conversion) == 1
    assert len(found) == 4
    assert all((each / "config.json").is_file() for each in found)


def test_a_conversion_that_is_stopped_leaves_nothing_that_looks_finished(quick_conversion):
    def stop(done, total, unit):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builtin_directory(stop)
    folder = builtin.converted_directory()
    assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] in ([], [f"{folder.name}.lock"])
    assert builtin_directory().is_dir()


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(builtin, "PACKAGE", "no_such_package_of_ours")
    assert not builtin.installed()
    with pytest.raises(ModelError, match=r"requirements-data\.txt"):
        gguf_file()
