"""Exact counts are checked against naive loops over sorted lists."""

import pytest
import torch

from core.errors import InputError
from core.pruning.masks import keep_mask, matrix_mask, n_of_m_mask, prune_smallest, row_mask


def naive_prune(values: list[float], count: int) -> list[bool]:
    """Keep flags after dropping the `count` smallest, the earlier of equals first."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    return [i not in order[:count] for i in range(len(values))]


def scores_with_ties(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (rows, columns), generator=generator).float()


@pytest.mark.parametrize("count", [0, 1, 4, 7, 10])
@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_of_each_row_go_and_ties_go_in_position_order(count: int, seed: int) -> None:
    scores = scores_with_ties(6, 10, seed)
    expected = [naive_prune(row, count) for row in scores.tolist()]
    assert prune_smallest(scores, count).tolist() == expected


def test_row_mask_prunes_the_exact_count_even_when_all_scores_are_equal() -> None:
    keep = row_mask(torch.ones(5, 10), 0.5)
    assert keep.sum(dim=1).tolist() == [5] * 5


def test_matrix_mask_prunes_the_exact_count_even_when_all_scores_are_equal() -> None:
    assert int(matrix_mask(torch.zeros(7, 9), 0.3).sum()) == 63 - 19  # 0.3 · 63 = 18.9


def test_matrix_mask_agrees_with_sorting_the_whole_matrix() -> None:
    scores = scores_with_ties(8, 12, 3)
    assert matrix_mask(scores, 0.4).flatten().tolist() == naive_prune(scores.flatten().tolist(), 38)


def test_half_a_weight_is_rounded_up() -> None:
    assert int(row_mask(torch.rand(1, 5), 0.5).sum()) == 2  # 2.5 of 5 go: 3


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_n_of_m_keeps_the_best_n_of_every_m_consecutive_inputs_even_with_ties(n: int, m: int) -> None:
    scores = scores_with_ties(5, 24, 1)
    keep = n_of_m_mask(scores, n, m)
    for row, kept in zip(scores.tolist(), keep.tolist(), strict=True):
        for start in range(0, 24, m):
            assert kept[start : start + m] == naive_prune(row[start : start + m], m - n)


def test_n_of_m_refuses_a_width_that_m_does_not_divide() -> None:
    with pytest.raises(InputError, match=r"2:4 .* has 10 inputs"):
        n_of_m_mask(torch.rand(3, 10), 2, 4)


def test_a_hand_worked_two_by_two_case_tells_rows_from_the_matrix() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    by_row = keep_mask(scores, ratio=0.5, pattern="unstructured", compare="row")
    by_matrix = keep_mask(scores, ratio=0.5, pattern="unstructured", compare="matrix")
    assert by_row.tolist() == [[False, True], [False, True]]
    assert by_matrix.tolist() == [[False, False], [True, True]]


def test_infinities_of_either_sign_do_not_change_the_count() -> None:
    scores = torch.tensor([[float("inf"), float("-inf"), 0.0, 0.0]])
    assert prune_smallest(scores, 2).tolist() == [[True, False, False, True]]
