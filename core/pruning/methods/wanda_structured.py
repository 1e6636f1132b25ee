"""Wanda's score, summed over the columns that a unit feeds."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch

    from core.pruning.units import Structure


@register(
    name="wanda_structured",
    title="Wanda, structured",
    summary="Removes the heads and MLP channels whose columns in o and down carry least, by weight and activation.",
    paper="An et al. 2024, Fluctuation-based Adaptive Structured Pruning for Large Language Models",
    url="https://arxiv.org/abs/2312.11983",
    kind="width",
    needs={"inputs"},
)
def wanda_structured(structure: "Structure") -> "torch.Tensor":
    """S_u = Σ_j Σ_i |W_ij| · ‖X_j‖₂ over the columns j of unit u

    W: weight (out, in) of the matrix that reads the unit: o for KV groups and query heads, down for MLP channels.
    X_j: input feature j of that matrix over all calibration tokens; ‖X_j‖₂ = √Σ_t x_tj².
    S: score (units,), higher stays.
    The baseline Wanda-sp of An et al. 2024, https://arxiv.org/abs/2312.11983
    """
    return structure.per_unit(structure.reader.weight.abs().sum(dim=0) * structure.inputs.norm)
