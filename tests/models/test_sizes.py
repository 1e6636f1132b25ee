from typing import Any

import pytest

from core.errors import ModelError
from core.models.sizes import Architecture, LayerSizes

SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
TINYLLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False, "max_position_embeddings": 2048,
}  # fmt: skip


def test_known_models_have_their_published_sizes() -> None:
    assert Architecture.from_config(SMOLLM2).params == 134_515_008
    assert Architecture.from_config(TINYLLAMA).params == 1_100_048_384


def test_parameters_agree_with_torch(tiny_llama: Any, tiny_config: Any) -> None:
    for changes in ({}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True}):
        model = tiny_llama(**changes)
        assert Architecture.from_config(tiny_config(**changes)).params == sum(p.numel() for p in model.parameters())


def test_a_config_without_sizes_says_which_key_is_missing() -> None:
    with pytest.raises(ModelError, match="num_attention_heads"):
        Architecture.from_config({"model_type": "mamba"})


def test_own_per_layer_sizes_are_read() -> None:
    rows = [{"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1024}] * 30
    found = Architecture.from_config({**SMOLLM2, "head_dim": 64, "espalier_layers": rows})
    assert found.layers == (LayerSizes(6, 2, 1024),) * 30
    with pytest.raises(ModelError, match="damaged"):
        Architecture.from_config({**SMOLLM2, "espalier_layers": rows[:3]})


def test_macs_agree_with_torchs_flop_counter(tiny_llama: Any, tiny_config: Any) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_llama()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(3, 90, (1, 24)))
    assert 2 * Architecture.from_config(tiny_config()).macs(24) == pytest.approx(counter.get_total_flops(), rel=0.02)
