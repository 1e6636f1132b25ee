"""The four orders, worked by hand: two channels, hidden size 2."""

import pytest
import torch
from torch import nn

from core.models.families import Matrix
from core.models.sizes import LayerSizes
from core.pruning.methods.taylor import TaylorOptions, taylor
from core.pruning.registry import get
from core.pruning.units import Structure, WeightGradients, structure

# One channel has w·g = ±1 that cancel in its gate row; the other has 0.5 everywhere.
GATE_W, GATE_G = [[1.0, -1.0], [1.0, 1.0]], [[1.0, 1.0], [0.5, 0.5]]
UP_W, UP_G = [[2.0, 0.0], [1.0, 1.0]], [[0.5, 9.0], [0.5, 0.5]]
DOWN_W, DOWN_G = [[1.0, 1.0], [1.0, -1.0]], [[1.0, 0.5], [1.0, 0.5]]


def made(weights: list[list[float]]) -> Matrix:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data.copy_(torch.tensor(weights))
    return Matrix(layer)


@pytest.fixture
def channels() -> Structure:
    linears = {"gate": made(GATE_W), "up": made(UP_W), "down": made(DOWN_W)}
    gradients = {
        role: WeightGradients(torch.tensor(g), torch.full((2, 2), 2.0))
        for role, g in (("gate", GATE_G), ("up", UP_G), ("down", DOWN_G))
    }
    return structure(0, "mlp", "kv_groups", LayerSizes(1, 1, 2), linears, gradients)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # gate row + up row + down column, |w·g| each
        ("first", [(1 + 1) + (1 + 0) + (1 + 1), (0.5 + 0.5) + (0.5 + 0.5) + (0.5 + 0.5)]),
        # |1 − 1| + |1 + 0| + |1 + 1|  and  |0.5 + 0.5| + |0.5 + 0.5| + |0.5 − 0.5|
        ("vector", [0 + 1 + 2, 1 + 1 + 0]),
        # Σ w² · 2
        ("second", [2 * (2 + 4 + 2), 2 * (2 + 2 + 2)]),
        # w·g − w²: gate 1 − 1, −1 − 1; up 1 − 4, 0; down 1 − 1, 1 − 1  and  0.5 − 1 (×5), −0.5 − 1
        ("mixed", [(0 + 2) + (3 + 0) + (0 + 0), 5 * 0.5 + 1.5]),
    ],
)
def test_each_order_gives_the_hand_worked_scores(channels: Structure, order: str, expected: list[float]) -> None:
    assert taylor(channels, TaylorOptions(order=order)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum", [5.0, 3.0]),  # gate, up, down: 2, 1, 2 and 1, 1, 1
        ("product", [4 ** (1 / 3), 1.0]),
        ("max", [2.0, 1.0]),
    ],
)
def test_matrices_are_reduced_by_hand(channels: Structure, reduction: str, expected: list[float]) -> None:
    assert taylor(channels, TaylorOptions(reduction=reduction)).tolist() == pytest.approx(expected)


def test_a_matrix_without_gradients_does_not_break_the_product(channels: Structure) -> None:
    channels.members[0].gradients.gradient.zero_()
    assert taylor(channels, TaylorOptions(reduction="product")).tolist() == [0.0, 0.0]


def test_only_the_orders_with_second_derivatives_ask_for_the_fisher_diagonal() -> None:
    method = get("taylor")
    assert method.needs_for({}) == {"gradients"}
    assert method.needs_for({"order": "vector"}) == {"gradients"}
    assert method.needs_for({"order": "second"}) == {"gradients", "fisher"}
    assert method.needs_for({"order": "mixed"}) == {"gradients", "fisher"}
