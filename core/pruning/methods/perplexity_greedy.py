"""Greedy removal by perplexity: try every layer, drop the one that is missed least, try again."""

from typing import TYPE_CHECKING

from core.pruning.registry import register

if TYPE_CHECKING:
    from core.pruning.depth import Losses


@register(
    name="perplexity_greedy",
    title="Greedy by perplexity (SLEB)",
    summary="Removes one decoder layer after another, each time the one whose removal hurts the perplexity least.",
    paper="Song et al. 2024, SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Blocks",
    url="https://arxiv.org/abs/2402.09025",
    kind="depth",
    needs={"loss"},
)
def perplexity_greedy(losses: "Losses", layers: "tuple[int, ...]", count: int) -> list[int]:
    """S_l = L(model without the layers removed so far and without layer l)

    L: mean next-token loss over all calibration windows; its exponential is the perplexity.
    S: score of layer l, higher stays; the lowest goes, and the rest are scored anew, `count` times. Among equals the
       later layer goes. Returns the layers that go.
    Song et al. 2024, algorithm 1, https://arxiv.org/abs/2402.09025
    """
    removed: list[int] = []
    for _ in range(count):
        scores = {layer: losses.without(layer) for layer in layers if layer not in removed}
        removed.append(min(scores, key=lambda layer: (scores[layer], -layer)))
        losses.settle(removed)
    return removed
