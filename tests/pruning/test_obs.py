"""OBS against its formula, one unit at a time with inverses computed anew, and the curvature against autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.models.body import Resident
from core.models.families import Matrix, family
from core.pruning.calibration import InputStats
from core.pruning.curvature import Curvature, curvatures
from core.pruning.methods.obs import ObsOptions, obs
from core.pruning.units import Member, Structure


def inputs_of(tokens: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    return (
        torch.randn(tokens, width, generator=generator)
        @ (mixing + torch.eye(width))
        * (0.2 + torch.rand(width, generator=generator))
    )


def nothing() -> None:
    pass


def spd(n: int, seed: int) -> Tensor:
    rows = inputs_of(4 * n, n, seed)
    return rows.T @ rows / len(rows)


def matrix(weight: Tensor) -> Matrix:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    return Matrix(linear)


def units_of(part: str, units: int, weight: Tensor, **read: Any) -> Structure:
    size = weight.shape[1] // units
    rows = [Member(role, 0, matrix(torch.randn(units * size, 6))) for role in ("gate", "up")]
    unit: Any = "MLP channel" if part == "mlp" else "KV group"
    return Structure(3, part, unit, units, (*rows, Member("down", 1, matrix(weight))), **read)


def reference(weight: Tensor, h: Tensor, g: Tensor, units: int) -> tuple[list[int], list[float]]:
    """Remove the cheapest unit, refit by solving the normal equations of the damped H from the start, and again."""
    weight, h, g = weight.double(), h.double(), g.double()
    size = weight.shape[1] // units
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(len(h))
    shrunk = g + 1e-3 * g.diagonal().mean() * torch.eye(len(g))

    def loss(left: list[int]) -> float:
        """Least ½·tr(G·E·H·Eᵀ) over all weights on the columns of the units left, E the change."""
        columns = torch.tensor([u * size + i for u in left for i in range(size)])
        fitted = torch.zeros_like(weight)
        fitted[:, columns] = torch.linalg.solve(damped[columns][:, columns], (weight @ damped)[:, columns].T).T
        error = fitted - weight
        return 0.5 * float((shrunk * (error @ damped @ error.T)).sum())

    left, order, costs, so_far = list(range(units)), [], [], 0.0
    while len(left) > 1:
        cost, worst = min((loss([u for u in left if u != gone]) - so_far, gone) for gone in left)
        left.remove(worst)
        order.append(worst)
        costs.append(cost)
        so_far += cost
    return [*order, left[0]], costs


@pytest.mark.parametrize(("part", "units", "width"), [("mlp", 12, 12), ("attention", 4, 12), ("attention", 6, 12)])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_and_costs_are_those_of_removing_and_refitting_one_unit_at_a_time(
    part: str, units: int, width: int, seed: int
) -> None:
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(seed))
    h, g = spd(width, seed), spd(5, seed + 100)
    structure = units_of(part, units, weight, curved=Curvature(h, g))
    scores = obs(structure, ObsOptions(round=1), pytest.fail, nothing)
    order, costs = reference(weight, h, g, units)
    assert scores.argsort().tolist() == order
    parameters = 5 * width / units + 2 * 6 * width / units
    running = torch.tensor(costs).cummax(dim=0).values / parameters
    torch.testing.assert_close(scores.sort().values[:-1].float(), running.float(), rtol=1e-3, atol=1e-7)


def test_the_identity_metric_weighs_all_outputs_alike() -> None:
    x, weight = inputs_of(200, 12), torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    stats = InputStats.empty(12, "cpu", ("gram",))
    stats.add(x)
    scores = obs(units_of("mlp", 12, weight, read=stats), ObsOptions(metric="identity", round=1), pytest.fail, nothing)
    order, costs = reference(weight, x.T @ x / 200, torch.eye(5), 12)
    assert scores.argsort().tolist() == order
    whole = 0.5 * float((weight @ (x.T @ x / 200) @ weight.T).trace())
    assert float(scores.min()) == pytest.approx(costs[0] / 1.001 / whole / 17, rel=1e-3)


def test_of_two_equal_units_one_goes_first_and_the_other_has_become_dear() -> None:
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    x[:, 7] = x[:, 2]
    weight = 1 + torch.rand(5, 12, generator=torch.Generator().manual_seed(1))
    structure = units_of("mlp", 12, weight, curved=Curvature(x.T @ x / 400, torch.eye(5)))
    order = obs(structure, ObsOptions(round=1), pytest.fail, nothing).argsort().tolist()
    assert order[0] in (2, 7)
    assert (set(order[:6]) & {2, 7}) == {order[0]}


def test_rounds_of_many_units_choose_nearly_the_same_and_every_score_is_different() -> None:
    h, g, weight = spd(96, 0), spd(8, 1), torch.randn(8, 96, generator=torch.Generator().manual_seed(2))
    structure = units_of("mlp", 96, weight, curved=Curvature(h, g))
    one, many = (obs(structure, ObsOptions(round=size), pytest.fail, nothing) for size in (1, 8))
    first = [set(scores.argsort()[:48].tolist()) for scores in (one, many)]
    assert len(first[0] & first[1]) >= 38
    assert len(many.unique()) == 96


def test_each_round_can_be_cancelled() -> None:
    h, g, weight = spd(12, 0), spd(5, 1), torch.randn(5, 12)
    for size, rounds in ((1, 11), (4, 8)):  # of 12 units 3 go, and H⁻¹ is computed anew, then 2, then one at a time
        ticks: list[None] = []
        structure = units_of("mlp", 12, weight, curved=Curvature(h, g))
        obs(structure, ObsOptions(round=size), pytest.fail, lambda into=ticks: into.append(None))
        assert len(ticks) == rounds


@pytest.mark.parametrize("part", ["mlp", "attention"])
def test_weights_and_inputs_of_zero_go_first_and_are_no_trouble(part: str) -> None:
    h, g, weight = spd(12, 0), spd(5, 1), torch.randn(5, 12)
    units = 12 if part == "mlp" else 6
    size = 12 // units
    weight[:, 3 * size : 4 * size] = 0
    h[:, 4 * size : 5 * size] = h[4 * size : 5 * size] = 0
    scores = obs(units_of(part, units, weight, curved=Curvature(h, g)), ObsOptions(round=1), pytest.fail, nothing)
    assert torch.isfinite(scores).all()
    assert len(scores.unique()) == units
    assert set(scores.argsort()[:2].tolist()) & {3, 4}


# --------------------------------------------------------------------------------------------------------- curvature


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_curvature_is_that_of_the_summed_loss_on_drawn_tokens(
    tiny_model: Any, model_type: str, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(model_type)
    windows = torch.randint(0, 96, (6, 10), generator=torch.Generator().manual_seed(0))
    if chunked:
        monkeypatch.setattr("core.pruning.gradients._STORED", 1e-9)
        monkeypatch.setattr("core.pruning.gradients._SUMMED", 1e-9)
    found: dict[int, Any] = {}
    curvatures(Resident(model, "cpu"), {1: ("o", "down"), 2: ("down",)}, windows, found.__setitem__, batch_size=2)
    assert set(found) == {1, 2}
    assert set(found[2]) == {"down"}
    own = family(model_type)
    seen: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def watch(index: int, role: str) -> None:
        def see(_module: Any, arguments: Any, output: Tensor) -> None:
            output.retain_grad()
            seen[index, role] = (arguments[0].detach(), output)

        own.matrices(own.layers(model)[index])[role].linear.register_forward_hook(see)

    for key in ((1, "o"), (1, "down"), (2, "down")):
        watch(*key)
    logits = model(windows).logits[:, :-1]
    total = logits.softmax(dim=-1).cumsum(dim=-1)
    from core.pruning.scores import stream

    draws = torch.stack([torch.rand(9, generator=stream(0, 0, repr(w.tolist()))) for w in windows])
    labels = (total <= draws[..., None] * total[..., -1:]).sum(dim=-1)
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    for (index, role), (x, y) in seen.items():
        assert y.grad is not None
        rows, g = x[:, 1:].flatten(0, 1), y.grad[:, 1:].flatten(0, 1)
        torch.testing.assert_close(found[index][role].inputs, rows.T @ rows / 54, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[index][role].outputs, g.T @ g / 54, rtol=1e-3, atol=1e-6)


def test_labels_are_drawn_in_proportion_to_their_probability() -> None:
    from core.pruning.head import _drawn

    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log().expand(4000, 4)
    counts = _drawn(logits, torch.rand(4000, generator=torch.Generator().manual_seed(0))).bincount(minlength=4)
    torch.testing.assert_close(counts / 4000, torch.tensor([0.1, 0.2, 0.0, 0.7]), rtol=0, atol=0.03)
    assert counts[2] == 0
