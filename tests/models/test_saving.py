import json
import shutil
import stat

import pytest
import torch
from safetensors import safe_open

from core.errors import Cancelled, ModelError, VerificationError
from core.models import saving
from core.models.families import family
from core.models.loading import load_directory, stored_dtype
from core.models.saving import save, verify
from core.models.surgery import Kept, cut_layer
from core.models.verification import compare


def cut(model, per_layer):
    """Cut both layers alike, or only the second."""
    adapter = family(model.config.model_type)
    for index in (1,) if per_layer else (0, 1):
        cut_layer(model, adapter, index, Kept(kv_heads=torch.tensor([1]), channels=torch.arange(0, 48, 3)))
    return model


def logits(model):
    ids = torch.randint(0, model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(ids).logits


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


@pytest.mark.fresh
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_cut_model_reloads_with_the_same_logits(tiny_llama, tiny_tokenizer, tmp_path, per_layer):
    model = cut(tiny_llama(tie_word_embeddings=per_layer, attention_bias=True, mlp_bias=True), per_layer)
    saved = save(model, tiny_tokenizer(), tmp_path / "model")
    assert saved.layout == ("per_layer" if per_layer else "stock")
    again, _ = load_directory(saved.directory, device="cpu", dtype="float32")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("per_layer", [False, True])
def test_mistral_saves_in_both_layouts(tiny_tokenizer, tiny_config, tmp_path, per_layer):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(**{**tiny_config(), "model_type": "mistral", "sliding_window": 5, "architectures": None})
    model = cut(MistralForCausalLM(config).eval(), per_layer)
    saved = save(model, tiny_tokenizer(), tmp_path / "model")
    again, _ = load_directory(saved.directory, device="cpu", dtype="float32")
    assert torch.equal(logits(again), logits(model))
    assert config_of(saved.directory)["sliding_window"] == 5


def test_stock_config_says_the_new_sizes_and_nothing_of_ours(tiny_llama, tiny_tokenizer, tmp_path):
    model = cut(tiny_llama(), per_layer=False)
    model.config._name_or_path = "/some/folder"
    config = config_of(save(model, tiny_tokenizer(), tmp_path / "model").directory)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 1, 4)
    assert config["intermediate_size"] == 16
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert not {"espalier_layers", "auto_map", "_name_or_path", "quantization_config", "rope_scaling"} & set(config)


def test_per_layer_config_keeps_head_counts_that_the_config_class_accepts(tiny_llama, tiny_tokenizer, tmp_path):
    saved = save(cut(tiny_llama(), per_layer=True), tiny_tokenizer(), tmp_path / "model")
    config = config_of(saved.directory)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["model_type"]) == (4, 2, "llama")
    assert [entry["intermediate_size"] for entry in config["espalier_layers"]] == [48, 16]
    assert config["auto_map"] == {"AutoModelForCausalLM": "per_layer_llama.PerLayerLlamaForCausalLM"}
    assert {path.name for path in saved.directory.glob("*.py")} == {"per_layer.py", "per_layer_llama.py"}


