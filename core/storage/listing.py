"""Which folders of runs there are, without reading ten thousand names at every question."""

import os
import time
from pathlib import Path

from core.jobs.rundir import is_run_id

SETTLED_S = 2.0
"""A folder whose time is younger may change once more without its time showing it: clocks of file systems tick."""


class Listing:
    """Names of the folders of runs under a home. Read again only when something came or went."""

    def __init__(self) -> None:
        self._known: tuple[Path, int] | None = None
        self._names: frozenset[str] = frozenset()

    def names(self, home: Path) -> frozenset[str]:
        """Links, and names that are no run id, are left out."""
        runs = home / "runs"
        try:
            mark = runs.stat().st_mtime_ns
        except FileNotFoundError:
            return frozenset()
        if self._known != (runs, mark):
            settled = time.time_ns() - mark > SETTLED_S * 1e9
            self._names = frozenset(_read(runs))
            self._known = (runs, mark) if settled else None
        return self._names


def _read(runs: Path) -> list[str]:
    try:
        with os.scandir(runs) as entries:
            return [entry.name for entry in entries if is_run_id(entry.name) and entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def run_directories(home: Path) -> list[Path]:
    """Folders of runs under `home`, by name."""
    return [home / "runs" / name for name in sorted(_read(home / "runs"))]
