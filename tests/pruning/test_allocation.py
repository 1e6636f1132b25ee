"""Shares of the ratio by layer: OWL's for masks, one ranking over all layers for width."""

from typing import Any

import pytest
import torch

from core.models.sizes import Architecture, LayerSizes
from core.pruning.allocation import global_sizes, owl_ratios
from core.pruning.prune import prune
from core.pruning.registry import methods

# -------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.3, 0.5, 0.7, 0.95, 0.99])
@pytest.mark.parametrize("shares", [[0.01, 0.02, 0.03], [0.5, 0.0, 0.0, 0.0], [0.0, 0.3, 0.3, 0.3], [0.1, 0.1]])
def test_the_mean_of_the_ratios_is_the_ratio_and_outliers_lower_it(ratio: float, shares: list[float]) -> None:
    found = owl_ratios(dict(enumerate(shares, start=3)), ratio)
    values = list(found.values())
    assert list(found) == list(range(3, 3 + len(shares)))
    assert sum(values) / len(values) == pytest.approx(ratio, abs=1e-7)
    assert all(0 <= value <= 0.999 for value in values)
    assert max(values) - min(values) <= 0.16 + 1e-7
    for a, mine in zip(shares, values, strict=True):
        for b, other in zip(shares, values, strict=True):
            assert (mine < other) == (a > b)


def test_owl_by_hand() -> None:
    """Shares 1, 2 and 4 %: scaled to 0, 0.16/3 and 0.16; the mean of these, 0.0711, is added back."""
    found = owl_ratios({0: 0.01, 1: 0.02, 2: 0.04}, 0.5)
    assert list(found.values()) == pytest.approx(
        [0.5 + 0.64 / 9, 0.5 + 0.64 / 9 - 0.16 / 3, 0.5 + 0.64 / 9 - 0.16], abs=1e-8
    )


def test_layers_of_other_sizes_weigh_in_with_their_weights() -> None:
    sizes = {0: 100, 1: 300}
    found = owl_ratios({0: 0.04, 1: 0.01}, 0.5, sizes=sizes)
    assert sum(found[i] * sizes[i] for i in sizes) / 400 == pytest.approx(0.5)
    assert (found[0] + found[1]) / 2 != pytest.approx(0.5)


def masked(model: Any, windows: torch.Tensor, **fields: Any) -> list[float]:
    """Share of zeros in each layer."""
    from core.experiment import Pruning

    pruning = Pruning(method="wanda", ratio=0.5, **fields)
    architecture = Architecture.from_config(model.config.to_dict())
    done = prune(model, pruning, architecture=architecture, windows=windows, seed=0, device="cpu")
    return [1 - layer["density"] for layer in done.layers]


def test_a_layer_with_outliers_loses_less(tiny_llama: Any) -> None:
    windows = torch.randint(0, 96, (4, 12), generator=torch.Generator().manual_seed(0))
    wide = {"num_hidden_layers": 4, "hidden_size": 64, "head_dim": 16, "intermediate_size": 96}  # rows of 16 round much
    model = tiny_llama(**wide)
    for linear in (model.model.layers[2].mlp.gate_proj, model.model.layers[2].self_attn.q_proj):
        linear.weight.data[:, 3] *= 100
    assert masked(tiny_llama(**wide), windows) == pytest.approx([0.5] * 4)
    shares = masked(model, windows, allocation="owl")
    assert min(shares) == shares[2] < 0.45
    assert sum(shares) / 4 == pytest.approx(0.5, abs=0.006)


# --------------------------------------------------------------------------------------------------------------- width

SIZES = LayerSizes(8, 2, 64)
ARCHITECTURE = Architecture("llama", 32, 4, 100, True, (SIZES,) * 3)
COST = {"group": 32 * 4 * (2 * 4 + 2), "channel": 3 * 32, "heads": 2 * 2 * 32 * 4}


def scores_like(**changes: float) -> dict[tuple[int, str], torch.Tensor]:
    """Scores around 1 for three layers; `l1_mlp=0.1` multiplies those of a part."""
    generator = torch.Generator().manual_seed(0)
    found: dict[tuple[int, str], torch.Tensor] = {}
    for layer in range(3):
        for part, units in (("attention", 2), ("mlp", 64)):
            found[layer, part] = 1 + 0.3 * torch.rand(units, generator=generator)
            found[layer, part] *= changes.get(f"l{layer}_{part}", 1)
    return found


def removed(sizes: dict[int, LayerSizes]) -> int:
    after = tuple(sizes.get(layer, SIZES) for layer in range(3))
    return ARCHITECTURE.params - ARCHITECTURE.with_layers(after).params


