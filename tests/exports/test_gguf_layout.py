"""What goes into a GGUF file, by hand."""

import math
from typing import Any

import pytest

from core.errors import ModelError
from core.models.gguf_layout import gguf_layout
from core.models.sizes import Architecture

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}  # fmt: skip
PATHS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
         "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}  # fmt: skip


def stored(config: dict[str, Any], biases: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the safetensors files of a model with this configuration."""
    architecture = Architecture.from_config(config)
    hidden, vocab = architecture.hidden_size, architecture.vocab_size
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not architecture.tied:
        found["lm_head.weight"] = (vocab, hidden)
    for i in range(architecture.n_layers):
        for role, shape in architecture.matrix_shapes(i).items():
            if 0 not in shape:
                found[f"model.layers.{i}.{PATHS[role]}.weight"] = shape
                if role in biases:
                    found[f"model.layers.{i}.{PATHS[role]}.bias"] = shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{i}.{norm}.weight"] = (hidden,)
    return found


def per_layer(*sizes: tuple[int, int, int], **changes: Any) -> dict[str, Any]:
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    rows = [dict(zip(names, each, strict=True)) for each in sizes]
    return {**LLAMA, "num_hidden_layers": len(rows), "espalier_layers": rows, **changes}


def test_equal_layers_are_llama_and_different_ones_deci() -> None:
    assert gguf_layout(LLAMA, stored(LLAMA), "float32").architecture == "llama"
    uneven = per_layer((4, 2, 96), (2, 1, 96))
    layout = gguf_layout(uneven, stored(uneven), "float32")
    assert layout.architecture == "deci"
    assert [tensor.heads for tensor in layout.tensors if "attn_q" in tensor.name] == [4, 2]
    assert [tensor.heads for tensor in layout.tensors if "attn_k" in tensor.name] == [2, 1]


def test_a_tied_model_has_no_output_matrix_and_norms_stay_float32() -> None:
    for tied in (True, False):
        config = {**LLAMA, "tie_word_embeddings": tied}
        layout = gguf_layout(config, stored(config), "q4_0")
        types = {tensor.name: tensor.type for tensor in layout.tensors}
        assert ("output.weight" in types) is not tied
        assert {kind for name, kind in types.items() if "norm" in name} == {"F32"}
        assert types["blk.0.ffn_up.weight"] == "Q4_0"
        assert types["token_embd.weight"] == "Q8_0"


def test_mlp_widths_are_filled_up_for_blocks_only() -> None:
    config = {**LLAMA, "intermediate_size": 90}
    quantised = gguf_layout(config, stored(config), "q8_0")
    shapes = {tensor.name: (tensor.held, tensor.shape) for tensor in quantised.tensors}
    assert shapes["blk.0.ffn_gate.weight"] == ((90, 64), (96, 64))
    assert shapes["blk.1.ffn_down.weight"] == ((64, 90), (64, 96))
    assert {sizes.mlp for sizes in quantised.layers} == {96}
    assert "2 layers is filled up" in quantised.notes[0]
    plain = gguf_layout(config, stored(config), "bfloat16")
    assert {sizes.mlp for sizes in plain.layers} == {90}
    assert plain.notes == ()


def test_widths_that_are_alike_once_filled_up_need_no_arrays() -> None:
    config = per_layer((4, 2, 65), (4, 2, 96))
    assert gguf_layout(config, stored(config), "q8_0").architecture == "llama"
    assert gguf_layout(config, stored(config), "float16").architecture == "deci"


def test_rows_that_blocks_do_not_divide_are_kept_in_float16() -> None:
    config = {**LLAMA, "head_dim": 12}  # o has rows of 48
    layout = gguf_layout(config, stored(config), "q8_0")
    types = {tensor.name: tensor.type for tensor in layout.tensors}
    assert types["blk.0.attn_output.weight"] == "F16"
    assert types["blk.0.attn_q.weight"] == "Q8_0"
    assert any("float16" in note for note in layout.notes)


def test_a_layer_without_attention_has_none_and_one_without_mlp_gets_zeros() -> None:
    config = per_layer((0, 0, 96), (4, 2, 0), (4, 2, 96), (0, 0, 96))
    layout = gguf_layout(config, stored(config), "float32")
    names = {tensor.name for tensor in layout.tensors}
    assert not any(name.startswith("blk.3.attn") for name in names)
    first = [tensor for tensor in layout.tensors if tensor.name == "blk.0.attn_q.weight"]
    assert [(tensor.source, tensor.shape) for tensor in first] == [(None, (16, 64))]  # one head of zeros
    empty = [tensor for tensor in layout.tensors if tensor.name.startswith("blk.1.ffn") and "norm" not in tensor.name]
    assert [tensor.source for tensor in empty] == [None, None, None]
    assert [sizes.mlp for sizes in layout.layers] == [96, 32, 96, 96]


def test_the_size_is_known_before_anything_is_written() -> None:
    layout = gguf_layout(LLAMA, stored(LLAMA), "q8_0")
    matrices = [tensor for tensor in layout.tensors if len(tensor.shape) == 2]
    vectors = [tensor for tensor in layout.tensors if len(tensor.shape) == 1]
    expected = sum(math.prod(t.shape) // 32 * 34 for t in matrices) + sum(4 * t.shape[0] for t in vectors)
    assert layout.bytes == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gemma"}, "gemma"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"head_dim": 15}, "odd head_dim"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding window"),
    ],
)
def test_what_llama_cpp_would_compute_wrongly_is_refused(changes: dict[str, Any], said: str) -> None:
    config = {**LLAMA, **changes}
    with pytest.raises(ModelError, match=said):
        gguf_layout(config, stored(config), "float32")


def test_a_family_without_per_layer_architecture_is_refused_only_where_layers_differ() -> None:
    even = {**LLAMA, "model_type": "qwen2"}
    assert gguf_layout(even, stored(even, ("q", "k", "v")), "float32").architecture == "qwen2"
    uneven = per_layer((4, 2, 96), (4, 2, 64), model_type="qwen2")
    with pytest.raises(ModelError, match="whose layers differ"):
        gguf_layout(uneven, stored(uneven, ("q", "k", "v")), "float32")


def test_missing_extra_and_misshapen_weights_are_refused_by_name() -> None:
    names = stored(LLAMA)
    with pytest.raises(ModelError, match=r"lack the weight model\.layers\.1\.mlp\.up_proj\.weight"):
        gguf_layout(LLAMA, {k: v for k, v in names.items() if k != "model.layers.1.mlp.up_proj.weight"}, "float32")
    with pytest.raises(ModelError, match=r"no place for 1 weights .* extra\.weight"):
        gguf_layout(LLAMA, {**names, "extra.weight": (3,)}, "float32")
    with pytest.raises(ModelError, match=r"has the shape \(63, 64\)"):
        gguf_layout(LLAMA, {**names, "model.layers.0.self_attn.q_proj.weight": (63, 64)}, "float32")


def test_a_sliding_window_ends_the_context() -> None:
    config = {**LLAMA, "model_type": "mistral", "sliding_window": 128}
    layout = gguf_layout(config, stored(config), "float32")
    assert layout.context_length == 128
    assert "128 tokens" in layout.notes[0]
