"""Structured magnitude: units by the sum of squares of all their weights."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch

    from core.pruning.units import Structure


@register(
    name="l2",
    title="L2 norm",
    summary="Removes the heads and MLP channels whose weights are smallest by the sum of squares.",
    paper="Ma et al. 2023, LLM-Pruner: On the Structural Pruning of Large Language Models",
    url="https://arxiv.org/abs/2305.11627",
    kind="width",
)
def l2(structure: "Structure") -> "torch.Tensor":
    """S_u = Σ w² over all weights w of unit u

    u: KV group (rows of q, k, v and columns of o), query head (rows of q, columns of o) or MLP channel (rows of gate
       and up, a column of down).
    S: score (units,), higher stays.
    A baseline of Ma et al. 2023, section 4, https://arxiv.org/abs/2305.11627
    """
    return structure.sum(lambda member: member.weight.square())
