"""Taylor importance: how much the loss would change without a unit, to first or second order."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from core.pruning.registry import Need, Options, register

if TYPE_CHECKING:
    import torch

    from core.pruning.units import Structure

Order = Literal["first", "second", "mixed", "vector"]


class TaylorOptions(Options):
    """Options of `taylor`."""

    order: Order = Field(
        "first",
        description="first: sum of |w·g|; vector: |sum of w·g| of each row or column; second: w² times the Fisher "
        "diagonal; mixed: first and second together.",
    )
    reduction: Literal["sum", "product", "max"] = Field(
        "sum",
        description="How the sums of a unit's matrices become one score. sum: added up; product: their geometric mean, "
        "so that no matrix's scale counts; max: the largest.",
    )


def _needs(options: TaylorOptions) -> frozenset[Need]:
    if options.order in ("second", "mixed"):
        return frozenset({"gradients", "fisher"})
    return frozenset({"gradients"})


@register(
    name="taylor",
    title="Taylor (LLM-Pruner)",
    summary="Removes the heads and MLP channels that the loss would miss least, as its gradients estimate.",
    paper="Ma et al. 2023, LLM-Pruner: On the Structural Pruning of Large Language Models",
    url="https://arxiv.org/abs/2305.11627",
    kind="width",
    needs=_needs,
    options=TaylorOptions,
)
def taylor(structure: "Structure", options: TaylorOptions) -> "torch.Tensor":
    """first: S_u = Σ |w·g|   vector: S_u = Σ_c |Σ w·g|   second: S_u = Σ w²·F   mixed: S_u = Σ |w·g − ½·w²·F|

    w: weights of unit u; Σ runs over all of them; for vector, inside over the fan of one channel c (a row of q, k, v,
       gate, up; a column of o, down), outside over the channels of the unit.
    g: ∂L/∂w, L the mean next-token loss over all calibration windows; summed over them before any |·|.
    Σ over the unit's matrices is the outermost sum; in its place, product takes their geometric mean, max the largest.
    F: Fisher diagonal, the mean over windows of the squared gradient of each window's own loss.
    S: score (units,), higher stays.
    Ma et al. 2023, equations 3 to 5, https://arxiv.org/abs/2305.11627
    """
    match options.order:
        case "first":
            found = structure.by_member(lambda m: (m.weight * m.gradient).abs())
        case "vector":
            found = structure.by_member(lambda m: m.weight * m.gradient, channel=lambda fan: fan.abs())
        case "second":
            found = structure.by_member(lambda m: m.weight.square() * m.fisher)
        case "mixed":
            found = structure.by_member(lambda m: (m.weight * m.gradient - m.weight.square() * m.fisher / 2).abs())
    match options.reduction:
        case "sum":
            return found.sum(dim=0)
        case "product":
            return found.log().mean(dim=0).exp()
        case "max":
            return found.amax(dim=0)
