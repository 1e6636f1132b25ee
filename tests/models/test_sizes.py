from typing import Any

import pytest

from core.errors import ExperimentError, ModelError
from core.experiment import Experiment, Pruning
from core.models.plans import floor_count, half_up_count, kept_channels, plan, zeros_in_matrix
from core.models.sizes import Architecture, LayerSizes

SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
TINYLLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False, "max_position_embeddings": 2048,
}  # fmt: skip


def pruning(**fields: Any) -> Pruning:
    found = Experiment.parse({"pruning": {"method": "l2", **fields}}).pruning
    assert found is not None
    return found


def test_ratios_are_read_as_decimals() -> None:
    assert floor_count(0.29, 100) == 29
    assert int(0.29 * 100) == 28, "the trap this guards against"
    assert half_up_count(0.5, 3) == 2
    assert half_up_count(0.3, 1536) == 461


def test_known_models_have_their_published_sizes() -> None:
    assert Architecture.from_config(SMOLLM2).params == 134_515_008
    assert Architecture.from_config(TINYLLAMA).params == 1_100_048_384


def test_parameters_agree_with_torch(tiny_llama: Any, tiny_config: Any) -> None:
    for changes in ({}, {"tie_word_embeddings": False}, {"attention_bias": True, "mlp_bias": True}):
        model = tiny_llama(**changes)
        assert Architecture.from_config(tiny_config(**changes)).params == sum(p.numel() for p in model.parameters())


def test_a_plan_of_tinyllama_at_a_quarter_removes_one_group_and_names_its_share_of_the_model() -> None:
    planned = plan(Architecture.from_config(TINYLLAMA), pruning(ratio=0.25, layers=[4, 17], round_to=1))
    assert planned.cuts[4].after == LayerSizes(24, 3, 4224)
    assert planned.cuts[3].after == planned.cuts[3].before
    assert planned.achieved_model_ratio == pytest.approx(0.140, abs=5e-4)


def test_llm_pruner_at_a_fifth_removes_no_head_of_tinyllama() -> None:
    planned = plan(Architecture.from_config(TINYLLAMA), pruning(ratio=0.20, layers=[4, 18]))
    assert {cut.after.heads for cut in planned.cuts} == {32}


def test_query_heads_leave_the_same_number_in_every_group() -> None:
    planned = plan(Architecture.from_config(TINYLLAMA), pruning(ratio=0.30, heads="query_heads"))
    assert planned.cuts[0].after.kv_heads == 4
    assert planned.cuts[0].after.heads == 4 * (8 - 2)


@pytest.mark.parametrize(
    ("ratio", "n", "step", "kept"), [(0.3, 1536, 32, 1088), (0.3, 1536, 1, 1075), (0.99, 8, 32, 8), (0.99, 64, 16, 16)]
)
def test_kept_channels_are_rounded_up_and_never_none(ratio: float, n: int, step: int, kept: int) -> None:
    assert kept_channels(ratio, n, step) == kept


def test_a_width_cut_never_empties_a_layer() -> None:
    planned = plan(Architecture.from_config(SMOLLM2), pruning(ratio=0.99, round_to=1))
    assert all(cut.after.kv_heads == 1 and cut.after.heads == 3 and cut.after.mlp >= 1 for cut in planned.cuts)


def test_parts_limit_what_is_cut() -> None:
    planned = plan(Architecture.from_config(SMOLLM2), pruning(ratio=0.5, parts=["mlp"]))
    assert planned.cuts[0].after == LayerSizes(9, 3, 768)
    assert planned.achieved_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("shape", "ratio", "pattern", "compare", "zeros"),
    [
        ((3, 5), 0.5, "unstructured", "row", 9),
        ((3, 5), 0.5, "unstructured", "matrix", 8),
        ((3, 8), 0.5, "2:4", "row", 12),
        ((2, 16), 0.5, "4:8", "row", 16),
    ],
)
def test_zeros_are_counted_exactly(
    shape: tuple[int, int], ratio: float, pattern: str, compare: str, zeros: int
) -> None:
    assert zeros_in_matrix(shape, ratio, pattern, compare) == zeros


def test_a_mask_plan_keeps_every_parameter_and_counts_zeros() -> None:
    found = Experiment.parse({"pruning": {"method": "wanda", "ratio": 0.5}}).pruning
    assert found is not None
    planned = plan(Architecture.from_config(SMOLLM2), found)
    assert planned.params_after == planned.params_before
    assert planned.achieved_ratio == pytest.approx(0.5)
    assert planned.params_before - planned.nonzero_after == 106_168_320 // 2


def test_layers_beyond_the_model_are_named() -> None:
    with pytest.raises(ExperimentError, match="layers 4–30 asked for, but the model has layers 0–29"):
        plan(Architecture.from_config(SMOLLM2), pruning(layers=[4, 30]))


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
