"""Random removal of whole units: what any criterion must beat."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch

    from core.pruning.units import Structure


@register(
    name="random",
    title="Random",
    summary="Removes heads and MLP channels at random: the baseline that any criterion must beat.",
    paper="Ma et al. 2023, LLM-Pruner: On the Structural Pruning of Large Language Models",
    url="https://arxiv.org/abs/2305.11627",
    kind="width",
    seeded=True,
)
def random(structure: "Structure", generator: "torch.Generator") -> "torch.Tensor":
    """S_u ~ Uniform(0, 1)

    u: unit (KV group, query head or MLP channel).
    S: score (units,), higher stays; drawn from a stream of its own for each layer and part: the same seed always
       cuts the same units.
    A baseline of Ma et al. 2023, section 4, https://arxiv.org/abs/2305.11627
    """
    import torch

    return torch.rand(structure.units, generator=generator)
