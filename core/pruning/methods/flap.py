"""FLAP: units whose output hardly varies can be replaced by its mean, or left out."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch

    from core.pruning.units import Structure


@register(
    name="flap",
    title="FLAP",
    summary="Removes the heads and MLP channels whose outputs vary least over the text, weighted by what reads them.",
    paper="An et al. 2024, Fluctuation-based Adaptive Structured Pruning for Large Language Models",
    url="https://arxiv.org/abs/2312.11983",
    kind="width",
    needs={"inputs", "moments"},
    standardised=True,
)
def flap(structure: "Structure") -> "torch.Tensor":
    """S_u = mean over the columns j of unit u of (s_j − mean s) / std s, with s_j = Var(x_j) · ‖W_:j‖₂²

    W: weight (out, in) of the matrix that reads the unit: o for KV groups and query heads, down for MLP channels.
    x_j: input feature j of that matrix; its sample variance is taken over all calibration tokens.
    s: fluctuation of each column (in,); mean and std run over all columns of the matrix.
    S: score (units,), higher stays; standardised, so that one ranking over all layers takes it as it is.
    An et al. 2024, weighted input feature variance, https://arxiv.org/abs/2312.11983
    """
    s = structure.inputs.variance * structure.reader.weight.square().sum(dim=0)
    z = (s - s.mean()) / s.std().clamp_min(1e-30)
    return structure.per_unit(z) * (structure.units / len(z))
