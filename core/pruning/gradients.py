"""Gradients of the language-model loss on calibration text, for chosen weight matrices only.

L is the mean next-token loss over all windows. Micro-batches add up to its exact gradient before anything else is done
with it, so the result does not depend on their size. The backward pass goes layer by layer from stored layer inputs,
running each layer again: one layer's activations exist at a time, and one layer needs the device.

Two things may be large, and each has a limit that does not grow with the number of windows. Stored inputs: windows are
taken in chunks. Summed gradients: where one chunk does not hold all windows, sums wait for the next, so layers are
taken in groups whose sums take no more memory than the weights themselves; each group costs a forward pass.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.errors import NumericalError
from core.models.body import Body
from core.models.families import Matrix
from core.pruning.calibration import Walk
from core.pruning.head import head_of
from core.pruning.units import WeightGradients

_TOKENS_A_BATCH = {"cpu": 2048, "cuda": 4096}  # of one backward pass through one layer
_STORED = 0.15  # layer inputs held at once, as a share of the weights' bytes
_SUMMED = 0.85  # gradients held at once, likewise
_FIRST_SCALE = 2.0**16  # float16 activations' gradients underflow without one
_TRIES = 4

Take = Callable[[int, Mapping[str, WeightGradients]], None]


class _NotFinite(Exception):
    """A gradient overflowed under the present loss scale; raised and caught in this module only."""


@dataclass
class Sums:
    """Gradient and Fisher diagonal of one layer's matrices so far, float32."""

    gradient: dict[str, Tensor] = field(default_factory=dict)
    fisher: dict[str, Tensor] = field(default_factory=dict)

    def add(self, role: str, g: Tensor, share: float, fisher: bool) -> None:
        """Take in the gradient of one micro-batch's mean loss; `share` is its share of all windows."""
        if fisher:
            self._add(self.fisher, role, g.square(), share)
        self._add(self.gradient, role, g, share)

    @staticmethod
    def _add(sums: dict[str, Tensor], role: str, value: Tensor, share: float) -> None:
        if role in sums:
            sums[role].add_(value, alpha=share)
        else:
            sums[role] = value.mul_(share)

    def finite(self) -> bool:
        """Whether no sum is nan or inf."""
        return all(math.isfinite(float(g.sum())) for g in self.gradient.values())

    def finished(self) -> Any:
        """What `take` is given, by role."""
        return {role: WeightGradients(g, self.fisher.get(role)) for role, g in self.gradient.items()}


@dataclass
class Precision:
    """How a pass computes: in which dtype the layers are held, under which autocast, with which loss scale."""

    dtype: torch.dtype
    autocast: torch.dtype | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, walk: Walk) -> "Precision":
        """float16 weights are held as float32, a layer at a time: their gradients underflow in float16."""
        if walk.dtype != torch.float16:
            return cls(walk.dtype)
        if walk.body.device.type != "cuda":
            return cls(torch.float32)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return cls(torch.float32, torch.bfloat16)
        return cls(torch.float32, torch.float16, _FIRST_SCALE)

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast("cuda", self.autocast)


