"""Forward passes that can be watched and stopped, and next-token logits without ever holding them all.

A pass over a few hundred tokens can take seconds on a CPU. `watched` reports from inside it, after each decoder layer,
so that progress moves and a cancelled run ends soon.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from core.progress import Progress

if TYPE_CHECKING:
    import torch
    from torch import nn

LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}  # float32 logits held at once
TOKENS_A_PASS = {"cpu": 512, "cuda": 16384}  # padded tokens in one pass, where nobody asks for a batch size
_INTERVAL = 0.25  # seconds between two progress calls from inside a pass


def batch_rows(length: int, device: str, batch_size: "int | str") -> int:
    """Rows of `length` tokens in one pass; `auto` keeps the number of tokens that suits the kind of device."""
    if isinstance(batch_size, int):
        return batch_size
    return max(1, TOKENS_A_PASS[_kind(device)] // max(1, length))


def _kind(device: str) -> str:
    return "cuda" if str(device).startswith("cuda") else "cpu"


class Meter:
    """Tells a Progress about `total` units of work; passes count from their inside, layer by layer."""

    def __init__(self, progress: Progress, total: float, unit: str) -> None:
        self._progress, self._total, self._unit = progress, total, unit
        self._done = 0.0
        self._shown = 0.0  # passes that are tried again begin anew; what was shown does not go back
        self._said = 0.0
        self._pass = (0.0, 0, 1)  # units in the pass at work, steps done, steps in all
        progress(0, total, unit)

    def begin(self, units: float, steps: int) -> None:
        """A pass over `units` of work starts; it takes about `steps` steps: decoder layers, chunks of logits."""
        self._pass = (units, 0, max(1, steps))

    def step(self) -> None:
        """One more step of the pass is done. Raises what the Progress raises."""
        units, steps, total = self._pass
        self._pass = (units, min(steps + 1, total), total)
        now = time.monotonic()
        if now - self._said >= _INTERVAL:
            self._said = now
            self._shown = max(self._shown, self._done + units * self._pass[1] / total)
            self._progress(self._shown, self._total, self._unit)

    def end(self) -> None:
        """The pass is done with all that follows it."""
        self._done += self._pass[0]
        self._pass = (0.0, 0, 1)
        self._said = time.monotonic()
        self._shown = max(self._shown, self._done)
        self._progress(self._shown, self._total, self._unit)


def decoder_layers(model: "nn.Module") -> "list[nn.Module]":
    """The longest list of blocks in a model: its decoder layers, whatever the family calls them."""
    from torch.nn import ModuleList

    lists = [list(module) for module in model.modules() if isinstance(module, ModuleList)]
    return max(lists, key=len, default=[])


@contextlib.contextmanager
def watched(model: "nn.Module", meter: Meter) -> Iterator[int]:
    """Report to `meter` after each decoder layer of every pass inside; gives the number of layers."""
    layers = decoder_layers(model)

    def after(_module: Any, _inputs: Any, _output: Any) -> None:
        meter.step()

    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        yield len(layers)
    finally:
        for handle in handles:
            handle.remove()


class NextTokenLogits:
    """Float32 next-token logits of one model, a chunk of positions at a time.

    The head is called on its own, with the soft cap that the config may state, where that gives what the model's
    forward gives: some families scale their logits after the head. Trying it on a few tokens finds out, for any family;
    where it does not, whole rows are made.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._cap = getattr(model.config, "final_logit_softcapping", None)
        self.plain_head = self._head_alone_is_enough()

    def _head_alone_is_enough(self) -> bool:
        import torch

        if self.model.base_model is self.model:
            return False
        ids = (torch.arange(4, device=self.model.device) % self.vocabulary)[None]
        states: list[torch.Tensor] = []
        handle = self.model.base_model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
        try:
            with torch.inference_mode():
                whole = self.model(input_ids=ids, use_cache=False).logits
                if not states:  # the forward goes another way
                    return False
                alone = self._capped_head(states[0])
        finally:
            handle.remove()
        return whole.shape == alone.shape and torch.allclose(whole, alone, rtol=1e-3, atol=1e-3, equal_nan=True)

    def _hidden(self, input_ids: "torch.Tensor") -> "torch.Tensor":
        hidden: torch.Tensor = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return hidden

    def _capped_head(self, hidden: "torch.Tensor") -> "torch.Tensor":
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return logits if self._cap is None else (logits / self._cap).tanh() * self._cap

    def of_hidden(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Logits (…, vocabulary) of hidden states (…, d) behind the last norm; only where `plain_head` is true."""
        return self._capped_head(hidden).float()

    def rows_at_once(self) -> int:
        """Positions whose float32 logits fit into the memory that a chunk may take."""
        return max(16, LOGIT_BYTES[_kind(str(self.model.device))] // (4 * self.vocabulary))

    def chunk_count(self, batch: int, length: int) -> int:
        """Chunks in a pass over (batch, length) tokens."""
        return len(self._cuts(batch, length, self.rows_at_once()))

    @staticmethod
    def _cuts(batch: int, length: int, rows: int) -> list[slice]:
        """Positions of the flattened (batch · length) order: whole rows together, or equal parts of one long row."""
        if length <= rows:
            step = rows // length * length
            return [slice(start, min(start + step, batch * length)) for start in range(0, batch * length, step)]
        part = -(-length // -(-length // rows))
        return [
            slice(row * length + start, row * length + min(start + part, length))
            for row in range(batch)
            for start in range(0, length, part)
        ]

    def at(self, input_ids: "torch.Tensor", columns: "torch.Tensor") -> "torch.Tensor":
        """Logits (B, n, vocabulary) of input_ids (B, T) at the positions `columns` (n,) of each row."""
        if self.plain_head:
            return self.of_hidden(self._hidden(input_ids)[:, columns.to(input_ids.device)])
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits[:, columns.to(logits.device)].float()

    def chunks(self, input_ids: "torch.Tensor", rows: int | None = None) -> "Iterator[tuple[slice, torch.Tensor]]":
        """Logits of input_ids (B, T): (positions in the flattened B · T order, logits (positions, vocabulary)).

        `rows` limits the positions in a chunk; the cuts depend on it and the shape alone, so that two models can be
        compared chunk by chunk.
        """
        batch, length = input_ids.shape
        cuts = self._cuts(batch, length, rows or self.rows_at_once())
        if self.plain_head:
            hidden = self._hidden(input_ids).flatten(0, 1)  # (B · T, d)
            for cut in cuts:
                yield cut, self.of_hidden(hidden[cut])
            return
        made, first, last = None, 0, 0  # logits of rows first…last−1
        for cut in cuts:
            start, stop = cut.start // length, -(-cut.stop // length)
            if made is None or (start, stop) != (first, last):
                first, last = start, stop
                made = self.model(input_ids=input_ids[start:stop], use_cache=False).logits.flatten(0, 1)
            yield cut, made[cut.start - first * length : cut.stop - first * length].float()
