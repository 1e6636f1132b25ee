"""GGUF files of small models: what is written, what the check finds, and that llama.cpp computes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import ModelError, NumericalError, VerificationError
from core.models import gguf_export, llamacpp
from core.models.gguf_export import ALLOWED, check, encoded, interleaved, opened, plan_gguf, write_gguf
from core.models.gguf_layout import DTYPES, GgufTensor, gguf_layout
from core.models.loading import load_directory

needs_llama_cpp = pytest.mark.skipif(not llamacpp.installed(), reason="the package xllamacpp is not installed")
UNEVEN = [(4, 2, 96), (2, 1, 64), (4, 2, 40)]


def agreement(folder: Path, file: Path, dtype: Any) -> llamacpp.Agreement:
    import torch

    model, tokenizer = load_directory(folder, device="cpu", dtype="float32")
    return llamacpp.compare(file, llamacpp.reference(model, tokenizer, torch.float32), dtype)


# ------------------------------------------------------------------------------------------------------- without engine


def test_rows_of_each_head_are_interleaved() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)  # two heads of four channels
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(rows[:, 0], 1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]  # a bias


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_holds_the_source_within_the_formats_error(dtype: Any, saved: Any, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import load_file

    folder = saved(layers=UNEVEN)
    made = write_gguf(folder, tmp_path / "x.gguf", dtype, {"name": "tiny"})
    assert made.architecture == "deci"
    source = load_file(folder / "model.safetensors")
    read = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(made.path).tensors}
    assert len(read) == made.tensors == 3 * 9 + 2
    for name, theirs in {"blk.1.attn_v.weight": "self_attn.v_proj", "blk.1.ffn_up.weight": "mlp.up_proj"}.items():
        wanted = source[f"model.layers.1.{theirs}.weight"]
        kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}[dtype]
        off = np.abs(read[name] - wanted).max() / np.abs(wanted).max()
        assert off <= ALLOWED[kind] + 1e-7
        assert bool(off == 0) is (dtype == "float32")
    # q: head h, channel i of transformers is row h·16 + 2i, or 2(i − 8) + 1 for the second half
    wanted = source["model.layers.1.self_attn.q_proj.weight"]
    order = [16 * h + (2 * i if i < 8 else 2 * (i - 8) + 1) for h in range(2) for i in range(16)]
    assert np.abs(read["blk.1.attn_q.weight"][order] - wanted).max() <= 0.13 * np.abs(wanted).max()


def test_the_metadata_says_the_sizes(saved: Any, tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = saved(layers=UNEVEN, rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    reader = GGUFReader(write_gguf(folder, tmp_path / "x.gguf", "q8_0", {"name": "a", "license": "mit"}).path)
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["deci.attention.head_count"] == [4, 2, 4]
    assert said["deci.attention.head_count_kv"] == [2, 1, 2]
    assert said["deci.feed_forward_length"] == [96, 64, 64]  # 40 is filled up
    assert said["deci.attention.key_length"] == said["deci.rope.dimension_count"] == 16
    assert said["deci.rope.freq_base"] == 5000.0
    assert said["deci.embedding_length"] == 64
    assert said["general.license"] == "mit"
    assert said["tokenizer.ggml.pre"] == "gpt-2"
    assert len(said["tokenizer.ggml.tokens"]) == 384
    assert said["tokenizer.chat_template"].startswith("{% for m")


def test_bfloat16_folders_and_shards_are_read(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.models import saving

    whole = write_gguf(saved(dtype="bfloat16"), tmp_path / "whole.gguf", "bfloat16")
    monkeypatch.setattr(saving, "SHARD_BYTES", 60_000)
    folder = saved(name="shards", dtype="bfloat16")
    assert len(list(folder.glob("*.safetensors"))) > 1
    parts = write_gguf(folder, tmp_path / "parts.gguf", "bfloat16")
    assert parts.path.read_bytes() == whole.path.read_bytes()


def test_memory_holds_one_tensor_at_a_time(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Any]] = []
    most = 0
    plain = gguf_export.Weights.read

    def watched(self: Any, name: str) -> Any:
        nonlocal most
        values = plain(self, name)
        gc.collect()
        alive.append(weakref.ref(values))
        most = max(most, sum(ref() is not None for ref in alive))
        return values

    monkeypatch.setattr(gguf_export.Weights, "read", watched)
    write_gguf(saved(), tmp_path / "x.gguf", "q8_0")
    assert len(alive) > 27
    assert most <= 2


@pytest.mark.parametrize("damage", ["byte", "swap", "shape"])
def test_the_check_finds_a_damaged_file(damage: str, saved: Any, tmp_path: Path) -> None:
    folder = saved()
    made = write_gguf(folder, tmp_path / "x.gguf", "float32")
    from core.models.catalogue import read_config

    with opened(folder) as weights:
        layout = gguf_layout(read_config(folder), weights.shapes, "float32")
        sums = {tensor.name: 0 for tensor in layout.tensors}
        from gguf import GGUFReader

        for tensor in GGUFReader(made.path).tensors:
            sums[tensor.name] = gguf_export._sum(tensor.data)
        assert check(made.path, layout, weights, sums) > 0
        if damage == "byte":
            data = bytearray(made.path.read_bytes())
            data[-5000] ^= 1
            made.path.write_bytes(bytes(data))
            expected = "is not what was written"
        elif damage == "swap":  # as if the rows had not been interleaved
            plain = gguf_layout({**read_config(folder)}, weights.shapes, "float32")
            tensors = tuple(
                GgufTensor(t.name, t.source, t.shape, t.held, t.type, 0 if "attn_q" in t.name else t.heads)
                for t in plain.tensors
            )
            layout = type(plain)(**{**vars(plain), "tensors": tensors})
            expected = "differ by more than F32 allows"
        else:
            sums.pop("output_norm.weight")
            expected = "does not hold the tensors"
        with pytest.raises(VerificationError, match=expected):
            check(made.path, layout, weights, sums)


def test_a_failed_check_leaves_no_file(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_export, "interleaved", lambda values, heads: values)
    target = tmp_path / "out" / "x.gguf"
    with pytest.raises(VerificationError, match="attn_"):
        write_gguf(saved(), target, "float32")
    assert list(target.parent.iterdir()) == []


def test_weights_that_do_not_fit_are_refused() -> None:
    entry = GgufTensor("x", "layer.weight", (1, 32), (1, 32), "F16")
    with pytest.raises(NumericalError, match="float16 ends at 65504"):
        encoded(entry, np.full((1, 32), 1e5, dtype=np.float32))
    with pytest.raises(NumericalError, match="nan or inf"):
        encoded(entry, np.full((1, 32), np.nan, dtype=np.float32))


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(tiny_folder: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="WordLevel"):
        write_gguf(tiny_folder(), tmp_path / "x.gguf", "float32")
    assert not (tmp_path / "x.gguf").exists()


# ------------------------------------------------------------------------------------------------------- with llama.cpp


@needs_llama_cpp
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "tokenizer": "smollm"}),
        ("llama", {"layers": UNEVEN}),
        ("llama", {"layers": UNEVEN, "tie_word_embeddings": False}),
        ("llama", {"layers": [(4, 2, 40)] * 3}),
        ("llama", {"num_attention_heads": 2, "num_key_value_heads": 2}),
        ("llama", {"hidden_size": 48}),  # a hidden size cut down, heads as they were
        ("llama", {"num_hidden_layers": 1}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"attention_bias": True, "layers": UNEVEN}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        (
            "llama",
            {
                "tokenizer": "llama-bpe",
                "layers": UNEVEN,
                "rope_parameters": {
                    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
                },
            },
        ),
        ("mistral", {"tokenizer": "llama-2", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}),
        ("mistral", {"layers": UNEVEN}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain",
)  # fmt: skip
def test_llama_cpp_computes_the_same_model(family: str, options: dict[str, Any], saved: Any, tmp_path: Path) -> None:
    folder = saved(family, **options)
    made = write_gguf(folder, tmp_path / "x.gguf", "float32")
    assert made.architecture == ("deci" if options.get("layers") == UNEVEN else "llama")
    found = agreement(folder, made.path, "float32")
    assert found.near == 1.0
    assert found.agree >= 0.98
    assert found.chat_ids_equal in (True, None)


@needs_llama_cpp
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_llama_cpp_computes_the_same_qwen(family: str, saved: Any, tmp_path: Path) -> None:
    from core.models.families import families

    if family not in families():
        pytest.skip(f"{family} is not a family yet")
    folder = saved(family, tokenizer="qwen2")
    made = write_gguf(folder, tmp_path / "x.gguf", "float32")
    assert made.architecture == family
    found = agreement(folder, made.path, "float32")
    assert found.near == 1.0
    assert found.agree >= 0.98
    with pytest.raises(ModelError, match="whose layers differ"):
        plan_gguf(saved(family, UNEVEN, tokenizer="qwen2", name="uneven"), "float32")


@needs_llama_cpp
@pytest.mark.parametrize("layers", [None, UNEVEN], ids=["llama", "deci"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_llama_cpp_reads_every_format(dtype: Any, layers: Any, saved: Any, tmp_path: Path) -> None:
    folder = saved(layers=layers)
    found = agreement(folder, write_gguf(folder, tmp_path / "x.gguf", dtype).path, dtype)
    assert found.agree >= {"float16": 0.98, "bfloat16": 0.9, "q8_0": 0.85}[dtype]


@needs_llama_cpp
def test_rows_in_the_wrong_order_are_caught_by_llama_cpp_alone(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_export, "interleaved", lambda values, heads: values)
    monkeypatch.setattr(gguf_export, "check", lambda *_: 0)
    folder = saved(layers=UNEVEN)
    made = write_gguf(folder, tmp_path / "x.gguf", "float32")
    with pytest.raises(VerificationError, match="computes another model"):
        agreement(folder, made.path, "float32")


@needs_llama_cpp
def test_another_cut_of_words_is_caught(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from core.models import gguf_tokenizer

    monkeypatch.setattr(gguf_tokenizer, "_pre", lambda *_: "default")
    folder = saved()
    made = write_gguf(folder, tmp_path / "x.gguf", "float32")
    with pytest.raises(VerificationError, match="cuts text differently"):
        agreement(folder, made.path, "float32")


@needs_llama_cpp
def test_a_file_that_llama_cpp_refuses_is_an_error_in_words(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(VerificationError, match=r"llama\.cpp cannot use the file"):
        llamacpp.ask(path, {"texts": [], "prompts": [], "continue": None})


@needs_llama_cpp
def test_layers_without_attention_or_mlp_are_computed(saved: Any, tmp_path: Path) -> None:
    """A zero output matrix is a missing part: the model with zeros in transformers, the one without in llama.cpp."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    folder = saved(layers=[(4, 2, 96), (2, 1, 64), (4, 2, 64), (4, 2, 96)])
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for gone in ("layers.0.self_attn.o_proj", "layers.1.mlp.down_proj", "layers.2.self_attn.o_proj"):
        tensors[f"model.{gone}.weight"] = torch.zeros_like(tensors[f"model.{gone}.weight"])
    save_file(tensors, path, metadata={"format": "pt"})
    model, tokenizer = load_directory(folder, device="cpu", dtype="float32")
    said = llamacpp.reference(model, tokenizer, torch.float32)
    config = json.loads((folder / "config.json").read_text())
    for i in (0, 2):
        config["espalier_layers"][i] |= {"num_attention_heads": 0, "num_key_value_heads": 0}
    config["espalier_layers"][1]["intermediate_size"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    away = ("layers.0.self_attn", "layers.0.input_layernorm", "layers.2.self_attn", "layers.1.mlp")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in away)}
    save_file(kept, path, metadata={"format": "pt"})
    made = write_gguf(folder, tmp_path / "x.gguf", "float32")
    assert llamacpp.compare(made.path, said, "float32").near == 1.0
