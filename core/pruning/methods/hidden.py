"""Channels of the residual stream, scored over everything that reads or writes them."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from core.pruning.registry import Need, Options, register

if TYPE_CHECKING:
    import torch

    from core.pruning.units import Member


class HiddenOptions(Options):
    """Options of `hidden`."""

    criterion: Literal["l1", "l2", "taylor", "random"] = Field(
        "taylor",
        description="l1: sum of |w|; l2: sum of w²; taylor: sum of |w·g|, which reads calibration text; random.",
    )


def _needs(options: HiddenOptions) -> frozenset[Need]:
    return frozenset({"gradients"}) if options.criterion == "taylor" else frozenset()


@register(
    name="hidden",
    title="Hidden channels",
    summary="Removes whole channels of the residual stream from every layer, the embedding and the head.",
    paper="Ma et al. 2023, LLM-Pruner: On the Structural Pruning of Large Language Models",
    url="https://arxiv.org/abs/2305.11627",
    kind="hidden",
    needs=_needs,
    seeded=lambda options: options.criterion == "random",
    options=HiddenOptions,
)
def hidden(member: "Member", options: HiddenOptions, generator: "torch.Generator") -> "torch.Tensor":
    """l1: S_c = Σ |w|   l2: S_c = Σ w²   taylor: S_c = Σ |w·g|   random: S_c ~ Uniform(0, 1)

    w: weights that read channel c of the residual stream (a column of q, k, v, gate, up, embedding and head) or write
       it (a row of o and down), over all layers; for taylor, of the decoder layers alone.
    g: ∂L/∂w, L the mean next-token loss over all calibration windows; summed over them before any |·|.
    S: score (hidden,) as one matrix sees the channels, higher stays; scores of all matrices are added up.
    Ma et al. 2023, channel-wise pruning of section 4, https://arxiv.org/abs/2305.11627
    """
    import torch

    weight = member.weight
    match options.criterion:
        case "l1":
            return weight.abs().sum(dim=1 - member.axis)
        case "l2":
            return weight.square().sum(dim=1 - member.axis)
        case "taylor":
            return (weight * member.gradient).abs().sum(dim=1 - member.axis)
        case "random":
            return torch.rand(weight.shape[member.axis], generator=generator)
