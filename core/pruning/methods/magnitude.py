"""Magnitude pruning of single weights."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch


@register(
    name="magnitude",
    title="Magnitude",
    summary="Zeroes the weights that are smallest in absolute value, in each matrix.",
    paper="Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks",
    url="https://arxiv.org/abs/1506.02626",
    kind="mask",
    compare="matrix",
)
def magnitude(weight: "torch.Tensor") -> "torch.Tensor":
    """S_ij = |W_ij|

    W: weight (out, in) of one linear layer.
    S: score (out, in), higher stays; the smallest of each matrix go.
    Han et al. 2015, section 3, https://arxiv.org/abs/1506.02626
    """
    return weight.abs()
