"""How far the output moves when the first layers of the dense model are the pruned ones: KL by layer.

    KL_i = mean over positions t of KL( p(t) ‖ q_i(t) )   in nats

p: next-token distribution of the dense model. q_i: that of the dense model whose residual stream after layer i is
replaced by the pruned model's (behind the last of its layers that was layer i or an earlier one), so that layers up to
i are the pruned model's and all later ones, norm and head the dense model's. Before the first cut layer it is 0, behind
the last one it is the divergence of the whole pruned model, and where it rises, output is lost. It is not the logit
lens, which reads states through a head that they were never meant for.

A few windows are enough to see where: each layer costs a pass through the dense layers above it.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import NumericalError
from core.evaluation.forward import LOGIT_BYTES, NextTokenLogits, decoder_layers
from core.evaluation.metrics import standard_error

if TYPE_CHECKING:
    import torch
    from torch import nn

TOKENS = {"cpu": 512, "cuda": 8192}  # in the windows that are looked at; one window at least


@dataclass(frozen=True)
class LayerDivergences:
    """Mean KL in nats after each layer of the dense model, with standard errors from the spread of the windows."""

    values: list[float]
    stderr: list[float | None]
    windows: int
    positions: int


def layer_divergences(
    pruned: NextTokenLogits,
    dense: NextTokenLogits,
    tokens: "torch.Tensor",
    kept: Sequence[int] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> LayerDivergences:
    """KL by layer on the first of the token windows (windows, L ≥ 2).

    kept: which layers of the dense model the pruned one's were, ascending; None: all. Both streams are equally wide.
    tick is called after each pass. NumericalError when a distribution is not finite.
    """
    import torch

    own, others = decoder_layers(pruned.model), decoder_layers(dense.model)
    stayed = list(range(len(others))) if kept is None else list(kept)
    device = dense.model.device
    count = max(1, TOKENS.get(device.type, 512) // tokens.shape[1])
    found: list[list[float]] = [[] for _ in others]
    columns = _columns(dense, tokens.shape[1])
    with torch.inference_mode():
        for window in tokens[:count]:
            ids = window[None]
            states = _states(pruned, own, ids)
            tick()
            places = [sum(each <= layer for each in stayed) - 1 for layer in range(len(others))]
            by_layer = [states[place].to(device) for place in places]
            with _compared(others, by_layer) as untouched:
                wanted = torch.log_softmax(dense.at(ids.to(device), columns), dim=-1)
            tick()
            for layer, state in enumerate(by_layer):
                if layer in untouched:
                    found[layer].append(0.0)
                    continue
                with _replaced(others, layer, state):
                    found[layer].append(_divergence(wanted, dense.at(ids.to(device), columns)))
                tick()
    return LayerDivergences(
        values=[math.fsum(each) / len(each) for each in found],
        stderr=[standard_error(each) for each in found],
        windows=min(count, len(tokens)),
        positions=min(count, len(tokens)) * len(columns),
    )


def _divergence(wanted: "torch.Tensor", logits: "torch.Tensor") -> float:
    """Mean KL of logits (1, n, vocabulary) from log-probabilities of the same shape."""
    from torch.nn import functional

    found = functional.log_softmax(logits, dim=-1)
    each = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1).double()
    value = float(each.clamp(min=0).mean())
    if not math.isfinite(value):
        raise NumericalError("The divergence by layer is no finite number.", "Choose float32 or bfloat16.")
    return value


def _columns(dense: NextTokenLogits, length: int) -> "torch.Tensor":
    """Positions of a window, evenly spread, whose logits take little memory; the last one is not judged."""
    import torch

    room = LOGIT_BYTES["cuda" if dense.model.device.type == "cuda" else "cpu"] // 2
    count = max(1, min(length - 1, room // (4 * dense.vocabulary)))
    return torch.linspace(0, length - 2, count, dtype=torch.float64).round().long()  # count ≤ length − 1: no two alike


def _states(pruned: NextTokenLogits, layers: "list[nn.Module]", ids: "torch.Tensor") -> "dict[int, torch.Tensor]":
    """What leaves each layer of the pruned model, by place; −1 is what enters the first."""
    states: dict[int, torch.Tensor] = {}

    def enter(_module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        states[-1] = inputs[0] if inputs else named["hidden_states"]

    def keep(place: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            states[place] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [layer.register_forward_hook(keep(place)) for place, layer in enumerate(layers)]
    try:
        pruned.model.base_model(input_ids=ids.to(pruned.model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return states


@contextlib.contextmanager
def _compared(layers: "list[nn.Module]", states: "list[torch.Tensor]") -> "Iterator[set[int]]":
    """Finds, in the pass inside, the layers after which the stream is that of `states` to the bit."""
    import torch

    same: set[int] = set()

    def compare(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if torch.equal(output[0] if isinstance(output, tuple) else output, states[layer]):
                same.add(layer)

        return hook

    handles = [layer.register_forward_hook(compare(place)) for place, layer in enumerate(layers)]
    try:
        yield same
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _replaced(layers: "list[nn.Module]", last: int, state: "torch.Tensor") -> Iterator[None]:
    """While open, `state` leaves layer `last`, and those before it are stepped over."""

    def passed(*positional: Any, **named: Any) -> Any:
        return positional[0] if positional else named["hidden_states"]

    def given(*_positional: Any, **_named: Any) -> Any:
        return state

    for layer in layers[:last]:
        layer.forward = passed
    layers[last].forward = given
    try:
        yield
    finally:
        for layer in layers[: last + 1]:
            del layer.forward  # the class's own again
