"""Removing whole decoder layers: score or order them, drop the least, renumber the rest."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from core.errors import NumericalError
from core.models import surgery
from core.pruning.calibration import Stream
from core.pruning.head import head_of
from core.pruning.job import Job
from core.pruning.scores import checked, keep_best


def depth(job: Job) -> None:
    """Drop as many of the selected layers as the plan says."""
    selected, count = job.plan.selected, job.plan.layers_removed
    if count:
        removed = _ordered(job) if "loss" in job.needs else _ranked(job)
        if len(removed) != count or len(set(removed)) != count or not set(removed) <= set(selected):
            raise ValueError(f"{job.method.name} chose layers {removed}, but {count} of {selected} must go")
        job.removed_layers = tuple(sorted(removed))
        _note(job)
        job.progress(0, count, "layers")
        surgery.drop_layers(job.body.model, job.body.family, job.removed_layers)
    job.progress(count, count, "layers")


def _note(job: Job) -> None:
    """Take down what each layer scored; of a method that asks for losses, those of the dense model without it."""
    if job.anatomy is None or not job.layer_scores:
        return
    members = sorted(job.layer_scores)
    scores = torch.tensor([job.layer_scores[index] for index in members], dtype=torch.float64)
    stays = torch.tensor([place for place, index in enumerate(members) if index not in job.removed_layers])
    what = "loss without it" if "loss" in job.needs else "importance"
    job.anatomy.scores(-1, "layers", "decoder layer", scores, stays.long(), members, what)


def _ordered(job: Job) -> list[int]:
    """The layers that the method itself picks."""
    chosen: list[int] = job.call(
        0, "layers", losses=Losses(job), layers=job.plan.selected, count=job.plan.layers_removed
    )
    return chosen


def _ranked(job: Job) -> list[int]:
    """The selected layers with the lowest scores."""
    selected = job.plan.selected
    scores = checked(_scores(job), (len(selected),), job.method.name, "the selected layers")
    job.layer_scores = dict(zip(selected, scores.double().tolist(), strict=True))
    stay = set(keep_best(scores, len(selected) - job.plan.layers_removed).tolist())
    return [index for place, index in enumerate(selected) if place not in stay]


def _scores(job: Job) -> Tensor:
    """One score per selected layer, higher stays."""
    selected = job.plan.selected
    if "blocks" not in job.needs:
        scores: Tensor = job.call(0, "layers", layers=selected, n_layers=job.plan.before.n_layers)
        return scores
    names = [str(index) for index in selected]
    kept = job.kept_scores(names, lambda: _of_blocks(job))
    return torch.stack([kept[name] for name in names])


def _of_blocks(job: Job) -> dict[str, Tensor]:
    """A score for each selected layer, by its number, in one pass over the text."""
    selected = job.plan.selected
    stream = job.enter(0.01)
    found: dict[str, Tensor] = {}
    passes = (selected[-1] + 1) * len(stream)
    for index in range(selected[-1] + 1):
        chosen = index in selected
        with job.body.at(index) as layer:
            working, sums, tokens = job.walk.at_work(layer), torch.zeros((), dtype=torch.float64), 0
            for i in range(len(stream)):
                entering = stream.get(i)
                leaving = job.walk.run(index, working, entering)
                stream.put(i, leaving)
                if chosen:  # every window is whole text: there is no padding to leave out
                    each = job.call(index, "layer", entering=entering.flatten(0, 1), leaving=leaving.flatten(0, 1))
                    sums, tokens = sums + each.sum(dtype=torch.float64).cpu(), tokens + each.numel()
                job.calibrated((index * len(stream) + i + 1) / passes)
            if chosen:
                found[str(index)] = sums / tokens
    return found


class Losses:
    """Mean next-token loss of the calibration text without some layers.

    Hidden states are kept where they enter the first selected layer, and where the last question left a layer out: all
    below it is the same for the next one. Asked in ascending order, n questions take n²/2 layer passes, not n².
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._held: dict[int, Stream] = {}  # what enters a layer, with the settled ones left out below it
        self._settled: frozenset[int] = frozenset()
        self._done = 0.0
        n, selected = len(job.body.layers()), job.plan.selected
        self._first = selected[0]
        a_round = sum(n - layer for layer in selected)
        rounds = sum(1 - taken / len(selected) for taken in range(job.plan.layers_removed))
        self._total = n + rounds * a_round  # layer passes, roughly
        self._check_dense()

    def _check_dense(self) -> None:
        """Without this, a model with nan in a layer would just lose that layer."""
        stream = self._entering(self._first)
        self._run(stream, range(self._first, len(self._job.body.layers())))
        if not math.isfinite(self._loss(stream)):
            raise NumericalError(
                "the loss of the dense model is nan or inf on the calibration text.",
                "Load the model as float32 or bfloat16, and check that its weights are finite.",
            )

    def settle(self, removed: Iterable[int]) -> None:
        """Layers that every later question leaves out; states that depend on them are made anew."""
        new = frozenset(removed)
        changed = new ^ self._settled
        if changed:
            self._held = {index: stream for index, stream in self._held.items() if index <= min(changed)}
        self._settled = new

    def without(self, index: int) -> float:
        """The loss, in nats a token, without layer `index` and the settled ones; inf where it overflows."""
        stream = self._entering(index)
        self._run(stream, range(index + 1, len(self._job.body.layers())))
        loss = self._loss(stream)
        if not self._settled and math.isfinite(loss):
            self._job.layer_scores[index] = loss
        return loss if math.isfinite(loss) else math.inf

    def _entering(self, index: int) -> Stream:
        """What enters layer `index` without the settled layers below it; kept for the next question."""
        start = max((held for held in self._held if held <= index), default=None)
        if start is None:
            stream, start = self._job.enter(0.0), 0
        else:
            stream = self._held[start].fork()
        if start < self._first <= index:
            self._run(stream, range(start, self._first))
            self._held[self._first] = stream.fork()
            start = self._first
        self._run(stream, range(start, index))
        self._held = {held: states for held, states in self._held.items() if held == self._first}
        self._held[index] = stream.fork()
        return stream

    @torch.no_grad()
    def _run(self, stream: Stream, layers: range) -> None:
        job = self._job
        share = 1 / len(stream)
        for index in layers:
            if index in self._settled:
                continue
            with job.body.at(index) as layer:
                job.walk.advance(index, layer, stream, lambda _done: self._tell(share))

    def _tell(self, passes: float) -> None:
        self._done += passes
        self._job.calibrated(0.99 * self._done / self._total)

    @torch.no_grad()
    def _loss(self, stream: Stream) -> float:
        job = self._job
        assert job.windows is not None
        total, tokens = 0.0, 0
        with head_of(job.walk) as head:
            for i, ids in enumerate(torch.split(job.windows, job.walk.batch)):
                total += sum(float(loss) for _, _, loss in head.loss_sums(stream.get(i), ids))
                tokens += ids[:, 1:].numel()
                self._tell(0.0)
        return total / tokens
