"""Factors of H = XᵀX for methods that ask what the other weights can make up for.

H is made positive definite by damping: λ times its mean diagonal is added to the diagonal. Where a factorisation fails
all the same, λ grows tenfold, and the caller's `warn` hears of it; after three tries it is an error. Everything is
computed in the dtype of H, on its device, and never in TF32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from core.errors import NumericalError

TRIES = 3
_LEAF = 128  # rows; larger triangles are inverted by halves, which are products of matrices

Warn = Callable[[str], None]


def silent(_message: str) -> None:
    """For callers that have nobody to tell."""


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of float32 matrices keep all their bits meanwhile, whatever the process has set for speed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def damped_cholesky(h: Tensor, damping: float, warn: Warn = silent) -> Tensor:
    """Lower L (n, n) with L·Lᵀ = H + λ·mean(diag H)·I, λ = damping or, where that fails, ten or a hundred times it.

    h: symmetric (n, n). NumericalError if the last try fails too, or if H is not finite.
    """
    mean = h.diagonal().mean()
    for attempt in range(TRIES):
        factor, failed = torch.linalg.cholesky_ex(_damped(h, damping * 10**attempt * mean))
        if not bool(failed) and bool(torch.isfinite(factor.diagonal()).all()):
            found: Tensor = factor
            return found
        if attempt < TRIES - 1:
            warn(f"its inputs are nearly dependent: damping was raised to {damping * 10 ** (attempt + 1):g}.")
    raise NumericalError(
        f"the inputs' Gram matrix could not be factorised, not even with a damping of {damping * 10 ** (TRIES - 1):g}.",
        "Calibrate with more windows, raise the damping, or load the model as float32.",
    )


def inverse_cholesky(h: Tensor, damping: float, warn: Warn = silent) -> Tensor:
    """Upper R (n, n) with RᵀR = (H + λ·mean(diag H)·I)⁻¹; see `damped_cholesky`.

    With rows and columns in reverse order, H = L·Lᵀ; then R is L⁻¹ reversed: one factorisation, H is never inverted.
    """
    return invert_lower(damped_cholesky(h.flip(0, 1), damping, warn)).flip(0, 1)


def invert_lower(triangle: Tensor) -> Tensor:
    """L⁻¹ of a lower triangular L (n, n)."""
    n = len(triangle)
    if n <= _LEAF:
        eye = torch.eye(n, dtype=triangle.dtype, device=triangle.device)
        leaf: Tensor = torch.linalg.solve_triangular(triangle, eye, upper=False)
        return leaf
    half = n // 2
    above, below = invert_lower(triangle[:half, :half]), invert_lower(triangle[half:, half:])
    inverse = torch.zeros_like(triangle)
    inverse[:half, :half], inverse[half:, half:] = above, below
    inverse[half:, :half] = -(below @ (triangle[half:, :half] @ above))
    return inverse


def _damped(h: Tensor, added: Tensor) -> Tensor:
    damped = h.clone()
    damped.diagonal().add_(added)
    return damped
