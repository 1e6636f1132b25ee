"""SparseGPT: pruning that lets the weights that stay make up for those that go."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from core.pruning.registry import Options, register

if TYPE_CHECKING:
    import torch

    from core.pruning.calibration import InputStats
    from core.pruning.masking import Budget

_STEP = 32  # columns whose errors reach the rest of the block at once


class SparseGPTOptions(Options):
    """Options of `sparsegpt`."""

    damping: float = Field(
        0.01, gt=0, le=10, description="Added to the diagonal of H, as a share of its mean: steadies the inverse."
    )
    block: int = Field(
        128,
        ge=8,
        le=4096,
        multiple_of=8,
        description="Columns that are ranked together and whose errors wait for each other, a multiple of 8.",
    )


@register(
    name="sparsegpt",
    title="SparseGPT",
    summary="Zeroes the weights whose loss the others can make up for best, and lets them: the rest is adjusted.",
    paper="Frantar and Alistarh 2023, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    url="https://arxiv.org/abs/2301.00774",
    kind="mask",
    needs={"inputs", "gram"},
    options=SparseGPTOptions,
    compare="matrix",
    rewrites=True,
)
def sparsegpt(
    weights: "list[torch.Tensor]",
    inputs: "InputStats",
    budget: "Budget",
    options: SparseGPTOptions,
    tick: Callable[[], None],
    warn: Callable[[str], None],
) -> "list[torch.Tensor]":
    """S_ij = W_ij² / R_jj², then W_i,j: ← W_i,j: − (W_ij / R_jj)·R_j,j: for each W_ij that goes, column after column

    W: weights [(out_k, in)] of linear layers that read the same inputs; each is ranked by itself.
    H: 2/n · XᵀX over the n calibration tokens, 1 on the diagonal of inputs that are always 0, plus `damping` times the
       mean of the diagonal.
    R: upper triangle with RᵀR = H⁻¹: R_j,j: is what removing weight j asks of it and the later ones.
    S: score, higher stays; compared in blocks of `block` columns, with n:m among the m columns, as the weights are
       when these are reached. Inputs that are always 0 score 0. Returned are the new weights, zeros and all.
    Frantar and Alistarh 2023, algorithm 1, https://arxiv.org/abs/2301.00774
    """
    import torch

    from core.pruning.linalg import exact_products, inverse_cholesky
    from core.pruning.masks import check_divides

    H = inputs.gram * (2 / inputs.tokens)
    dead = H.diagonal() == 0
    H.diagonal().masked_fill_(dead, 1)
    columns = torch.cat([weight.T for weight in weights], dim=1)  # (in, rows of all): a column is one piece of memory
    sizes = [len(weight) for weight in weights]
    if budget.n_of_m is not None:
        check_divides(budget.n_of_m, len(columns))
    with exact_products():
        R = inverse_cholesky(H, options.damping, warn)
        del H
        for start in range(0, len(columns), options.block):
            here = slice(start, min(start + options.block, len(columns)))
            errors = _block(columns[here], R[here, here], dead[here], _Share(here, sizes, budget))
            columns[here.stop :].addmm_(R[here, here.stop :].T, errors, alpha=-1)
            tick()
    return [each.T.contiguous() for each in torch.split(columns, sizes, dim=1)]


@dataclass(frozen=True)
class _Share:
    """What the columns `here` of matrices of `sizes` rows must lose."""

    here: slice
    sizes: list[int]
    budget: "Budget"

    def of_each(self) -> list[int]:
        """Weights that go, by matrix: its share up to these columns less that before, so that the sum is exact."""
        until, before = self.here.stop, self.here.start
        zeros = self.budget.zeros
        return [zeros((rows, until), "matrix") - zeros((rows, before), "matrix") for rows in self.sizes]


def _block(columns: "torch.Tensor", R: "torch.Tensor", dead: "torch.Tensor", share: _Share) -> "torch.Tensor":
    """Prune columns of W, here (columns, rows), in place. Returns errors W_ij / R_jj, 0 where a weight stayed."""
    import torch

    diagonal = R.diagonal()[:, None]
    scale = dead.logical_not()[:, None] / diagonal  # dead inputs' weights score 0
    asks = R.T.contiguous()  # (later column, removed column)
    gone = torch.empty_like(columns, dtype=torch.bool)
    inverses = torch.empty_like(columns)  # 1 / R_jj where a weight goes, else 0
    errors = torch.empty_like(columns)
    n_of_m = share.budget.n_of_m
    choose = None if n_of_m is None else _Groups(*n_of_m, columns.device)
    if choose is None:
        _unstructured((columns * scale).square_(), share, gone)
        torch.div(gone, diagonal, out=inverses)
    rows = list(zip(columns.unbind(), errors.unbind(), inverses.unbind(), strict=True))
    for first in range(0, len(columns), _STEP):
        last = min(first + _STEP, len(columns))
        for j in range(first, last):
            if choose is not None and j % choose.m == 0:
                group = slice(j, j + choose.m)
                gone[group] = choose.gone((columns[group] * scale[group]).square_())
                torch.div(gone[group], diagonal[group], out=inverses[group])
            column, error, inverse = rows[j]
            torch.mul(column, inverse, out=error)
            columns[j + 1 : last].addcmul_(asks[j + 1 : last, j, None], error, value=-1)
        columns[last:].addmm_(asks[last:, first:last], errors[first:last], alpha=-1)
    columns.masked_fill_(gone, 0)
    return errors


def _unstructured(scores: "torch.Tensor", share: _Share, gone: "torch.Tensor") -> None:
    """Mark the smallest scores of each matrix in `gone`; scores, gone: (columns, rows)."""
    from core.pruning.masks import prune_smallest

    start = 0
    for rows, count in zip(share.sizes, share.of_each(), strict=True):
        own = scores[:, start : start + rows]
        keep = prune_smallest(own.reshape(1, -1), count)
        gone[:, start : start + rows] = keep.view(own.shape).logical_not_()
        start += rows


class _Groups:
    """All but the n best of m: each pair is compared, and a weight goes if enough others are better; no sorting."""

    def __init__(self, n: int, m: int, device: "torch.device") -> None:
        import torch

        self.m, self._goes = m, m - n
        self._first, self._second = torch.triu_indices(m, m, 1, device=device)
        pairs = torch.arange(len(self._first), device=device)
        self._after = torch.zeros(m, len(pairs), device=device)
        self._after[self._second, pairs], self._after[self._first, pairs] = 1, -1
        self._later = torch.arange(m - 1, -1, -1, device=device)[:, None]  # pairs in which a weight is the first

    def gone(self, scores: "torch.Tensor") -> "torch.Tensor":
        """Which go, (m, rows) from scores (m, rows); the earlier of equals first."""
        earlier_first = scores[self._first] <= scores[self._second]
        return self._after @ earlier_first.float() + self._later < self._goes
