"""Block influence: a layer that hardly turns its inputs can go."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    import torch


@register(
    name="block_influence",
    title="Block influence (ShortGPT)",
    summary="Removes the decoder layers that change the direction of their hidden states least.",
    paper="Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
    url="https://arxiv.org/abs/2403.03853",
    kind="depth",
    needs={"blocks"},
)
def block_influence(entering: "torch.Tensor", leaving: "torch.Tensor") -> "torch.Tensor":
    """S_l = 1 − mean over tokens t of cos(x_t, y_t)

    x_t: hidden state (d,) that enters layer l at token t of the dense model; y_t: the one that leaves it.
    S: score, higher stays; here 1 − cos of each token (tokens,) in float32, and the mean is taken over all windows.
    Men et al. 2024, equation 1, https://arxiv.org/abs/2403.03853
    """
    from torch.nn import functional as F

    return 1 - F.cosine_similarity(entering.float(), leaving.float(), dim=-1)
