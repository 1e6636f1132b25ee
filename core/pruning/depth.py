"""Removing whole decoder layers: score or order them, drop the least, renumber the rest."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from core.models import surgery
from core.pruning.calibration import Stream
from core.pruning.head import head_of
from core.pruning.job import Job
from core.pruning.scores import checked, keep_best


def depth(job: Job) -> None:
    """Drop as many of the selected layers as the plan says."""
    selected, count = job.plan.selected, job.plan.layers_removed
    if "loss" in job.needs:
        removed = job.call(0, "layers", losses=Losses(job), layers=selected, count=count)
    else:
        scores = checked(_scores(job), (len(selected),), job.method.name, "the selected layers")
        stay = set(keep_best(scores, len(selected) - count).tolist())
        removed = [index for place, index in enumerate(selected) if place not in stay]
    job.removed_layers = tuple(sorted(removed))
    if len(set(removed)) != count or not set(removed) <= set(selected):
        raise ValueError(f"{job.method.name} chose layers {removed}, but {count} of {selected} must go")
    surgery.drop_layers(job.body.model, job.body.family, job.removed_layers)
    job.progress(count, count, "layers")


def _scores(job: Job) -> Tensor:
    """One score per selected layer, higher stays."""
    selected = job.plan.selected
    if "blocks" not in job.needs:
        scores: Tensor = job.call(0, "layers", layers=selected, n_layers=job.plan.before.n_layers)
        return scores
    stream = job.enter(0.01)
    found: list[float] = []
    for index in range(selected[-1] + 1):
        with job.body.at(index) as layer:
            if index not in selected:
                job.walk.advance(index, layer, stream)
                continue
            working, sums, tokens = job.walk.at_work(layer), 0.0, 0
            for i in range(len(stream)):
                entering = stream.get(i)
                leaving = job.walk.run(index, working, entering)
                stream.put(i, leaving)
                # every window is whole text: there is no padding to leave out
                each = job.call(index, "layer", entering=entering.flatten(0, 1), leaving=leaving.flatten(0, 1))
                sums, tokens = sums + float(each.sum(dtype=torch.float64)), tokens + each.numel()
            found.append(sums / tokens)
        job.calibrated((index + 1) / (selected[-1] + 1))
    return torch.tensor(found, dtype=torch.float64)


class Losses:
    """Mean next-token loss of the calibration text without some layers.

    Hidden states are kept at the deepest layer up to which nothing changes from one question to the next.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._entry: dict[int, Stream] = {}
        self._without: frozenset[int] = frozenset()
        self._asked = 0
        count = job.plan.layers_removed
        self._questions = sum(len(job.plan.selected) - taken for taken in range(count))

    def settle(self, removed: Iterable[int]) -> None:
        """Layers that every later question leaves out; states that depend on them are made anew."""
        new = frozenset(removed)
        first = min(new ^ self._without, default=0)
        self._entry = {index: stream for index, stream in self._entry.items() if index <= first}
        self._without = new

    @torch.no_grad()
    def without(self, index: int) -> float:
        """The loss, in nats a token, without layer `index` and the settled ones."""
        job = self._job
        assert job.windows is not None
        start = max((held for held in self._entry if held <= index), default=None)
        if start is None:
            stream, start = job.enter(0.0), 0
        else:
            stream = self._entry[start].fork()
        for layer_index in range(start, len(job.body.layers())):
            if layer_index == index:
                self._entry[index] = stream.fork()
            if layer_index == index or layer_index in self._without:
                continue
            with job.body.at(layer_index) as layer:
                job.walk.advance(layer_index, layer, stream)
        self._entry = {held: states for held, states in self._entry.items() if held == index or held == 0}
        self._asked += 1
        job.calibrated(self._asked / max(self._questions, 1))
        return self._loss(stream)

    def _loss(self, stream: Stream) -> float:
        job = self._job
        assert job.windows is not None
        total, tokens = 0.0, 0
        with head_of(job.walk) as head:
            for i, ids in enumerate(torch.split(job.windows, job.walk.batch)):
                total += sum(float(loss) for _, _, loss in head.loss_sums(stream.get(i), ids))
                tokens += ids[:, 1:].numel()
        loss = total / tokens
        return loss if math.isfinite(loss) else math.inf
