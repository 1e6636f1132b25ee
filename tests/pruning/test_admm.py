"""ADMM against least squares worked out row by row, and against the methods it must beat."""

from typing import Any

import pytest
import torch

from core.pruning.calibration import InputStats
from core.pruning.masking import Budget
from core.pruning.methods.admm import ADMMOptions, admm
from core.pruning.methods.sparsegpt import SparseGPTOptions, sparsegpt


def gathered(x: torch.Tensor) -> InputStats:
    stats = InputStats.empty(x.shape[1], "cpu", ("gram",))
    stats.add(x)
    return stats


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (12, 32) and strongly correlated inputs (512, 32)."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(8, 32, generator=generator)
    x = torch.randn(512, 8, generator=generator) @ mixing + 0.3 * torch.randn(512, 32, generator=generator)
    return torch.randn(12, 32, generator=generator), x


def error(weight: torch.Tensor, pruned: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (weight - pruned).T).square().sum())


def pruned(weight: torch.Tensor, x: torch.Tensor, budget: Budget, **options: Any) -> torch.Tensor:
    return admm([weight], gathered(x), budget, ADMMOptions(**options), lambda: None)[0]


def test_the_weights_that_stay_are_the_least_squares_fit(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, x = case
    found = pruned(weight, x, Budget(0.5, "unstructured"), damping=1e-6, refinements=200)
    for row, dense in zip(found, weight, strict=True):
        stays = row != 0
        best = torch.linalg.lstsq(x[:, stays].double(), (x @ dense).double()).solution
        torch.testing.assert_close(row[stays].double(), best, rtol=2e-2, atol=2e-2)


def test_rows_lose_exactly_their_share(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, x = case
    found = pruned(weight, x, Budget(0.6, "unstructured"))
    assert ((found == 0).sum(dim=1) == 19).all()  # 0.6 · 32 = 19.2


def test_it_loses_less_than_sparsegpt_and_less_than_a_mask_alone(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, x = case
    for budget in (Budget(0.5, "unstructured"), Budget(0.5, "2:4")):
        ours = error(weight, pruned(weight, x, budget), x)
        theirs = sparsegpt([weight], gathered(x), budget, SparseGPTOptions(block=8), lambda: None, lambda _: None)[0]
        assert ours < 0.95 * error(weight, theirs, x)


def test_matrices_that_share_inputs_are_solved_as_if_alone(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, x = case
    both = admm([weight[:5], weight[5:]], gathered(x), Budget(0.5, "unstructured"), ADMMOptions(), lambda: None)
    torch.testing.assert_close(torch.cat(both), pruned(weight, x, Budget(0.5, "unstructured")))


def test_inputs_that_are_always_zero_do_no_harm(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, x = case
    x = x.clone()
    x[:, 5] = 0
    found = pruned(weight, x, Budget(0.5, "unstructured"))
    assert torch.isfinite(found).all()
    assert ((found == 0).sum(dim=1) == 16).all()
