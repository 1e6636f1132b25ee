"""Which folders pages may read from: what is typed into a form becomes a path only under one of the roots.

`ESPALIER_ROOTS` names them (`:` between them; `/` is everywhere). Not set, they are the account's own folder, where
Espalier keeps its things, where it was started, the temporary folder, and where data and disks are mounted by custom.
Links are resolved first, so that none leads out.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core import settings
from core.data.task_files import is_file
from core.errors import ExperimentError, Problem
from core.experiment import Experiment

_MOUNTED = (
    "/data",
    "/datasets",
    "/models",
    "/mnt",
    "/media",
    "/scratch",
    "/workspace",
    "/content",
    "/kaggle",
    "/Volumes",
)


def roots() -> list[Path]:
    """The folders, links resolved."""
    named = [part for part in os.environ.get("ESPALIER_ROOTS", "").split(os.pathsep) if part.strip()]
    if named:
        return [Path(part.strip()).expanduser().resolve() for part in named]
    own = (Path.home(), settings.home(), settings.cache(), Path.cwd(), Path(tempfile.gettempdir()))
    return [path.resolve() for path in (*own, *map(Path, _MOUNTED))]


def inside(text: str) -> bool:
    """Whether the path lies under a root, wherever its links lead; False for what is no path at all."""
    try:
        path = Path(text).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL, a circle of links, an unknown ~user
        return False
    return any(path.is_relative_to(root) for root in roots())


def outside(experiment: Experiment) -> list[Problem]:
    """Every path of an experiment that pages may not read, by field."""
    where = os.pathsep.join(map(str, roots()[:3]))
    advice = f"Move it under one of {where}, or name its folder in ESPALIER_ROOTS where Espalier is started."
    return [
        Problem(field, f"{path} lies outside the folders that pages may read.", advice)
        for field, path in _paths(experiment)
        if not inside(path)
    ]


def require(experiment: Experiment) -> None:
    """ExperimentError with every path that pages may not read."""
    found = outside(experiment)
    if found:
        raise ExperimentError.of(found)


def require_model(name: str) -> None:
    """The same for the name of a model alone."""
    require(Experiment.parse({"model": {"name": name}}))


def _paths(experiment: Experiment) -> Iterator[tuple[str, str]]:
    name = experiment.model.name
    if not name.startswith("builtin:") and _names_a_place(name):
        yield "model.name", name
    pruning, recovery = experiment.pruning, experiment.recovery
    if pruning is not None and pruning.calibration.path is not None:
        yield "pruning.calibration.path", pruning.calibration.path
    if recovery is not None and recovery.data.path is not None:
        yield "recovery.data.path", recovery.data.path
    for i, text in enumerate(experiment.evaluation.perplexity):
        if text.path is not None:
            yield f"evaluation.perplexity.{i}.path", text.path
    for i, task in enumerate(experiment.evaluation.tasks):
        if is_file(task):
            yield f"evaluation.tasks.{i}", task


def _names_a_place(name: str) -> bool:
    """Whether a model's name is a path: written as one, or something by that name is there."""
    return name.startswith(("/", "~", ".")) or "\0" in name or os.path.lexists(name)
