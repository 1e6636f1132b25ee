"""Grouped-query attention, worked by hand: 2 KV groups of 2 query heads, head_dim 2, hidden size 1."""

import pytest
import torch
from torch import nn

from core.models.families import Matrix
from core.models.sizes import LayerSizes
from core.pruning.calibration import InputStats
from core.pruning.units import Member, WeightGradients, structure

SIZES = LayerSizes(heads=4, kv_heads=2, mlp=3)


def linear(rows: list[list[float]], dtype: torch.dtype = torch.float32) -> Matrix:
    weight = torch.tensor(rows, dtype=dtype)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=dtype)
    made.weight.data.copy_(weight)
    return Matrix(made)


def column(*values: float) -> Matrix:
    return linear([[v] for v in values])


@pytest.fixture
def linears() -> dict[str, Matrix]:
    return {
        "q": column(1, 2, 3, 4, 5, 6, 7, 8),  # heads 0 and 1 belong to group 0, heads 2 and 3 to group 1
        "k": column(10, 20, 30, 40),
        "v": column(100, 200, 300, 400),
        "o": linear([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]]),
        "gate": column(1, -2, 3),
        "up": column(10, 20, -30),
        "down": linear([[0.1, 0.2, 0.3]]),
    }


def test_a_kv_group_sums_its_own_consecutive_query_heads_its_k_and_v_rows_and_its_o_columns(linears: dict) -> None:
    scores = structure(0, "attention", "kv_groups", SIZES, linears).sum(lambda m: m.weight)
    group_0 = (1 + 2 + 3 + 4) + (10 + 20) + (100 + 200) + (0.1 + 0.2 + 0.3 + 0.4)
    group_1 = (5 + 6 + 7 + 8) + (30 + 40) + (300 + 400) + (0.5 + 0.6 + 0.7 + 0.8)
    torch.testing.assert_close(scores, torch.tensor([group_0, group_1]))


def test_the_grouping_is_not_the_interleaved_one_of_llm_pruner(linears: dict) -> None:
    """View(rep, n_kv·hd) would give group 0 the query heads 0 and 2."""
    only_q = structure(0, "attention", "kv_groups", SIZES, linears).sum(
        lambda m: m.weight if m.role == "q" else torch.zeros_like(m.weight)
    )
    q = linears["q"].weight.detach().flatten()
    interleaved = q.view(2, 4).sum(0).view(2, 2).sum(1)
    assert only_q.tolist() == [10, 26]
    assert only_q.tolist() == q.view(2, 2, 2).sum(dim=(1, 2)).tolist()
    assert only_q.tolist() != interleaved.tolist()


def test_a_query_head_owns_rows_of_q_and_columns_of_o_only(linears: dict) -> None:
    units = structure(0, "attention", "query_heads", SIZES, linears)
    scores = units.sum(lambda m: m.weight)
    assert units.units == 4
    torch.testing.assert_close(scores, torch.tensor([3.3, 7.7, 12.1, 16.5]))  # 1 + 2 + 0.1 + 0.2, …


def test_a_channel_owns_its_gate_and_up_rows_and_its_down_column(linears: dict) -> None:
    scores = structure(0, "mlp", "kv_groups", SIZES, linears).sum(lambda m: m.weight.abs())
    torch.testing.assert_close(scores, torch.tensor([11.1, 22.2, 33.3]))


def test_the_channel_function_works_on_each_fan_before_channels_are_added_up() -> None:
    """One KV group of two channels whose fans cancel: the sum over the unit is 0, the sum of absolute fans is not."""
    sizes = LayerSizes(heads=1, kv_heads=1, mlp=1)
    zero = {"k": linear([[0.0], [0.0]]), "v": linear([[0.0], [0.0]]), "o": linear([[0.0, 0.0]])}
    units = structure(0, "attention", "kv_groups", sizes, {"q": linear([[5.0], [-5.0]]), **zero})
    assert units.sum(lambda m: m.weight).tolist() == [0]
    assert units.sum(lambda m: m.weight, channel=torch.abs).tolist() == [10]


def test_views_are_float32_whatever_the_weights_dtype_is() -> None:
    member = Member("q", 0, linear([[1.0]], torch.bfloat16))
    assert member.weight.dtype == torch.float32


def test_a_role_may_be_rows_of_a_fused_layer(linears: dict) -> None:
    fused = nn.Linear(1, 6, bias=False)
    fused.weight.data.copy_(torch.tensor([[1.0], [-2.0], [3.0], [10.0], [20.0], [-30.0]]))
    rows = {"gate": Matrix(fused, slice(0, 3)), "up": Matrix(fused, slice(3, 6))}
    scores = structure(0, "mlp", "kv_groups", SIZES, linears | rows).sum(lambda m: m.weight.abs())
    torch.testing.assert_close(scores, torch.tensor([11.1, 22.2, 33.3]))


def test_scores_of_columns_are_added_up_over_each_units_own_consecutive_ones(linears: dict) -> None:
    channels = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    for heads, expected in (("kv_groups", [10, 26]), ("query_heads", [3, 7, 11, 15])):
        units = structure(0, "attention", heads, SIZES, linears)
        assert units.reader.role == "o"
        assert units.per_unit(channels).tolist() == expected


def test_a_method_that_did_not_declare_its_needs_is_told_so() -> None:
    bare = Member("q", 0, linear([[1.0]]))
    with pytest.raises(ValueError, match="needs gradients"):
        _ = bare.gradient
    units = structure(0, "mlp", "kv_groups", LayerSizes(1, 1, 1), dict.fromkeys(("gate", "up", "down"), bare.matrix))
    with pytest.raises(ValueError, match="needs inputs"):
        _ = units.inputs
    with pytest.raises(ValueError, match="needs moments"):
        _ = InputStats.empty(1, "cpu").variance
    with pytest.raises(ValueError, match="needs fisher"):
        _ = Member("q", 0, bare.matrix, WeightGradients(torch.ones(1, 1))).fisher