@pytest.mark.parametrize("goal", [0, 50, 1000, 5000, 12_345, 20_000])
@pytest.mark.parametrize("round_to", [1, 8])
def test_the_goal_is_met_to_within_half_a_step_of_channels(goal: int, round_to: int) -> None:
    sizes = global_sizes(ARCHITECTURE, scores_like(), goal, heads="kv_groups", round_to=round_to)
    assert abs(removed(sizes) - goal) <= COST["channel"] * round_to / 2
    assert all(each.mlp % round_to == 0 and each.heads == 4 * each.kv_heads for each in sizes.values())


@pytest.mark.parametrize("heads", ["kv_groups", "query_heads"])
@pytest.mark.parametrize("standardised", [False, True])
def test_no_layer_is_ever_emptied(heads: str, standardised: bool) -> None:
    scores = scores_like()
    if heads == "query_heads":
        scores |= {(layer, "attention"): torch.rand(8) for layer in range(3)}
    sizes = global_sizes(ARCHITECTURE, scores, 10**9, heads=heads, round_to=16, standardised=standardised)
    least = LayerSizes(4, 1, 16) if heads == "kv_groups" else LayerSizes(2, 2, 16)
    assert list(sizes.values()) == [least] * 3


def test_a_layer_whose_units_differ_more_loses_its_worst_ones() -> None:
    """Normalised by the mean of the part: being ten times smaller altogether changes nothing."""
    plain = global_sizes(ARCHITECTURE, scores_like(), 6000, heads="kv_groups", round_to=1)
    scaled = global_sizes(ARCHITECTURE, scores_like(l1_mlp=0.1, l2_attention=50), 6000, heads="kv_groups", round_to=1)
    assert scaled == plain
    scores = scores_like()
    scores[1, "mlp"][:32] *= 0.01
    uneven = global_sizes(ARCHITECTURE, scores, 32 * COST["channel"], heads="kv_groups", round_to=1)
    assert uneven[1].mlp == 32
    assert uneven[0] == uneven[2] == SIZES


def test_standardised_scores_are_ranked_as_they_are() -> None:
    scores = scores_like(l1_mlp=0.1)
    sizes = global_sizes(ARCHITECTURE, scores, 60 * COST["channel"], heads="kv_groups", round_to=1, standardised=True)
    assert sizes == {0: SIZES, 1: LayerSizes(8, 2, 4), 2: SIZES}


def test_units_of_average_worth_go_in_equal_shares_however_large_they_are() -> None:
    """Channels and KV groups with the same spread: neither kind is emptied first for its size."""
    generator = torch.Generator().manual_seed(1)
    architecture = Architecture("llama", 32, 4, 100, True, (LayerSizes(64, 16, 256),) * 4)
    scores = {
        (layer, part): torch.rand(units, generator=generator)
        for layer in range(4)
        for part, units in (("attention", 16), ("mlp", 256))
    }
    goal = (architecture.params - architecture.embedding_params) // 2
    sizes = global_sizes(architecture, scores, goal, heads="kv_groups", round_to=1)
    assert 0.3 < sum(each.kv_heads for each in sizes.values()) / 64 < 0.7
    assert 0.3 < sum(each.mlp for each in sizes.values()) / 1024 < 0.7


def test_the_worst_query_head_of_every_group_goes_together() -> None:
    """Layer 1 has one poor head in each of its two groups, layer 0 two in the same one."""
    scores = {(layer, "attention"): torch.ones(8) for layer in range(3)}
    scores[0, "attention"][[0, 1]] = 0.1
    scores[1, "attention"][[2, 7]] = 0.1
    sizes = global_sizes(ARCHITECTURE, scores, COST["heads"], heads="query_heads", round_to=1)
    assert sizes == {0: SIZES, 1: LayerSizes(6, 2, 64), 2: SIZES}


def test_tiles_of_a_layer_go_from_the_worst_even_if_the_mean_of_a_later_tile_is_smaller() -> None:
    scores = {(0, "mlp"): torch.arange(1.0, 65.0)}
    sizes = global_sizes(ARCHITECTURE, scores, 3 * 8 * COST["channel"], heads="kv_groups", round_to=8)
    assert sizes[0].mlp == 40


def test_only_width_methods_are_standardised() -> None:
    assert {method.name for method in methods().values() if method.standardised} == {"flap", "obs"}
    assert {method.kind for method in methods().values() if method.standardised} == {"width"}
