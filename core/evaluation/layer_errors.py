"""How far a pruned model's hidden states have drifted from the dense model's after each layer, on the same text.

    error_i = mean over positions t of ‖h_i(t) − h'_i(t)‖₂ / ‖h_i(t)‖₂

h_i: the residual stream after layer i of the dense model; h'_i: that of the pruned model after the last of its layers
that was layer i or an earlier one (a layer that was taken out leaves the stream as it is). Each position counts alike,
whatever its norm: a few positions of language models have norms a hundred times those of the rest. 0 = equal,
1 = as far off as a stream of zeros.

Taken by hooks in passes that are made anyway. Only states of the pass at work are held, at as many positions of each
row as a fixed amount of memory takes, evenly spread.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.evaluation.forward import decoder_layers
from core.evaluation.metrics import standard_error

if TYPE_CHECKING:
    import torch
    from torch import nn

STATE_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}  # states of the pruned model held at once


@dataclass(frozen=True)
class LayerErrors:
    """One entry a layer of the dense model, in order.

    `stderr`: from the spread of the windows' means, None for one window. `removed`: layers that are no longer there.
    `positions`: how many were looked at, in all windows together.
    """

    errors: list[float]
    stderr: list[float | None]
    removed: list[int]
    positions: int

    def rows(self) -> list[dict[str, Any]]:
        """As they stand in results.json; what is no finite number becomes null."""
        return [
            {
                "layer": layer,
                "error": error if math.isfinite(error) else None,
                "stderr": stderr if stderr is not None and math.isfinite(stderr) else None,
                "removed": layer in self.removed,
            }
            for layer, (error, stderr) in enumerate(zip(self.errors, self.stderr, strict=True))
        ]


def why_not(pruned: Any, dense: Any, kept: Sequence[int] | None) -> str:
    """Why the layers of two models cannot be held against each other, in a sentence; '' where they can."""
    widths = [int(model.config.hidden_size) for model in (pruned, dense)]
    if widths[0] != widths[1]:
        return f"The stream is {widths[0]} channels wide instead of {widths[1]}: its states do not compare."
    own, others = (len(decoder_layers(model)) for model in (pruned, dense))
    if own != (others if kept is None else len(kept)):
        return f"It has {own} layers instead of {others}, and which of them stayed is not known."
    return ""


class Streams:
    """Collects the errors while both models see the same batches, the pruned one first.

    kept: for each layer of the pruned model, ascending, which layer of the dense one it was; None: the same ones.
    """

    def __init__(self, pruned: "nn.Module", dense: "nn.Module", kept: Sequence[int] | None = None) -> None:
        self._pruned, self._dense = decoder_layers(pruned), decoder_layers(dense)
        self._kept = list(range(len(self._dense))) if kept is None else list(kept)
        self._own: dict[int, torch.Tensor] = {}  # by place in the pruned model; −1 is what enters its first layer
        self._columns: torch.Tensor | None = None
        self._found: list[list[torch.Tensor]] = [[] for _ in self._dense]
        self._positions = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator["Streams"]:
        """Look at every pass inside."""
        handles = [self._pruned[0].register_forward_pre_hook(self._enter, with_kwargs=True)]
        handles += [each.register_forward_hook(self._keep(place)) for place, each in enumerate(self._pruned)]
        handles += [each.register_forward_hook(self._compare(layer)) for layer, each in enumerate(self._dense)]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._own.clear()

    def result(self) -> LayerErrors:
        """Means over all positions seen."""
        import torch

        rows = [torch.cat(found).tolist() if found else [] for found in self._found]  # a number a window
        return LayerErrors(
            errors=[math.fsum(row) / len(row) if row else math.nan for row in rows],
            stderr=[standard_error(row) for row in rows],
            removed=[layer for layer in range(len(self._dense)) if layer not in set(self._kept)],
            positions=self._positions,
        )

    def _enter(self, _module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        state = inputs[0] if inputs else named["hidden_states"]
        self._own.clear()
        self._columns = _columns(state, len(self._pruned) + 1)
        self._own[-1] = state[:, self._columns]

    def _keep(self, place: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            self._own[place] = _state(output)[:, self._columns]

        return hook

    def _compare(self, layer: int) -> Any:
        """The pruned model's layer that the stream has passed by then: the last one kept, up to this one."""
        place = sum(each <= layer for each in self._kept) - 1
        last = layer == len(self._dense) - 1

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            dense = _state(output)
            assert self._columns is not None
            dense = dense[:, self._columns.to(dense.device)].float()
            own = self._own[place].to(dense.device).float()
            norm = dense.norm(dim=-1).clamp(min=1e-30)
            self._found[layer].append(((dense - own).norm(dim=-1) / norm).mean(dim=1).double().cpu())  # (B,)
            if last:
                self._positions += dense.shape[0] * dense.shape[1]
                self._own.clear()

        return hook


def _columns(state: "torch.Tensor", states: int) -> "torch.Tensor":
    """Positions of each row (≥ 1), evenly spread, so that so many states of (B, T, d) fit into the memory allowed."""
    import torch

    batch, length, width = state.shape
    room = STATE_BYTES[state.device.type if state.device.type in STATE_BYTES else "cpu"]
    count = min(length, max(1, room // (states * batch * width * state.element_size())))
    spread = torch.linspace(0, length - 1, count, dtype=torch.float64) if count > 1 else torch.tensor([length - 1.0])
    return spread.round().long().to(state.device)


def _state(output: Any) -> "torch.Tensor":
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found
