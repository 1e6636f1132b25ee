"""Matrices of 16 rows are slower on two threads than on one, and much slower while anything else runs."""

from collections.abc import Iterator

import pytest
import torch

from core.pruning import calibration


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def passes_in_the_models_own_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact comparisons hold on every CPU only so: some would run float32 models in bfloat16."""
    monkeypatch.setattr(calibration, "_fast_bfloat16", lambda: False)
