"""ADMM: masks and weights found together, by alternating between least squares and the pattern of zeros."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from core.pruning.registry import Options, register

if TYPE_CHECKING:
    import torch

    from core.pruning.calibration import InputStats
    from core.pruning.masking import Budget


class ADMMOptions(Options):
    """Options of `admm`."""

    iterations: int = Field(
        30,
        ge=1,
        le=1000,
        description="Turns between least squares and the zeros; zeros grow over the first two thirds.",
    )
    rho: float = Field(
        1.0, gt=0, le=100, description="Pull between the two, in units of the inputs' mean square; small is slow."
    )
    damping: float = Field(
        0.01, gt=0, le=10, description="Added to the diagonal of the scaled H: keeps weights near the dense ones."
    )
    refinements: int = Field(
        12,
        ge=0,
        le=1000,
        description="Conjugate-gradient steps that fit the weights that stay, once it is known which.",
    )


@register(
    name="admm",
    title="ADMM",
    summary="Looks for the zeros and the weights that stay together, by least squares: the best mask measured here.",
    paper="Boža 2024, Fast and Effective Weight Update for Pruned Large Language Models",
    url="https://arxiv.org/abs/2401.02938",
    kind="mask",
    needs={"inputs", "gram"},
    options=ADMMOptions,
    compare="row",
    rewrites=True,
)
def admm(
    weights: "list[torch.Tensor]",
    inputs: "InputStats",
    budget: "Budget",
    options: ADMMOptions,
    tick: Callable[[], None],
) -> "list[torch.Tensor]":
    """V = Y + U, Z = mask(V, S), U ← V − Z, Y ← (W·D·A + ρ(Z − U))·(A + ρI)⁻¹ in turn; then min ‖(Z − W·D)A^½‖² over Z

    W: weights [(out_k, in)] of linear layers that read the same inputs; D: root mean square of each input, (in,).
    A: D⁻¹·(XᵀX/n)·D⁻¹ plus `damping` on the diagonal, (in, in); U: what the zeros cost so far, 0 at first; Y: W·D at
       first.
    S: |V|, higher stays; the smallest of each output row go, with n:m those of each m inputs. Their share grows to
       the full one as 1 − (1 − t)³ over the first two thirds of the iterations. Returned is Z·D⁻¹.
    Boža 2024, algorithm 1, https://arxiv.org/abs/2401.02938
    """
    import torch

    from core.pruning.linalg import exact_products

    A = inputs.gram / inputs.tokens
    D = A.diagonal().sqrt()
    D = torch.where(D > 0, D, torch.ones_like(D))  # inputs that are always 0
    A = A / (D[:, None] * D)
    A.diagonal().add_(options.damping)
    found = []
    with exact_products():
        pulled = A.clone()
        pulled.diagonal().add_(options.rho)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(pulled))
        del pulled
        for weight in weights:
            found.append(_solve(weight * D, A, inverse, budget, options, tick).div_(D))
    return found


def _solve(
    target: "torch.Tensor",
    A: "torch.Tensor",
    inverse: "torch.Tensor",
    budget: "Budget",
    options: ADMMOptions,
    tick: Callable[[], None],
) -> "torch.Tensor":
    """The sparse Z (out, in) nearest to `target` in the metric A."""
    import torch

    from core.pruning.masks import keep_mask

    def keep(values: "torch.Tensor", share: float) -> "torch.Tensor":
        return keep_mask(values.abs(), ratio=share * budget.ratio, pattern=budget.pattern, compare="row")

    wanted = target @ A
    fitted, owed = target, torch.zeros_like(target)
    ramp = max(2 * options.iterations // 3, 1)
    for turn in range(1, options.iterations + 1):
        share = 1 - (1 - min(turn / ramp, 1)) ** 3
        values = fitted + owed
        sparse = values * keep(values, round(share, 6))
        owed = values - sparse
        fitted = (wanted + options.rho * (sparse - owed)) @ inverse
        tick()
    stays = keep(fitted + owed, 1.0)
    return _refine(target, A, (fitted + owed) * stays, stays, options.refinements, tick)


def _refine(
    target: "torch.Tensor",
    A: "torch.Tensor",
    start: "torch.Tensor",
    stays: "torch.Tensor",
    steps: int,
    tick: Callable[[], None],
) -> "torch.Tensor":
    """Least squares over the weights that stay, by conjugate gradients, each row with its own step size."""
    found = start
    rest = ((target - found) @ A) * stays
    direction, size = rest, rest.square().sum(dim=1, keepdim=True)
    for _ in range(steps):
        image = (direction @ A) * stays
        step = size / (direction * image).sum(dim=1, keepdim=True).clamp_min(1e-30)
        found = found + step * direction
        rest = rest - step * image
        before, size = size, rest.square().sum(dim=1, keepdim=True)
        direction = rest + (size / before.clamp_min(1e-30)) * direction
        tick()
    return found
