"""Removing channels of the residual stream: one set of indices for the whole model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from core.models import surgery
from core.models.families import READS_STREAM, Matrix
from core.models.sizes import MATRICES
from core.pruning.gradients import weight_gradients
from core.pruning.job import Job
from core.pruning.scores import checked, keep_best
from core.pruning.units import Member, WeightGradients


def hidden(job: Job) -> None:
    """Cut the stream down to the planned number of channels."""
    width = job.plan.after.hidden_size
    if width < job.plan.before.hidden_size:
        scores = job.kept_scores(["stream"], lambda: {"stream": _scores(job)})["stream"]
        kept = keep_best(scores, width)
        if job.anatomy is not None:
            job.anatomy.scores(-1, "stream", "hidden channel", scores, kept)
        job.progress(0, 1, "model")
        surgery.cut_hidden(job.body.model, job.body.family, kept)
        surgery.finish(job.body.model, job.body.family)
    job.progress(1, 1, "model")


def _scores(job: Job) -> Tensor:
    """A score per channel (hidden,), added up over everything that reads or writes the stream.

    Criteria that need gradients have none for the embedding and the head, and leave them out.
    """
    total = torch.zeros(job.plan.before.hidden_size, dtype=torch.float64)
    layers = range(len(job.body.layers()))

    def take(index: int, gradients: Mapping[str, WeightGradients] | None = None) -> None:
        for role, matrix in job.matrices(job.body.layers()[index]).items():
            member = Member(role, 1 if role in READS_STREAM else 0, matrix, gradients[role] if gradients else None)
            total.add_(_of_member(job, member, f"layer {index}, {role}"))

    if job.needs & {"gradients", "fisher"}:
        assert job.windows is not None
        windows = len(job.windows)
        weight_gradients(
            job.body,
            dict.fromkeys(layers, MATRICES),
            job.windows,
            take,
            fisher="fisher" in job.needs,
            batch_size=job.pruning.calibration.batch_size,
            progress=lambda done: job.calibrated(done / windows),
        )
        return total
    for index in layers:
        with job.body.at(index):
            take(index)
    with job.body.outside():
        for name, table in _tables(job).items():
            total.add_(_of_member(job, Member(name, 1, table), name))
    return total


def _tables(job: Job) -> dict[str, Matrix]:
    """Embedding and head, (vocabulary, hidden) both; one where they are tied."""
    family, model = job.body.family, job.body.model
    found = {"embedding": Matrix(family.embedding(model))}  # type: ignore[arg-type]
    return found if family.tied(model) else found | {"head": Matrix(family.head(model))}  # type: ignore[arg-type]


def _of_member(job: Job, member: Member, where: str) -> Tensor:
    """Scores (hidden,) of the channels as one matrix sees them; what is drawn is the same for all matrices."""
    scores = job.call(0, "stream", member=member)
    return checked(scores, (member.matrix.weight.shape[member.axis],), job.method.name, where).double().cpu()
