"""Removing channels of the residual stream: one set of indices for the whole model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from core.models import surgery
from core.models.families import Matrix
from core.models.sizes import MATRICES
from core.pruning.gradients import weight_gradients
from core.pruning.job import Job
from core.pruning.scores import checked, keep_best
from core.pruning.units import WeightGradients

READS_STREAM = ("q", "k", "v", "gate", "up")  # their columns are channels of the stream; rows of o and down likewise


def hidden(job: Job) -> None:
    """Cut the stream down to the planned number of channels."""
    kept = keep_best(_scores(job), job.plan.after.hidden_size)
    surgery.cut_hidden(job.body.model, job.body.family, kept)
    surgery.finish(job.body.model, job.body.family)
    job.progress(1, 1, "model")


def _scores(job: Job) -> Tensor:
    """A score per channel (hidden,), summed over everything that reads or writes the stream in the decoder layers."""
    width = job.plan.before.hidden_size
    total = torch.zeros(width, dtype=torch.float64)

    def take(index: int, gradients: Mapping[str, WeightGradients] | None = None) -> None:
        layer = job.body.layers()[index]
        for role, matrix in job.matrices(layer).items():
            total.add_(_of_matrix(job, index, role, matrix, gradients))

    if job.needs & {"gradients", "fisher"}:
        assert job.windows is not None
        windows = len(job.windows)
        weight_gradients(
            job.body,
            dict.fromkeys(range(len(job.body.layers())), MATRICES),
            job.windows,
            take,
            fisher="fisher" in job.needs,
            batch_size=job.pruning.calibration.batch_size,
            progress=lambda done: job.calibrated(done / windows),
        )
    else:
        for index in range(len(job.body.layers())):
            with job.body.at(index):
                take(index)
    return checked(total, (width,), job.method.name, "the residual stream")


def _of_matrix(
    job: Job, index: int, role: str, matrix: Matrix, gradients: Mapping[str, WeightGradients] | None
) -> Tensor:
    """Scores (hidden,) of the channels as one matrix sees them."""
    found = gradients[role] if gradients is not None else None
    scores = job.call(index, role, weight=matrix.weight.float(), gradients=found)
    scores = checked(scores, tuple(matrix.weight.shape), job.method.name, f"layer {index}, {role}")
    return scores.sum(dim=0 if role in READS_STREAM else 1).double().cpu()
