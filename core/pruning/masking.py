"""Setting weights to zero, layer by layer: each layer is judged on what the pruned ones before it hand over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from core.errors import RunError
from core.models.families import Matrix
from core.models.plans import parse_pattern, zeros_in_matrix
from core.pruning.allocation import layer_ratios
from core.pruning.calibration import SHARING, InputStats, Stream
from core.pruning.job import Job
from core.pruning.masks import keep_mask
from core.pruning.scores import checked
from core.pruning.units import roles_of


@dataclass(frozen=True)
class Budget:
    """What a method that rewrites weights must zero: a fraction of each matrix, or all but n of every m inputs."""

    ratio: float
    pattern: str

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(n, m) of a pattern n:m; None where zeros may stand anywhere."""
        return parse_pattern(self.pattern)

    def zeros(self, shape: tuple[int, int], compare: str) -> int:
        """How many weights of a matrix of this shape (out, in) must be zero."""
        return zeros_in_matrix(shape, self.ratio, self.pattern, compare)


def mask(job: Job) -> None:
    """Zero the planned weights of every selected layer."""
    selected, roles = job.plan.selected, roles_of(job.pruning.parts)
    ratios = layer_ratios(job)
    calibrated = bool(job.needs)
    stream = job.enter(1 / (selected[0] + 1)) if calibrated else None
    n_batches = len(stream) if stream else 0
    steps = 2 * n_batches + len(roles)  # a layer's share of the progress
    for index in range(selected[-1] + 1) if calibrated else selected:
        chosen = index in selected
        position = index - selected[0]

        def tell(step: int, position: int = position) -> None:
            job.progress(min(position + step / steps, len(selected)), len(selected), "layers")

        with job.body.at(index, final=chosen) as layer:
            if not chosen:
                assert stream is not None
                _on_the_way(job, index, layer, stream, selected[0])
                continue
            stats = job.walk.statistics(index, layer, roles, stream, job.gather, tell) if stream else {}
            budget = Budget(ratios[index], job.pruning.pattern)
            mask_layer(job, index, layer, stats, budget, lambda done: tell(n_batches + done))
            if stream and index != selected[-1]:
                job.walk.advance(index, layer, stream, lambda done: tell(n_batches + len(roles) + done))
            job.report(index, layer)
    job.progress(len(selected), len(selected), "layers")


def _on_the_way(job: Job, index: int, layer: nn.Module, stream: Stream, first: int) -> None:
    """Pass through a layer below the first selected one; part of the calibration's progress."""
    total = len(stream)
    job.walk.advance(index, layer, stream, lambda done: job.calibrated((index + 1 + done / total) / (first + 1)))


def mask_layer(
    job: Job,
    index: int,
    layer: nn.Module,
    stats: Mapping[str, InputStats],
    budget: Budget,
    tell: Callable[[int], None],
) -> None:
    """Zero the weights of a layer that is at hand, within `budget`; stats: of its inputs, by role."""
    matrices = job.matrices(layer)
    done = 0
    for roles in SHARING.values():  # matrices that read the same inputs, together
        chosen = [role for role in roles if role in roles_of(job.pruning.parts)]
        if not chosen:
            continue
        inputs = stats.get(chosen[0])
        if job.method.rewrites:
            _rewrite(job, index, {role: matrices[role] for role in chosen}, inputs, budget, partial(tell, done))
        else:
            for place, role in enumerate(chosen):
                _zero(job, index, role, matrices[role].weight, inputs, budget)
                tell(done + place + 1)
        done += len(chosen)
        tell(done)


def _zero(job: Job, index: int, role: str, weight: Tensor, inputs: InputStats | None, budget: Budget) -> None:
    """Zero one matrix by its scores."""
    scores = job.call(index, role, weight=weight.float(), inputs=inputs)
    scores = checked(scores, tuple(weight.shape), job.method.name, f"layer {index}, {role}")
    keep = keep_mask(scores, ratio=budget.ratio, pattern=budget.pattern, compare=job.method.compare)
    if job.anatomy is not None:
        job.anatomy.weights(index, role, scores, keep)
    weight.masked_fill_(keep.logical_not(), 0)
    gone = keep.numel() - int(keep.sum())
    assert gone == budget.zeros((weight.shape[0], weight.shape[1]), job.method.compare), (gone, index, role)


def _rewrite(
    job: Job,
    index: int,
    matrices: Mapping[str, Matrix],
    inputs: InputStats | None,
    budget: Budget,
    tick: Callable[[], None],
) -> None:
    """Let the method write new weights for the matrices that share `inputs`; zeros are counted, not believed.

    A matrix of which nothing goes is left alone.
    """
    sizes = {role: (matrix.weight.shape[0], matrix.weight.shape[1]) for role, matrix in matrices.items()}
    matrices = {role: matrices[role] for role, size in sizes.items() if budget.zeros(size, job.method.compare)}
    if not matrices:
        return
    weights = [matrix.weight.float() for matrix in matrices.values()]
    together = "+".join(matrices)

    def warn(message: str) -> None:
        job.warnings.append(f"layer {index}, {together}: {message}")

    rewritten = job.call(index, together, weights=weights, inputs=inputs, budget=budget, tick=tick, warn=warn)
    for (role, matrix), new in zip(matrices.items(), rewritten, strict=True):
        where = f"layer {index}, {role}"
        new = checked(new, tuple(matrix.weight.shape), job.method.name, where)
        zeros = new.numel() - int(torch.count_nonzero(new))
        planned = budget.zeros((new.shape[0], new.shape[1]), job.method.compare)
        # a weight that stays may have been 0 before, or come out as 0: one sum in some ten million does
        by_chance = int((matrix.weight == 0).sum()) + 1 + new.numel() // 1_000_000
        if not planned <= zeros <= planned + by_chance:
            raise RunError(
                f"{job.method.name} set {zeros} weights of {where} to zero where {planned} were planned.",
                "This is a fault in Espalier: please report it with the experiment's YAML.",
            )
        if job.anatomy is not None:  # these methods score no weight by itself: how large it was is what can be shown
            job.anatomy.weights(index, role, matrix.weight.abs(), new != 0, "magnitude")
        matrix.weight.copy_(new)
