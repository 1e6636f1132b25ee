"""Multiply-accumulates from shapes, against torch's own count of what a pass does."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.evaluation import macs
from core.models.sizes import PER_LAYER_KEY, Architecture, LayerSizes
from tests.conftest import TINY_FAMILIES

LENGTH = 24


def counted(model: Any, length: int = LENGTH) -> int:
    """Multiply-accumulates of the matrix products that torch sees, without those that make the rotations."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model(input_ids=torch.ones(1, length, dtype=torch.long), use_cache=False)
    total = counter.get_total_flops()
    rotations = sum(
        sum(operations.values()) for name, operations in counter.get_flop_counts().items() if "otary" in name
    )
    return (total - rotations) // 2


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_macs_from_shapes_are_what_torch_counts(family: str, tiny_model: Any) -> None:
    model = tiny_model(family)
    model.set_attn_implementation("eager")
    architecture = Architecture.from_config(model.config.to_dict())
    assert macs.macs(architecture, LENGTH) == counted(model)


def test_layers_of_different_sizes_count_as_they_are(tiny_config: Any) -> None:
    from transformers import LlamaConfig

    from core.models.loading import per_layer_class

    sizes = [LayerSizes(4, 2, 32), LayerSizes(2, 1, 7)]
    rows = [
        {"num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "intermediate_size": s.mlp} for s in sizes
    ]
    config = {**tiny_config(), PER_LAYER_KEY: rows}
    model = per_layer_class(config)(LlamaConfig(**config)).eval()
    model.set_attn_implementation("eager")
    architecture = Architecture.from_config(config)
    assert architecture.layers == tuple(sizes)
    assert macs.macs(architecture, LENGTH) == counted(model)


def test_zeros_count_like_other_weights(tiny_llama: Any) -> None:
    model = tiny_llama()
    before = counted(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[::2] = 0
    assert counted(model) == before


def test_the_metric_states_its_length_and_unknown_families_have_none(tiny_config: Any) -> None:
    (metric,) = macs.measured("pruned", Architecture.from_config(tiny_config()))
    assert metric.metric == "macs"
    assert metric.protocol["length"] == 64  # as many positions as the model has
    assert metric.value == macs.macs(Architecture.from_config(tiny_config()), 64)
    assert macs.measured("pruned", Architecture.from_config(tiny_config(model_type="marvin"))) == []
