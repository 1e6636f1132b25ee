"""The last layers: the plainest choice of whole layers."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch


@register(
    name="last",
    title="Last layers",
    summary="Removes the last of the selected decoder layers: the plainest baseline.",
    paper="Ma et al. 2023, LLM-Pruner: On the Structural Pruning of Large Language Models",
    url="https://arxiv.org/abs/2305.11627",
    kind="depth",
)
def last(layers: "tuple[int, ...]") -> "torch.Tensor":
    """S_l = −l

    l: number of a decoder layer, from 0.
    S: score of the selected layers (layers,), higher stays.
    Layer-wise baseline of the tools of Ma et al. 2023, https://arxiv.org/abs/2305.11627
    """
    import torch

    return -torch.tensor(layers, dtype=torch.float64)
