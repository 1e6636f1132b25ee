"""Whether a run or a study came from another machine, told from the files; and what of it is not believed here."""

from pathlib import Path

from core.experiment import Experiment
from core.jobs.rundir import RunDirectory, read_json

RECORD = ".import.json"
"""Ends the name of the file beside an imported study's YAML (core/travel.py)."""


def came(directory: RunDirectory) -> bool:
    """Whether a run was imported."""
    return (read_json(directory.study_file) or {}).get("imported") is True


def study_came(home: Path, study_id: str) -> bool:
    """Whether a study's YAML, or runs of it, were imported."""
    return (home / "studies" / f"{study_id}{RECORD}").is_file()


def experiment_to_run(directory: RunDirectory) -> Experiment:
    """A run's experiment, to be done again here."""
    experiment = directory.experiment()
    return distrusted(experiment) if came(directory) else experiment


def distrusted(experiment: Experiment) -> Experiment:
    """An experiment from elsewhere: leave for a model to run code of its own is given on this machine only."""
    return experiment.with_changes({"model.trust_remote_code": False})
