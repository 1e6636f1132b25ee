"""Wanda: pruning by weights and activations."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch

    from core.pruning.calibration import InputStats


@register(
    name="wanda",
    title="Wanda",
    summary="Zeroes, in each output row, the weights that are smallest when multiplied by the norm of what they read.",
    paper="Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models",
    url="https://arxiv.org/abs/2306.11695",
    kind="mask",
    needs={"inputs"},
    compare="row",
)
def wanda(weight: "torch.Tensor", inputs: "InputStats") -> "torch.Tensor":
    """S_ij = |W_ij| · ‖X_j‖₂

    W: weight (out, in) of one linear layer.
    X_j: input feature j over all calibration tokens; ‖X_j‖₂ = √Σ_t x_tj², here (in,).
    S: score (out, in), higher stays; the smallest of each output row go.
    Sun et al. 2024, equation 1, https://arxiv.org/abs/2306.11695
    """
    return weight.abs() * inputs.norm
