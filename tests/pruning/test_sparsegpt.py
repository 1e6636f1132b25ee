"""SparseGPT against its formula, column by column in float64, with no code in common."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import Cancelled, InputError, NumericalError
from core.pruning.calibration import InputStats
from core.pruning.linalg import damped_cholesky, inverse_cholesky, invert_lower
from core.pruning.masking import Budget
from core.pruning.methods.sparsegpt import SparseGPTOptions, sparsegpt


def half_up(value: float) -> int:
    return int(value + 0.5 + 1e-9)


def naive(weight: Tensor, x: Tensor, ratio: float, pattern: str, damping: float = 0.01, block: int = 128) -> Tensor:
    """One matrix alone. Inverts H, factorises the inverse, and updates all later columns at once after each column."""
    w, x = weight.double().clone(), x.double()
    rows, columns = w.shape
    h = 2 / len(x) * sum(torch.outer(row, row) for row in x)
    for j in range(columns):
        if h[j, j] == 0:
            h[j, j] = 1
            w[:, j] = 0
    h += damping * sum(h[j, j] for j in range(columns)) / columns * torch.eye(columns, dtype=torch.float64)
    r = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    gone = torch.zeros(rows, columns, dtype=torch.bool)
    for j in range(columns):
        if pattern == "unstructured" and j % block == 0:
            stop = min(j + block, columns)
            at_first = [(float(w[i, c] ** 2 / r[c, c] ** 2), i, c) for i in range(rows) for c in range(j, stop)]
            count = half_up(ratio * rows * stop) - half_up(ratio * rows * j)
            for _, i, c in sorted(at_first)[:count]:
                gone[i, c] = True
        elif pattern != "unstructured":
            n, m = map(int, pattern.split(":"))
            for i in range(rows) if j % m == 0 else ():
                now = [(float(w[i, c] ** 2 / r[c, c] ** 2), c) for c in range(j, j + m)]
                for _, c in sorted(now)[: m - n]:
                    gone[i, c] = True
        for i in range(rows):
            if gone[i, j]:
                error = w[i, j] / r[j, j]
                w[i, j] = 0
                w[i, j + 1 :] -= error * r[j, j + 1 :]
    return w


def inputs_of(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Correlated features of different sizes: on independent ones there is nothing to make up."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    sizes = 2 * torch.rand(width, generator=generator)
    return torch.randn(tokens, width, generator=generator) @ (mixing + torch.eye(width)) * sizes


def seen(x: Tensor) -> InputStats:
    stats = InputStats.empty(x.shape[1], "cpu", ["gram"])
    stats.add(x)
    return stats


def pruned(weights: list[Tensor], x: Tensor, ratio: float, pattern: str, **options: Any) -> list[Tensor]:
    warn: Callable[[str], None] = pytest.fail
    return sparsegpt(weights, seen(x), Budget(ratio, pattern), SparseGPTOptions(**options), lambda: None, warn)


def matrix(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
@pytest.mark.parametrize(
    ("columns", "block"),
    [(24, 128), (24, 8), (48, 16), (136, 128), (80, 40)],  # one block, several, one that is cut short, odd steps
)
def test_it_is_the_column_by_column_formula(pattern: str, columns: int, block: int) -> None:
    x, weight = inputs_of(400, columns), matrix(6, columns)
    (found,) = pruned([weight], x, 0.5, pattern, block=block)
    expected = naive(weight, x, 0.5, pattern, block=block)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_a_smaller_block_gives_another_mask() -> None:
    """So the test above can fail: within a block nobody looks at the updated weights."""
    x, weight = inputs_of(400, 48), matrix(6, 48)
    (coarse,), (fine,) = pruned([weight], x, 0.5, "unstructured"), pruned([weight], x, 0.5, "unstructured", block=8)
    assert not torch.equal(coarse == 0, fine == 0)


def test_groups_are_chosen_on_weights_that_already_make_up_for_earlier_ones() -> None:
    x, weight = inputs_of(400, 48), matrix(6, 48)
    (found,) = pruned([weight], x, 0.5, "2:4")
    first = naive(weight, x, 0.5, "2:4")
    at_once = weight**2 / inverse_cholesky(seen(x).gram * 2 / 400, 0.01).diagonal() ** 2
    order = at_once.view(-1, 4).argsort(dim=1)
    stale = torch.zeros(72, 4, dtype=torch.bool).scatter_(1, order[:, :2], True).view(6, 48)
    assert torch.equal(found == 0, first == 0)
    assert not torch.equal(found == 0, stale)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_matrices_that_share_their_inputs_come_out_as_each_would_alone(pattern: str) -> None:
    x = inputs_of(300, 40)
    weights = [matrix(12, 40, 1), matrix(4, 40, 2) / 50, matrix(4, 40, 3) * 50]  # one ranking over all would differ
    together = pruned(weights, x, 0.5, pattern, block=16)
    for found, weight in zip(together, weights, strict=True):
        (alone,) = pruned([weight], x, 0.5, pattern, block=16)
        assert torch.equal(found == 0, alone == 0)
        torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("ratio", [0.01, 0.37, 0.5, 0.93])
@pytest.mark.parametrize("shape", [(7, 40), (3, 136), (5, 33)])
def test_the_whole_matrix_loses_exactly_its_share_however_the_blocks_round(
    shape: tuple[int, int], ratio: float
) -> None:
    (found,) = pruned([matrix(*shape)], inputs_of(300, shape[1]), ratio, "unstructured", block=16)
    assert int((found == 0).sum()) == half_up(ratio * shape[0] * shape[1])


def test_the_output_changes_less_than_if_the_same_weights_were_only_set_to_zero() -> None:
    x, weight = inputs_of(400, 20) @ matrix(20, 64, 2), matrix(16, 64)
    (found,) = pruned([weight], x, 0.5, "unstructured")
    only_zeroed = weight * (found != 0)
    assert (x @ (found - weight).T).norm() < 0.5 * (x @ (only_zeroed - weight).T).norm()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_inputs_that_are_always_zero_lose_their_weights_first_and_disturb_nothing(pattern: str) -> None:
    x, weight = inputs_of(400, 40), matrix(6, 40)
    dead = [3, 17, 18]
    x[:, dead] = 0
    (found,) = pruned([weight], x, 0.5, pattern, block=16)
    expected = naive(weight, x, 0.5, pattern, block=16)
    assert (found[:, dead] == 0).all()
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_more_dead_inputs_than_weights_to_remove_still_lose_exactly_the_share() -> None:
    x, weight = inputs_of(400, 16), matrix(6, 16)
    x[:, :10] = 0
    for pattern, ratio in (("unstructured", 0.25), ("2:4", 0.5)):
        (found,) = pruned([weight], x, ratio, pattern)
        assert int((found == 0).sum()) == ratio * 96
        if pattern == "unstructured":
            assert torch.equal(found[:, 10:], weight[:, 10:])


def test_a_pattern_that_does_not_divide_the_inputs_is_refused() -> None:
    with pytest.raises(InputError, match=r"2:4 .* has 10 inputs"):
        pruned([matrix(3, 10)], inputs_of(100, 10), 0.5, "2:4")


def test_what_comes_in_is_not_written_to() -> None:
    x, weight = inputs_of(100, 24), matrix(4, 24)
    stats, before = seen(x), weight.clone()
    gram = stats.gram.clone()
    sparsegpt([weight], stats, Budget(0.5, "unstructured"), SparseGPTOptions(), lambda: None, pytest.fail)
    assert torch.equal(weight, before)
    assert torch.equal(stats.gram, gram)


def test_it_can_be_cancelled_between_blocks() -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        sparsegpt(
            [matrix(3, 64)],
            seen(inputs_of(100, 64)),
            Budget(0.5, "unstructured"),
            SparseGPTOptions(block=16),
            tick,
            pytest.fail,
        )
    assert ticks == 2


# ------------------------------------------------------------------------------------------------------ linear algebra


@pytest.mark.parametrize("n", [1, 5, 128, 129, 300])
def test_a_triangle_is_inverted_by_halves(n: int) -> None:
    triangle = (torch.randn(n, n, dtype=torch.float64) / n).tril() + torch.eye(n, dtype=torch.float64)
    inverse = invert_lower(triangle)
    torch.testing.assert_close(inverse @ triangle, torch.eye(n, dtype=torch.float64))
    assert torch.equal(inverse, inverse.tril())


def test_the_factor_is_the_upper_one_of_the_inverse() -> None:
    x = inputs_of(200, 20).double()
    h = x.T @ x
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(20, dtype=torch.float64)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(inverse_cholesky(h, 0.01), expected)


def test_a_factorisation_that_fails_is_tried_with_more_damping_and_says_so() -> None:
    h = torch.ones(4, 4) - 0.05 * torch.eye(4)  # smallest eigenvalue −0.05, mean diagonal 0.95
    said: list[str] = []
    factor = damped_cholesky(h, 0.01, said.append)
    assert len(said) == 1
    assert "damping was raised to 0.1" in said[0]
    torch.testing.assert_close(factor @ factor.T, h + 0.1 * 0.95 * torch.eye(4))


@pytest.mark.parametrize("h", [-torch.eye(3), torch.full((3, 3), float("nan"))])
def test_after_three_tries_it_is_an_error(h: Tensor) -> None:
    said: list[str] = []
    with pytest.raises(NumericalError, match="damping of 1"):
        damped_cholesky(h * 100, 0.01, said.append)
    assert len(said) == 2
