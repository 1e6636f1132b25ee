"""The weights of runs: which are there, which are to be kept, and letting them go. No torch.

Numbers never depend on them: they are judged before they go, and the experiment makes them again (core/rebuilds.py).
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import board
from core.errors import InputError, QueueError
from core.jobs import exporting
from core.jobs.failures import full_disk_told
from core.jobs.rundir import RunDirectory
from core.rebuilds import RESULT
from core.study_keep import weighs


class Weights:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(self, home: Path, owner: Callable[[], Any]) -> None:
        self._home, self._owner = home, owner

    def size(self, run_id: str) -> int:
        """Bytes of the models that the run keeps; 0 where it keeps none."""
        return sum(
            path.stat().st_size
            for folder in _folders(RunDirectory.of(self._home / "runs", run_id))
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        )

    def there(self, run_id: str) -> bool:
        """Whether the run's weights are on disk."""
        return any(folder.is_dir() for folder in _folders(RunDirectory.of(self._home / "runs", run_id)))

    def to_come(self, run_id: str) -> bool | None:
        """Whether a run that is not over will keep its weights; None where it is over, or makes none."""
        directory = board.existing(self._home, run_id)
        if directory.status().state.finished:
            return None
        try:
            return directory.keeps_weights() if weighs(directory.experiment()) else None
        except InputError:  # a damaged file: the run will say so
            return None

    @full_disk_told()
    def keep(self, run_id: str, keep: bool) -> None:
        """Say whether a run that waits or works is to keep its weights. QueueError once it is over."""
        self._owner()
        directory = board.existing(self._home, run_id)
        if directory.status().state.finished:
            raise QueueError(f"Run {run_id} is over.", "Make its model again, or let its weights go.")
        directory.write_keep(keep)

    def let_go(self, run_id: str) -> None:
        """Remove the weights of a run that is over; its numbers stay.

        QueueError while something reads them, or where the system refuses: what is left can be let go again.
        """
        self._owner()
        directory = board.existing(self._home, run_id)
        if not directory.status().state.finished:
            raise QueueError(f"Run {run_id} is not over.", "Say that its weights are not to be kept.")
        if any(export.state == "RUNNING" for export in exporting.exports(directory)):
            raise QueueError(f"Run {run_id} is being exported.", "Wait for the export, or stop it.")
        if not self.there(run_id):
            raise InputError(f"Run {run_id} keeps no weights.", "There is nothing to let go.")
        for folder in filter(Path.is_dir, _folders(directory)):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                why = f"{error.strerror or error} ({Path(error.filename or folder).name})"
                raise QueueError(
                    f"The weights of run {run_id} could not be removed: {why}.",
                    "Look who may write in its folder, then let what is left go once more.",
                ) from error
        (directory.path / RESULT).unlink(missing_ok=True)


def _folders(directory: RunDirectory) -> tuple[Path, Path]:
    return directory.model_dir, directory.recovered_dir