def test_scaled_rope_is_written_for_older_readers_too(tiny_llama, tiny_tokenizer, tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    model = tiny_llama(rope_parameters=rope)
    saved = save(model, tiny_tokenizer(), tmp_path / "model")
    config = config_of(saved.directory)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config["rope_theta"] == 5000.0
    assert torch.equal(logits(load_directory(saved.directory, device="cpu", dtype="float32")[0]), logits(model))


def test_our_folder_loads_through_our_class_and_its_code_is_never_run(tiny_llama, tiny_tokenizer, tmp_path):
    saved = save(cut(tiny_llama(), per_layer=True), tiny_tokenizer(), tmp_path / "model")
    for code in saved.directory.glob("*.py"):
        code.write_text("raise SystemExit('this code must not run')")
    model, _ = load_directory(saved.directory, device="cpu", dtype="float32")
    assert type(model).__module__ == "core.models.per_layer_llama"


def test_a_model_that_was_per_layer_and_is_cut_to_one_size_becomes_stock_again(tiny_llama, tiny_tokenizer, tmp_path):
    first = save(cut(tiny_llama(), per_layer=True), tiny_tokenizer(), tmp_path / "first")
    model, tokenizer = load_directory(first.directory, device="cpu", dtype="float32")
    cut_layer(model, family("llama"), 0, Kept(kv_heads=torch.tensor([0]), channels=torch.arange(16)))
    second = save(model, tokenizer, tmp_path / "second")
    assert second.layout == "stock"
    again, _ = load_directory(second.directory, device="cpu", dtype="float32")
    assert type(again).__name__ == "LlamaForCausalLM"
    assert torch.equal(logits(again), logits(model))


def test_weights_are_written_in_the_format_asked_for_and_tied_ones_once(tiny_llama, tiny_tokenizer, tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    saved = save(model, tiny_tokenizer(), tmp_path / "model", dtype="bfloat16")
    assert stored_dtype(saved.directory) == config_of(saved.directory)["dtype"] == "bfloat16"
    assert model.dtype == torch.float32
    with safe_open(saved.directory / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in set(file.keys())
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - not a mapping
    assert stored == sum(p.numel() for p in model.parameters())
    assert stat.S_IMODE((saved.directory / "model.safetensors").stat().st_mode) == 0o644


def test_zeros_of_a_mask_survive_on_disk(tiny_llama, tiny_tokenizer, tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, ::2] = 0
    saved = save(model, tiny_tokenizer(), tmp_path / "model", dtype="float16")
    again, _ = load_directory(saved.directory, device="cpu", dtype="float32")
    assert int((again.model.layers[0].mlp.up_proj.weight == 0).sum()) == 48 * 8


def test_large_models_are_cut_into_shards_that_load_whole(tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SHARD_BYTES", 8000)
    model = tiny_llama()
    seen = []
    saved = save(
        model, tiny_tokenizer(), tmp_path / "model", lambda done, total, unit: seen.append((done, total, unit))
    )
    shards = sorted(path.name for path in saved.directory.glob("*.safetensors"))
    assert len(shards) > 2
    index = json.loads((saved.directory / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert seen[-1] == (index["metadata"]["total_size"],) * 2 + ("bytes",)
    assert torch.equal(logits(load_directory(saved.directory, device="cpu", dtype="float32")[0]), logits(model))


def test_a_cancelled_save_leaves_nothing_and_harms_no_older_one(tiny_llama, tiny_tokenizer, tmp_path):
    model, target = tiny_llama(), tmp_path / "runs" / "model"

    def cancel(done, total, unit):
        raise Cancelled

    with pytest.raises(Cancelled):
        save(model, tiny_tokenizer(), target, cancel)
    assert list(target.parent.iterdir()) == []
    save(model, tiny_tokenizer(), target)
    with pytest.raises(Cancelled):
        save(model, tiny_tokenizer(), target, cancel)
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "model.safetensors").is_file()


def test_the_tokenizer_goes_along_with_its_chat_template(tiny_llama, tiny_tokenizer, tmp_path):
    saved = save(tiny_llama(), tiny_tokenizer(), tmp_path / "model")
    _, tokenizer = load_directory(saved.directory, device="cpu", dtype="float32")
    messages = [{"role": "user", "content": "abc"}]
    expected = tiny_tokenizer().apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == expected == "user:abc"
    assert list(tokenizer("abc")) == ["input_ids", "attention_mask"]
    config = json.loads((saved.directory / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only"} & set(config)


def test_odd_generation_settings_do_not_stop_a_save(tiny_llama, tiny_tokenizer, tmp_path):
    model = tiny_llama()
    model.generation_config.temperature = 0.6  # without do_sample: transformers' own save refuses it
    directory = save(model, tiny_tokenizer(), tmp_path / "model").directory
    assert json.loads((directory / "generation_config.json").read_text())["temperature"] == 0.6


def test_a_model_with_code_of_its_own_is_refused(tiny_llama, tiny_tokenizer, tmp_path):
    model = tiny_llama()
    model.__class__ = type("StrangeForCausalLM", (type(model),), {})
    with pytest.raises(ModelError, match="StrangeForCausalLM"):
        save(model, tiny_tokenizer(), tmp_path / "model")


def damage_theta(directory, model):
    config = config_of(directory)
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 50.0
    (directory / "config.json").write_text(json.dumps(config))


def damage_tokenizer(directory, model):
    text = (directory / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(text.replace('"a": ', '"swap": ').replace('"b": ', '"a": '))


def remove_weights(directory, model):
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_theta, "logits differ by up to"),
        (damage_tokenizer, "tokenizer"),
        (remove_weights, "does not load in a fresh process"),
    ],
)
def test_verification_fails_on_a_folder_that_is_another_model(tiny_llama, tiny_tokenizer, tmp_path, damage, words):
    model = tiny_llama()
    saved = save(model, tiny_tokenizer(), tmp_path / "model")
    damage(saved.directory, model)
    with pytest.raises(VerificationError, match=words):
        verify(saved.directory, model, tiny_tokenizer())


@pytest.mark.parametrize("found", [float("nan"), float("inf"), 2e-4])
def test_no_logit_may_differ_and_nan_never_passes(found):
    expected = torch.zeros(1, 2, 3)
    assert compare(expected, expected + 5e-5) == pytest.approx(5e-5)
    with pytest.raises(VerificationError, match="differ"):
        compare(expected, torch.tensor([[[0, 0, 0], [0, found, 0]]]))
    with pytest.raises(VerificationError, match="shape"):
        compare(expected, expected[:, :1])


@pytest.mark.fresh
def test_a_stock_model_passes_verification(tiny_llama, tiny_tokenizer, tmp_path):
    model = cut(tiny_llama(tie_word_embeddings=False), per_layer=False)
    report = verify(save(model, tiny_tokenizer(), tmp_path / "model").directory, model, tiny_tokenizer())
    assert report.max_abs_difference <= 1e-6
    assert (report.model_class, report.trust_remote_code) == ("LlamaForCausalLM", False)


def test_verification_judges_a_half_precision_model_in_float32_and_leaves_it_alone(
    tiny_llama, tiny_tokenizer, tmp_path
):
    folder = save(tiny_llama(), tiny_tokenizer(), tmp_path / "source").directory
    model, tokenizer = load_directory(folder, device="cpu", dtype="bfloat16")
    before = {name: each.clone() for name, each in [*model.named_parameters(), *model.named_buffers()]}
    saved = save(cut(model, per_layer=True), tokenizer, tmp_path / "model", dtype="float32")
    report = verify(saved.directory, model, tokenizer)
    assert report.max_abs_difference <= 1e-6
    assert (report.model_class, report.trust_remote_code) == ("PerLayerLlamaForCausalLM", True)
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert {name: each.dtype for name, each in after.items()} == {name: each.dtype for name, each in before.items()}
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


@pytest.mark.fresh
def test_verification_can_be_cancelled_and_leaves_no_process(tiny_llama, tiny_tokenizer, tmp_path):
    import psutil

    model = tiny_llama()
    saved = save(model, tiny_tokenizer(), tmp_path / "model")
    calls = []

    def cancel_while_it_waits(done, total, unit):
        calls.append(done)
        if calls.count(1) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        verify(saved.directory, model, tiny_tokenizer(), cancel_while_it_waits)
    living = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
    assert not [each for each in living if "verify_process" in " ".join(each.cmdline())]


def test_a_verification_is_cancelled_before_the_next_module_computes_and_gives_the_weights_back(
    tiny_llama, tiny_tokenizer, tmp_path
):
    model = tiny_llama(dtype=torch.bfloat16)
    before = {name: (each.dtype, each.data_ptr()) for name, each in model.named_parameters()}
    saved, calls, heads = save(model, tiny_tokenizer(), tmp_path / "model"), [0], []
    model.lm_head.register_forward_pre_hook(lambda *_: heads.append(calls[0]))

    def cancel(_done, _total, _unit):
        calls[0] += 1
        if calls[0] == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        verify(saved.directory, model, tiny_tokenizer(), cancel)
    assert calls == [5]
    assert heads == []
    assert {name: (each.dtype, each.data_ptr()) for name, each in model.named_parameters()} == before


def test_the_saved_code_imports_nothing_but_the_standard_library_and_transformers(tiny_llama, tiny_tokenizer, tmp_path):
    import ast
    import sys

    directory = save(cut(tiny_llama(), per_layer=True), tiny_tokenizer(), tmp_path / "model").directory
    for path in directory.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                root = (node.module or "").partition(".")[0]
                assert node.level or root == "transformers" or root in sys.stdlib_module_names
                assert not node.level or (directory / f"{node.module}.py").is_file()
            elif isinstance(node, ast.Import):
                assert all(each.name in sys.stdlib_module_names for each in node.names)


def test_an_older_folder_of_that_name_is_replaced_whole(tiny_llama, tiny_tokenizer, tmp_path):
    target = tmp_path / "model"
    save(cut(tiny_llama(), per_layer=True), tiny_tokenizer(), target)
    save(tiny_llama(), tiny_tokenizer(), target)
    assert not list(target.glob("*.py"))
    shutil.rmtree(target)


@pytest.mark.gpu
@pytest.mark.fresh  # GPU machines need not have what the forks load
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_model_on_a_gpu_is_verified_in_float32_on_the_cpu_and_stays_where_it_is(
    tiny_llama, tiny_tokenizer, tmp_path, dtype
):
    folder = save(tiny_llama(), tiny_tokenizer(), tmp_path / "source", dtype="bfloat16").directory
    model, tokenizer = load_directory(folder, device="cuda:0", dtype=dtype)
    ids = torch.arange(20, device="cuda:0")[None]
    cut(model, per_layer=True)
    with torch.inference_mode():
        expected = model(ids).logits
    saved = save(model, tokenizer, tmp_path / "model", dtype="bfloat16")
    assert verify(saved.directory, model, tokenizer).max_abs_difference <= 1e-6
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, expected)
    assert {str(each.device) for each in [*model.parameters(), *model.buffers()]} == {"cuda:0"}
    assert stored_dtype(saved.directory) == "bfloat16"
