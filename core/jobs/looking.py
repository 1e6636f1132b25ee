"""Small looks that the supervisor takes at run directories: how old, how far, which are new."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.jobs.rundir import RunDirectory, is_run_id
from core.jobs.stages import is_reusable

_log = logging.getLogger(__name__)


def age(directory: RunDirectory) -> tuple[str, str]:
    """Sorts older runs first; ids alone tell no more than the second."""
    return directory.recorded().created or "", directory.id


def last_useful_attempt(directory: RunDirectory) -> int:
    """The last attempt that finished something which the next one need not repeat; 0 if none did."""
    finished = directory.stages().items()
    return max((int(stage.get("attempt", 0)) for name, stage in finished if is_reusable(name)), default=0)


def unknown(runs: Path, seen: set[str]) -> Iterable[RunDirectory]:
    """Runs under `runs` whose ids are not among those `seen`."""
    for entry in runs.iterdir():
        if entry.name not in seen and is_run_id(entry.name) and (directory := RunDirectory(entry)).exists():
            yield directory


@contextmanager
def unwritten(what: str) -> Iterator[None]:
    """An app starts on a full disk, too: what cannot be written now is told by other files, or written later."""
    try:
        yield
    except OSError:
        _log.exception("It cannot be written: %s.", what)
