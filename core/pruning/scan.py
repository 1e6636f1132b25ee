"""What each layer alone is worth: one layer at a time is pruned, the text is judged, and the layer is put back.

The hidden states of the dense model that enter a layer are kept, so that only that layer and those above it run again:
a scan of all layers costs half as many passes as there are layers, not one whole run each. Cuts are those that a run
over that one layer would make: masks by the inputs of the dense layer, width by the scores of the dense units (heads
and channels are taken out by zeros in what reads them, which gives the same logits), depth by leaving the layer out.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import NumericalError
from core.models.families import Matrix
from core.models.plans import params_of
from core.models.surgery import Kept
from core.pruning.allocation import shrunk
from core.pruning.calibration import Stream, Walk, windows_a_batch
from core.pruning.head import head_of
from core.pruning.job import Job, parts_cut
from core.pruning.masking import Budget, mask_layer
from core.pruning.measured import sums_of
from core.pruning.reconstruction import Sums, columns_of
from core.pruning.units import reader_role, roles_of
from core.pruning.width import Key, importances, stays_of

WHOLE = "layer"
"""Name of the row in which all chosen parts of a layer are pruned."""


@dataclass(frozen=True)
class Found:
    """One row of a scan: mean NLL of each window in nats with only this part of this layer pruned.

    `removed`: parameters that go, or weights that become zero.
    """

    layer: int
    part: str
    nll: list[float]
    removed: int


@dataclass
class Scan:
    """Scans the layers that a job's plan selects, on token windows (windows, L ≥ 2) of the text that judges."""

    job: Job
    text: Tensor
    by_part: bool = False
    done: Collection[int] = ()  # layers that an earlier attempt scanned
    tell: Callable[[float], None] = lambda _share: None  # of the scan, 0…1
    dense: list[float] = field(default_factory=list)
    _passes: float = 0.0

    def run(self, take: Callable[[int, list[Found]], None]) -> list[float]:
        """Mean NLL of each window of the dense model; what each layer comes to is handed to `take`, layer by layer.

        Weights are as before afterwards. NumericalError where a loss is no finite number.
        """
        job, body = self.job, self.job.body
        scores = importances(job) if job.method.kind == "width" else {}
        walk = Walk(body, self.text, windows_a_batch("auto", self.text.shape[1], body.device), body.model.dtype,
                    torch.device(job.store) if job.store else body.device, job.tick)  # fmt: skip
        last, n = job.plan.selected[-1], len(body.layers())
        whole = self._advanced(walk, walk.enter(), range(n))
        self.dense = self._nll(walk, whole, "the dense model")
        calibrated = job.method.kind != "depth" and (job.pruning.reconstruct or (
            job.method.kind == "mask" and bool(job.needs)))  # fmt: skip
        entering, read = walk.enter(), job.enter(0.01) if calibrated else None
        for index in range(last + 1):
            wanted = index in job.plan.selected and index not in self.done
            outputs: list[tuple[str, int, Stream | None]] = []
            with body.at(index) as layer:
                if wanted:
                    outputs = list(self._cuts(index, layer, walk, entering, read, scores))
                if read is not None and index != last:
                    job.walk.advance(index, layer, read)
                walk.advance(index, layer, entering)
            self._ticked(1)
            if wanted:
                rows: list[Found] = []
                for part, removed, stream in outputs:
                    if stream is None:  # nothing goes there, or all that goes
                        nll = rows[0].nll if removed else self.dense
                    else:
                        nll = self._nll(walk, self._advanced(walk, stream, range(index + 1, n)), f"layer {index}")
                    rows.append(Found(index, part, nll, removed))
                take(index, rows)
        self.tell(1.0)
        return self.dense

    def _advanced(self, walk: Walk, stream: Stream, layers: range) -> Stream:
        for index in layers:
            with self.job.body.at(index) as layer:
                walk.advance(index, layer, stream)
            self._ticked(1)
        return stream

    def _ticked(self, layers: float) -> None:
        n, selected = len(self.job.body.layers()), self.job.plan.selected
        left = [index for index in selected if index not in self.done]
        total = n + selected[-1] + 1 + sum((n - index) * self._variants(index) for index in left)
        self._passes += layers
        self.tell(min(self._passes / total, 1.0))

    def _variants(self, index: int) -> int:
        """How often the layers above a layer run: once for all its parts, and for each if several lose something."""
        count = len(self.job.pruning.parts)
        if self.job.method.kind == "width":
            count = len(parts_cut(self.job.plan.cuts[index]))
        return 1 + (count if self.by_part and count > 1 else 0)

    # --- cuts

    def _cuts(
        self,
        index: int,
        layer: nn.Module,
        walk: Walk,
        entering: Stream,
        read: Stream | None,
        scores: Mapping[Key, Tensor],
    ) -> Iterator[tuple[str, int, Stream | None]]:
        """(part, what goes, what leaves the layer) of each cut of it; the layer is as before afterwards.

        None in place of what leaves it, where nothing goes, or where this part is all that goes.
        """
        kind = self.job.method.kind
        if kind == "depth":
            yield WHOLE, self.job.plan.before.layer_params(index), entering.fork()
            return
        make = self._masked if kind == "mask" else self._narrowed
        matrices = self.job.matrices(layer)
        cut = make(index, layer, matrices, read, scores)
        for part in self._parts():
            roles = roles_of(self.job.pruning.parts if part == WHOLE else (part,))
            changed = {role: weight for role, weight in cut.items() if role in roles}
            removed = self._removed(index, part, matrices, changed)
            if not changed or (part != WHOLE and len(changed) == len(cut)):
                yield part, removed, None
                continue
            stream = entering.fork()
            with _replaced(matrices, changed):
                walk.advance(index, layer, stream)
            self._ticked(1)
            yield part, removed, stream

    def _parts(self) -> list[str]:
        parts = self.job.pruning.parts
        return [WHOLE, *(parts if self.by_part and len(parts) > 1 else ())]

    def _masked(
        self, index: int, layer: nn.Module, matrices: Mapping[str, Matrix], read: Stream | None, _scores: Any
    ) -> dict[str, Tensor]:
        """The masked weights by role."""
        job, roles = self.job, roles_of(self.job.pruning.parts)
        stats = job.walk.statistics(index, layer, roles, read, job.gather) if read is not None else {}
        own = {role: matrices[role].weight.clone() for role in roles}
        try:
            mask_layer(job, index, layer, stats, Budget(job.plan.ratio, job.pruning.pattern), lambda _step: job.tick())
            return {role: matrices[role].weight.clone() for role in roles}
        finally:
            for role, weight in own.items():
                matrices[role].weight.copy_(weight)

    def _narrowed(
        self,
        index: int,
        layer: nn.Module,
        matrices: Mapping[str, Matrix],
        read: Stream | None,
        scores: Mapping[Key, Tensor],
    ) -> dict[str, Tensor]:
        """The readers of what goes, with zeros in its columns (refitted where asked for), by role."""
        job, cut = self.job, self.job.plan.cuts[index]
        stays = stays_of(job, index, cut.before, cut.after, scores)
        sums: Mapping[str, Sums] | None = None
        if job.pruning.reconstruct and read is not None:
            sums = sums_of(job, index, layer, read.fork())
        found: dict[str, Tensor] = {}
        for part in job.pruning.parts:
            role = reader_role(part)
            if _whole(stays, part):
                continue
            own = matrices[role].weight
            columns = columns_of(job, stays)[role].to(own.device)
            new = own[:, columns] if sums is None else sums[role].refitted(own, columns, self._warn(index, role))
            found[role] = torch.zeros_like(own)
            found[role][:, columns] = new.to(own.dtype)
        return found

    def _warn(self, index: int, role: str) -> Callable[[str], None]:
        return lambda message: self.job.warnings.append(f"Layer {index}, {role}: {message}")

    def _removed(self, index: int, part: str, matrices: Mapping[str, Matrix], changed: Mapping[str, Tensor]) -> int:
        """Parameters that a run over this layer would remove, or weights that it would set to zero."""
        if self.job.method.kind == "mask":
            return sum(int((new == 0).sum()) - int((matrices[role].weight == 0).sum()) for role, new in changed.items())
        cut, architecture = self.job.plan.cuts[index], self.job.plan.before
        after = cut.after
        if part == "mlp":
            after = shrunk(cut.before, "mlp", cut.after.mlp, self.job.pruning.heads)
        elif part == "attention":
            after = shrunk(cut.after, "mlp", cut.before.mlp, self.job.pruning.heads)
        return params_of(architecture, cut.before) - params_of(architecture, after)

    # --- judging

    @torch.no_grad()
    def _nll(self, walk: Walk, stream: Stream, what: str) -> list[float]:
        """Mean NLL of tokens 2…L of each window, in nats, from what leaves the last layer."""
        found: list[float] = []
        with head_of(walk) as head:
            for i, ids in enumerate(torch.split(self.text, walk.batch)):
                rows = stream.get(i)[:, :-1].flatten(0, 1)
                targets = ids[:, 1:].reshape(-1).to(rows.device)
                losses = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
                for piece in head.pieces(rows):
                    losses[piece] = F.cross_entropy(head.logits(rows[piece]), targets[piece], reduction="none").double()
                found += losses.view(len(ids), -1).mean(dim=1).tolist()
        if not all(map(math.isfinite, found)):
            raise NumericalError(
                f"The loss is no finite number with {what} pruned.", "Choose float32 or bfloat16 for the model's dtype."
            )
        return found


def _whole(stays: Kept, part: str) -> bool:
    return stays.channels is None if part == "mlp" else stays.query_heads is None


@contextmanager
def _replaced(matrices: Mapping[str, Matrix], changed: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, these matrices hold other weights of the same shapes."""
    own = {role: matrices[role].weight.clone() for role in changed}
    try:
        for role, weight in changed.items():
            matrices[role].weight.copy_(weight)
        yield
    finally:
        for role, weight in own.items():
            matrices[role].weight.copy_(weight)
