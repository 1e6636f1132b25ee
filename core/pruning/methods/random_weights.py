"""Random removal of single weights: what any mask must beat."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch


@register(
    name="random_weights",
    title="Random weights",
    summary="Zeroes single weights at random, in each matrix: the baseline that any mask must beat.",
    paper="Liu et al. 2022, The Unreasonable Effectiveness of Random Pruning",
    url="https://arxiv.org/abs/2202.02643",
    kind="mask",
    seeded=True,
    compare="matrix",
)
def random_weights(weight: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """S_ij ~ Uniform(0, 1)

    W: weight (out, in) of one linear layer; its values are not looked at.
    S: score (out, in), higher stays; drawn from a stream of its own for each matrix, on the CPU: the same seed zeroes
       the same weights on every device.
    A baseline of Liu et al. 2022, https://arxiv.org/abs/2202.02643
    """
    import torch

    return torch.rand(weight.shape, generator=generator).to(weight.device)
