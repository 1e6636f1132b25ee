"""Random whole layers: what any choice of layers must beat."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch


@register(
    name="random_layers",
    title="Random layers",
    summary="Removes whole decoder layers at random: the baseline that any choice of layers must beat.",
    paper="Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
    url="https://arxiv.org/abs/2403.03853",
    kind="depth",
    seeded=True,
)
def random_layers(layers: "tuple[int, ...]", n_layers: int, generator: "torch.Generator") -> "torch.Tensor":
    """S_l ~ Uniform(0, 1)

    l: number of a decoder layer, from 0; all layers of the model draw, so that what a layer draws does not depend on
       which are selected.
    S: score of the selected layers (layers,), higher stays.
    A baseline for Men et al. 2024, https://arxiv.org/abs/2403.03853
    """
    import torch

    return torch.rand(n_layers, generator=generator)[list(layers)]
