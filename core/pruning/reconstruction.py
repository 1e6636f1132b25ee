"""Refitting o and down after their inputs were cut, by least squares on the calibration text."""

from collections.abc import Mapping

from core.models.surgery import Kept
from core.pruning.job import Job


class Refit:
    """One walk over the layers: cut each, refit what reads the cut units, hand the refitted layer's outputs on."""

    def __init__(self, job: Job, kept: Mapping[int, Kept]) -> None:
        self.job, self.kept = job, kept

    def run(self) -> None:
        raise NotImplementedError