def micro_batch(batch_size: int | str, length: int, fisher: bool, device: torch.device) -> int:
    """Windows in one backward pass: one where squared gradients of single windows are wanted, else as asked for."""
    if fisher:
        return 1
    return int(batch_size) if batch_size != "auto" else max(1, _TOKENS_A_BATCH.get(device.type, 1024) // length)


def weight_gradients(
    body: Body,
    wanted: Mapping[int, Sequence[str]],
    windows: Tensor,
    take: Take,
    *,
    fisher: bool = False,
    batch_size: int | str = "auto",
    progress: Callable[[float], None] = lambda _done: None,
) -> None:
    """∂L/∂W of the wanted roles of each layer, and the Fisher diagonal if asked for, in float32.

    windows: token ids (n, length). take(layer, gradients by role) is called once a layer, from the last to the first
    of a group, with the layer at its place on the device; what it does not keep is freed. progress(done windows).
    NumericalError if the loss or a gradient is not finite.
    """
    wanted = {index: roles for index, roles in wanted.items() if roles}
    if not wanted:
        return
    batch = micro_batch(batch_size, windows.shape[1], fisher, body.device)
    run_backwards(
        Walk.over(body, windows, batch),
        lambda walk, precision: Backwards(walk, wanted, precision, take, progress, fisher=fisher),
    )


def run_backwards(walk: Walk, pass_of: Callable[[Walk, Precision], "Backwards"]) -> None:
    """Run a backward pass, again with a smaller loss scale where float16 overflowed. NumericalError on nan or inf."""
    precision = Precision.of(walk)
    walk.dtype = precision.dtype
    while True:
        try:
            pass_of(walk, precision).run()
            return
        except _NotFinite:
            tries = math.log(_FIRST_SCALE / precision.scale, 64)
            if precision.scale == 1.0 or tries >= _TRIES - 1:
                break
            precision.scale /= 64  # too large a scale overflows just as none underflows
    raise NumericalError(
        "the loss or its gradients are nan or inf on the calibration text.",
        "Load the model as float32 or bfloat16, and check that its weights are finite.",
    )


@dataclass
class Backwards:
    """One backward pass over all windows that asks for gradients by the weights of the wanted roles of each layer.

    Subclasses ask for something else: `asked` are the tensors, `take_in` is given their gradients.
    """

    walk: Walk
    wanted: Mapping[int, Sequence[str]]
    precision: Precision
    take: Callable[[int, Any], None]
    progress: Callable[[float], None]
    fisher: bool = False
    by_outputs: ClassVar[bool] = False  # the tensors asked for are made by a layer, from its inputs

    def run(self) -> None:
        windows, body = self.walk.windows, self.walk.body
        n_layers, lowest = len(body.layers()), min(self.wanted)
        chunks = self._chunks(n_layers - lowest)
        groups = [sorted(self.wanted)] if len(chunks) == 1 else self._groups()
        done, total = 0.0, len(groups) * len(chunks)

        def tell(share: float) -> None:
            self.progress(len(windows) * min((done + share) / total, 1.0))

        for group in groups:
            sums: dict[int, Sums] = {index: self.empty() for index in group}
            for place, chunk in enumerate(chunks):
                last = place == len(chunks) - 1
                self._chunk(chunk, group, sums, last, tell)
                done += 1

    def _weight_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.walk.body.model.parameters())

    def _chunks(self, stored_layers: int) -> list[Tensor]:
        """Windows whose layer inputs are held at once, so many that they stay below a share of the weights."""
        windows = self.walk.windows
        width = int(self.walk.body.model.config.hidden_size)
        of_one = windows.shape[1] * width * self.precision.dtype.itemsize * (stored_layers + 2)
        batches = max(1, int(_STORED * self._weight_bytes() / of_one) // self.walk.batch)
        return list(torch.split(windows, batches * self.walk.batch))

    def _groups(self) -> list[list[int]]:
        """Layers whose gradients are summed at once, so that they take no more than a share of the weights' bytes."""
        body, limit = self.walk.body, _SUMMED * self._weight_bytes()
        layers = body.layers()
        groups: list[list[int]] = []
        held = 0.0
        for index in sorted(self.wanted, reverse=True):
            matrices = body.family.matrices(layers[index])
            size = sum(self.held_bytes(matrices[role]) for role in self.wanted[index])
            if not groups or held + size > limit:
                groups.append([])
                held = 0.0
            groups[-1].append(index)
            held += size
        return groups

    def _chunk(
        self, windows: Tensor, group: list[int], sums: dict[int, Sums], last: bool, tell: Callable[[float], None]
    ) -> None:
        """One chunk of windows forwards through all layers, then backwards to the lowest layer of the group."""
        walk, lowest = self.walk, min(group)
        layers = len(walk.body.layers())
        steps, batches = 0, -(-len(windows) // walk.batch)
        all_steps = batches * (layers + 1 + 3 * (layers - lowest))

        def tick(count: int = 1) -> None:
            nonlocal steps
            steps += count
            tell(steps / all_steps)

        walk.tick = lambda: tick(0)
        stream = walk.enter(windows=windows)
        entering: dict[int, list[Tensor]] = {}
        for index in range(layers):
            if index >= lowest:
                entering[index] = list(stream.batches)
            with walk.body.at(index) as layer, self.precision.context():
                walk.advance(index, layer, stream, lambda _done: tick())
        shares = [len(tokens) / len(walk.windows) for tokens in torch.split(windows, walk.batch)]
        gradients = list(self._from_the_head(stream.batches, windows, tick))
        del stream
        for index in reversed(range(lowest, layers)):
            with walk.body.at(index) as layer:
                into = sums.get(index) if index in group else None
                self._backwards(index, layer, entering.pop(index), gradients, shares, into, index > lowest, tick)
                if into is not None and last:
                    if not into.finite():
                        raise _NotFinite
                    self.take(index, into.finished())
                    del sums[index]

    def _backwards(
        self,
        index: int,
        layer: nn.Module,
        entering: list[Tensor],
        gradients: list[Tensor],
        shares: list[float],
        into: Sums | None,
        further: bool,
        tick: Callable[[int], None],
    ) -> None:
        """Run one layer again with autograd; `gradients` by its outputs become those by its inputs."""
        working = self.walk.at_work(layer)
        matrices = self.walk.body.family.matrices(working)
        wanted: dict[str, Matrix] = {role: matrices[role] for role in self.wanted[index]} if into is not None else {}
        before = [(parameter, parameter.requires_grad) for parameter in working.parameters()]
        for parameter, _ in before:
            parameter.requires_grad_(False)
        try:
            with self.watching(wanted):
                for i, hidden in enumerate(entering):
                    with torch.enable_grad(), self.precision.context():
                        hidden = hidden.detach().requires_grad_(further or (self.by_outputs and into is not None))
                        output = self.walk.run(index, working, hidden)
                    asked = self.asked(wanted)
                    sources = [*asked, *([hidden] if further else [])]
                    found = torch.autograd.grad(output, sources, gradients[i].to(output.dtype)) if sources else ()
                    if further:
                        gradients[i] = found[-1]
                    if into is not None:
                        self.take_in(into, wanted, found[: len(asked)], shares[i])
                    entering[i] = hidden.new_empty(0)
                    tick(3)
        finally:
            for parameter, flag in before:
                parameter.requires_grad_(flag)

    # --- what is asked for

    def empty(self) -> Sums:
        """Sums of one layer before the first window."""
        return Sums()

    def held_bytes(self, matrix: Matrix) -> int:
        """What the sums of one matrix take."""
        return matrix.weight.numel() * (8 if self.fisher else 4)

    @contextmanager
    def watching(self, wanted: Mapping[str, Matrix]) -> Iterator[None]:
        """While open, a layer runs so that what is asked of it can be differentiated by."""
        for matrix in wanted.values():
            matrix.linear.weight.requires_grad_(True)
        yield

    def asked(self, wanted: Mapping[str, Matrix]) -> list[Tensor]:
        """Tensors to differentiate by after one batch went through the layer."""
        return list({id(each.linear): each.linear.weight for each in wanted.values()}.values())

    def take_in(self, into: Sums, wanted: Mapping[str, Matrix], found: Sequence[Tensor], share: float) -> None:
        """Add the gradients by what was `asked`; `share` is the batch's share of all windows."""
        by_weight = dict(zip((id(each) for each in self.asked(wanted)), found, strict=True))
        for role, matrix in wanted.items():
            g = by_weight[id(matrix.linear.weight)][matrix.rows].float()
            if self.precision.scale != 1.0:
                g = g / self.precision.scale
            into.add(role, g, share, self.fisher)

    def draws(self, tokens: Tensor) -> Tensor | None:  # noqa: ARG002 - for subclasses
        """Uniform numbers (B, T − 1) for losses on drawn tokens; None for losses on the text's own."""
        return None

    # --- head

    def _from_the_head(
        self, batches: Sequence[Tensor], windows: Tensor, tick: Callable[[int], None]
    ) -> Iterator[Tensor]:
        """∂(scale · mean loss of a micro-batch)/∂(hidden states that leave the last layer), batch by batch."""
        with head_of(self.walk) as head:
            for hidden, tokens in zip(batches, torch.split(windows, self.walk.batch), strict=True):
                gradient = torch.zeros_like(hidden)
                flat = torch.zeros_like(hidden[:, :-1]).flatten(0, 1)
                with torch.enable_grad(), self.precision.context():
                    for rows, states, loss in head.loss_sums(hidden, tokens, self.draws(tokens)):
                        if not math.isfinite(loss.item()):
                            raise _NotFinite
                        (flat[rows],) = torch.autograd.grad(loss * (self.precision.scale / len(flat)), states)
                gradient[:, :-1] = flat.view(hidden.shape[0], -1, hidden.shape[-1])
                yield gradient
                tick(1)
