"""Allocation by measured costs: what is measured, how the curves are read, and how the goal is shared out."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import Cancelled
from core.experiment import Pruning
from core.models.families import family
from core.models.sizes import Architecture, LayerSizes
from core.pruning import measured, width
from core.pruning.measured import FLOOR, interpolated, points, share_out
from core.pruning.prune import PruneOutcome, prune

SIZES = LayerSizes(8, 2, 64)
ARCHITECTURE = Architecture("llama", 32, 4, 100, True, (SIZES,) * 3)
CHANNEL, GROUP = 3 * 32, 32 * 4 * (2 * 4 + 2)  # parameters


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 96, (6, 20), generator=torch.Generator().manual_seed(0))


def cut(model: Any, windows: Tensor, **fields: Any) -> tuple[Any, PruneOutcome]:
    fields = {"method": "l2", "ratio": 0.3, "round_to": 1, "allocation": "measured", **fields}
    more = {"progress": fields.pop("progress")} if "progress" in fields else {}
    pruned = copy.deepcopy(model)
    architecture = Architecture.from_config(model.config.to_dict())
    return pruned, prune(
        pruned, Pruning(**fields), architecture=architecture, windows=windows, seed=0, device="cpu", **more
    )


# ----------------------------------------------------------------------------------------------------- what is measured


@torch.no_grad()
def divergence(dense: Any, other: Any, windows: Tensor) -> float:
    """KL(dense ‖ other) at every second position, from whole models' logits."""
    p = F.log_softmax(dense(windows).logits[:, 1::2].float(), -1)
    q = F.log_softmax(other(windows).logits[:, 1::2].float(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("refit", [False, True])
def test_a_cost_is_the_divergence_of_the_model_with_that_cut_alone(
    tiny_llama: Any, windows: Tensor, monkeypatch: pytest.MonkeyPatch, refit: bool
) -> None:
    """With a refit the sums come from the dense model, so the same cut run by itself differs by β's term only."""
    from core.pruning import reconstruction

    monkeypatch.setattr(reconstruction, "ALPHA", 0.0)
    monkeypatch.setattr(reconstruction, "BETA", 0.0)
    model = tiny_llama(num_hidden_layers=4, intermediate_size=48)
    for parameter in model.parameters():
        parameter.data.mul_(3)  # else the divergences of a freshly drawn model are nearly zero
    found: dict[Any, dict[int, float]] = {}
    shared = measured.share_out

    def spy(architecture: Any, costs: Any, goal: int, **rest: Any) -> Any:
        found.update(costs)
        return shared(architecture, costs, goal, **rest)

    monkeypatch.setattr(measured, "share_out", spy)
    cut(model, windows, reconstruct=refit)
    assert {layer for layer, _ in found} == set(range(4))
    for layer, part in ((0, "mlp"), (2, "attention"), (3, "mlp")):
        sizes = Architecture.from_config(model.config.to_dict()).layers[layer]
        assert list(found[layer, part]) == points(sizes, part, "kv_groups")
        left, cost = list(found[layer, part].items())[-1]
        units = sizes.mlp if part == "mlp" else sizes.kv_heads
        alone, done = cut(
            model, windows, allocation="uniform", layers=(layer, layer), parts=(part,), ratio=1 - left / units,
            reconstruct=refit,
        )  # fmt: skip
        assert done.params_after < done.params_before
        assert cost == pytest.approx(divergence(model, alone, windows), rel=2e-3)


def test_the_model_is_whole_again_after_measuring(
    tiny_llama: Any, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(num_hidden_layers=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(measured, "share_out", lambda *_, **__: {})
    pruned, _ = cut(model, windows)
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reconstruct": True},
        {"heads": "query_heads"},
        {"parts": ("mlp",), "round_to": 4},
        {"target": "model", "ratio": 0.1},
        {"layers": (1, 2)},
        {"method": "obs", "reconstruct": True},
    ],
)
def test_a_model_is_cut_to_its_goal(tiny_llama: Any, windows: Tensor, fields: dict[str, Any]) -> None:
    model = tiny_llama(num_hidden_layers=4, intermediate_size=48)
    pruned, done = cut(model, windows, **fields)
    architecture = Architecture.from_config(model.config.to_dict())
    from core.models.plans import plan

    goal = plan(
        architecture, Pruning(**{"method": "l2", "ratio": 0.3, "round_to": 1, "allocation": "measured", **fields})
    ).goal
    channel = 3 * architecture.hidden_size * fields.get("round_to", 1)
    assert done.params_before - done.params_after == pytest.approx(goal, abs=channel / 2)
    assert sum(p.numel() for p in pruned.parameters()) == done.params_after
    assert torch.isfinite(pruned(windows).logits).all()


def test_a_layer_that_does_nothing_loses_most(tiny_llama: Any, windows: Tensor) -> None:
    model = tiny_llama(num_hidden_layers=4, intermediate_size=48)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    family(model.config.model_type).matrices(model.model.layers[2])["down"].weight.zero_()
    pruned, _ = cut(model, windows, parts=("mlp",), ratio=0.25)
    widths = [layer.mlp.down_proj.weight.shape[1] for layer in pruned.model.layers]
    assert widths[2] == math.ceil(48 * FLOOR)
    assert min(widths[:2] + widths[3:]) > widths[2]


def test_progress_rises_to_the_end_and_can_stop_it(tiny_llama: Any, windows: Tensor) -> None:
    said: list[float] = []

    def progress(done: float, total: float, unit: str) -> None:
        if unit == "windows":
            said.append(done / total)

    model = tiny_llama(num_hidden_layers=3)
    architecture = Architecture.from_config(model.config.to_dict())
    pruning = Pruning(method="l2", ratio=0.3, round_to=1, allocation="measured", reconstruct=True)
    prune(
        copy.deepcopy(model), pruning, architecture=architecture, windows=windows, seed=0, device="cpu",
        calibrate_progress=progress,
    )  # fmt: skip
    assert said == sorted(said)
    assert said[-1] == pytest.approx(1)
    assert len(set(said)) > 10

    def stop(done: float, total: float, unit: str) -> None:
        if unit == "windows" and done > total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        prune(
            copy.deepcopy(model), pruning, architecture=architecture, windows=windows, seed=0, device="cpu",
            calibrate_progress=stop,
        )  # fmt: skip


def test_the_span_of_progress_belongs_to_scoring_first() -> None:
    assert 0 < width._SCORING < 1


# ----------------------------------------------------------------------------------------------------------- the curves


def test_curves_go_through_what_was_measured_and_never_fall() -> None:
    costs = {0.25: 0.01, 0.5: 0.08, 0.75: 0.05, 0.9: 1.0}
    shares = torch.linspace(0, 0.95, 96, dtype=torch.float64)
    found = interpolated(shares, costs)
    assert float(found[0]) == 0
    assert bool((found.diff() >= -1e-15).all())
    assert float(interpolated(torch.tensor([0.25], dtype=torch.float64), costs)) == pytest.approx(0.01)
    assert float(interpolated(torch.tensor([0.75], dtype=torch.float64), costs)) == pytest.approx(0.08)
    assert float(interpolated(torch.tensor([0.9], dtype=torch.float64), costs)) == pytest.approx(1.0)


def test_powers_of_the_share_are_met_between_points_below_and_above() -> None:
    shares = torch.tensor([0.05, 0.1, 0.3, 0.4, 0.77], dtype=torch.float64)
    found = interpolated(shares, {share: 5 * share**2.3 for share in (0.1, 0.35, 0.6)})
    assert found.tolist() == pytest.approx((5 * shares**2.3).tolist())


def test_small_cuts_are_never_dearer_a_parameter_than_larger_ones() -> None:
    found = interpolated(torch.tensor([0.05, 0.2], dtype=torch.float64), {0.2: 0.01, 0.4: 0.011})
    assert found.tolist() == pytest.approx([0.0025, 0.01])


def test_a_part_with_one_point_is_a_straight_line() -> None:
    found = interpolated(torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64), {0.5: 0.1})
    assert found.tolist() == pytest.approx([0, 0.05, 0.1])


# ---------------------------------------------------------------------------------------------------------- sharing out


def costs_like(scales: dict[int, float], part: str = "mlp") -> dict[tuple[int, str], dict[int, float]]:
    """Quadratic costs at the measured points."""
    total = 64 if part == "mlp" else 2
    return {
        (layer, part): {left: scale * (1 - left / total) ** 2 for left in points(SIZES, part, "kv_groups")}
        for layer, scale in scales.items()
    }


def removed(sizes: dict[int, LayerSizes]) -> int:
    after = tuple(sizes.get(layer, SIZES) for layer in range(3))
    return ARCHITECTURE.params - ARCHITECTURE.with_layers(after).params


@pytest.mark.parametrize("goal", [0, 40, 1000, 5000, 9000, 13_000, 17_000])
@pytest.mark.parametrize("round_to", [1, 8])
def test_the_goal_is_met_to_within_half_a_step(goal: int, round_to: int) -> None:
    sizes = share_out(
        ARCHITECTURE, costs_like({0: 1.0, 1: 3.0, 2: 0.2}) | costs_like({0: 1.0, 1: 1.0}, "attention"), goal,
        heads="kv_groups", round_to=round_to,
    )  # fmt: skip
    assert removed(sizes) == pytest.approx(goal, abs=CHANNEL * round_to / 2)
    for each in sizes.values():
        assert each.mlp >= 64 * FLOOR or goal > 15_000


def test_quadratic_costs_are_shared_in_inverse_proportion() -> None:
    """The sum of a·x² over a fixed sum of x is least where a·x is the same everywhere."""
    sizes = share_out(ARCHITECTURE, costs_like({0: 1.0, 1: 2.0, 2: 4.0}), 56 * CHANNEL, heads="kv_groups", round_to=1)
    assert [64 - sizes[layer].mlp for layer in range(3)] == pytest.approx([32, 16, 8], abs=2)


def test_no_other_way_to_share_is_cheaper() -> None:
    costs = costs_like({0: 1.0, 1: 2.5, 2: 0.7})
    goal = 40 * CHANNEL
    sizes = share_out(ARCHITECTURE, costs, goal, heads="kv_groups", round_to=8)

    def price(channels: tuple[int, ...]) -> float:
        total = 0.0
        for layer, each in enumerate(channels):
            known = {1 - left / 64: cost for left, cost in costs[layer, "mlp"].items()}
            total += float(interpolated(torch.tensor([each / 64], dtype=torch.float64), known))
        return total

    best = min(price(each) for each in itertools.product(range(0, 57, 8), repeat=3) if sum(each) == 40)
    mine = tuple(64 - sizes[layer].mlp for layer in range(3))
    assert sum(mine) == 40
    assert price(mine) == pytest.approx(best, rel=1e-6)


def test_where_the_floor_leaves_too_little_it_gives_way() -> None:
    most = 3 * 63 * CHANNEL
    sizes = share_out(ARCHITECTURE, costs_like({0: 1, 1: 1, 2: 1}), most, heads="kv_groups", round_to=1)
    assert removed(sizes) == most
    assert all(each.mlp == 1 for each in sizes.values())


def test_attention_goes_where_it_costs_less_a_parameter() -> None:
    costs = costs_like({0: 1.0, 1: 1.0}) | {(0, "attention"): {1: 1e-4}, (1, "attention"): {1: 50.0}}
    sizes = share_out(ARCHITECTURE, costs, 30 * CHANNEL, heads="kv_groups", round_to=1)
    assert sizes[0].kv_heads == 1
    assert sizes[1].kv_heads == 2
