"""RIA: a weight's share of its row and of its column, times the size of what it reads."""

from typing import TYPE_CHECKING

from pydantic import Field

from core.pruning.registry import Options, register

if TYPE_CHECKING:
    import torch

    from core.pruning.calibration import InputStats


class RIAOptions(Options):
    """Options of `ria`."""

    power: float = Field(
        0.5, ge=0, le=2, description="Power of the inputs' norms; 0 leaves the calibration text out of the score."
    )


@register(
    name="ria",
    title="RIA",
    summary="Zeroes, in each matrix, the weights that matter least to their row and column, given what they read.",
    paper="Zhang et al. 2024, Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
    url="https://iclr.cc/virtual/2024/poster/18549",
    kind="mask",
    needs={"inputs"},
    options=RIAOptions,
    compare="matrix",
)
def ria(weight: "torch.Tensor", inputs: "InputStats", options: RIAOptions) -> "torch.Tensor":
    """S_ij = (|W_ij| / Σ_k |W_ik| + |W_ij| / Σ_k |W_kj|) · ‖X_j‖₂^a

    W: weight (out, in) of one linear layer; the sums run over its row i and its column j.
    X_j: input feature j over all calibration tokens; ‖X_j‖₂ = √Σ_t x_tj², here (in,).
    a: `power`.
    S: score (out, in), higher stays; the smallest of each matrix go.
    Zhang et al. 2024, Relative Importance and Activations, https://iclr.cc/virtual/2024/poster/18549
    """
    sizes = weight.abs()
    rows = sizes.sum(dim=1, keepdim=True).clamp_min(1e-30)  # (out, 1); all zero: the score is 0
    columns = sizes.sum(dim=0).clamp_min(1e-30)  # (in,)
    return (sizes / rows + sizes / columns) * inputs.norm.pow(options.power)
