"""Which weights a mask keeps: exact counts whatever the scores, ties broken by position.

A threshold alone prunes too many or too few where scores are equal. Here the k-th smallest score only divides the
weights into surely pruned, surely kept, and tied; as many of the tied ones go, first in position order, as are missing.
"""

import numpy as np
import torch
from torch import Tensor

from core.errors import InputError
from core.models.plans import half_up_count, parse_pattern


def prune_smallest(scores: Tensor, count: int) -> Tensor:
    """Keep-mask (rows, n) that drops exactly `count` of the smallest scores in each row of `scores` (rows, n).

    Equal scores go in position order. Returns booleans, True = kept.
    """
    n = scores.shape[1]
    if not 0 <= count <= n:
        raise ValueError(f"cannot prune {count} of {n}")
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = _kth_smallest(scores, count)
    keep = scores > threshold
    surplus = keep.logical_not().sum(dim=1) - count  # how many tied weights of each row must come back
    tied_rows = surplus.nonzero().flatten()
    if len(tied_rows):
        tied = scores[tied_rows] == threshold[tied_rows]
        from_the_end = tied.flip(1).cumsum(dim=1).flip(1)  # 1 for the last tied weight of a row, 2 for the one before
        keep[tied_rows] |= tied & (from_the_end <= surplus[tied_rows, None])
    return keep


def _kth_smallest(scores: Tensor, k: int) -> Tensor:
    """The k-th smallest score of each row of (rows, n): (rows, 1)."""
    if scores.device.type == "cpu":  # a partial sort takes a third of the time of torch's selection
        return torch.from_numpy(np.partition(scores.numpy(), k - 1, axis=1)[:, k - 1 : k].copy())
    if scores.shape[0] == 1:  # one long row: selecting runs on a single block there, sorting on all
        return scores.sort(dim=1).values[:, k - 1 : k]
    return torch.kthvalue(scores, k, dim=1, keepdim=True).values


def row_mask(scores: Tensor, ratio: float) -> Tensor:
    """Keep-mask (out, in) that drops round-half-up(ratio · in) of the smallest scores in each output row."""
    return prune_smallest(scores, half_up_count(ratio, scores.shape[1]))


def matrix_mask(scores: Tensor, ratio: float) -> Tensor:
    """Keep-mask (out, in) that drops round-half-up(ratio · out · in) of the smallest scores in the whole matrix."""
    flat = prune_smallest(scores.reshape(1, -1), half_up_count(ratio, scores.numel()))
    return flat.view(scores.shape)


def n_of_m_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep-mask (out, in) that keeps the n best of every m consecutive inputs. InputError unless m divides `in`."""
    rows, columns = scores.shape
    check_divides((n, m), columns)
    groups = scores.reshape(rows * columns // m, m)
    smaller = torch.zeros(groups.shape, dtype=torch.uint8, device=scores.device)  # how many of its group go before it
    for i in range(m):  # comparing all pairs is faster than sorting so many short rows
        for j in range(i + 1, m):
            first = groups[:, i] <= groups[:, j]  # the earlier of equals goes first
            smaller[:, j] += first
            smaller[:, i] += first.logical_not_()
    return (smaller >= m - n).view(rows, columns)


def check_divides(n_of_m: tuple[int, int], columns: int) -> None:
    """InputError unless a pattern's m divides a matrix's inputs."""
    n, m = n_of_m
    if columns % m:
        raise InputError(
            f"the pattern {n}:{m} needs input widths that {m} divides, but a matrix has {columns} inputs.",
            "Choose unstructured, or a model whose widths fit.",
        )


def keep_mask(scores: Tensor, *, ratio: float, pattern: str, compare: str) -> Tensor:
    """Keep-mask (out, in) for a score per weight, higher stays.

    pattern: `unstructured`, `2:4` or `4:8`; compare: `row` or `matrix`, the group that an unstructured mask ranks.
    """
    n_of_m = parse_pattern(pattern)
    if n_of_m is not None:
        return n_of_m_mask(scores, *n_of_m)
    return row_mask(scores, ratio) if compare == "row" else matrix_mask(scores, ratio)
