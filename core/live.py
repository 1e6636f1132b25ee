"""The board of Runs for many visitors and many runs: what moves is looked at once for all of them.

Looking at the files of what runs and waits costs milliseconds, which twenty open pages would pay every second each;
here it is paid once in `FRESH_S`. What is finished never changes: the newest come out of the store, and are kept until
it changes.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from core import board
from core.jobs.rundir import RunStatus
from core.storage.store import FINISHED, Store

FRESH_S = 0.3
_OVER = "list_contains(?::VARCHAR[], state)"
_NEWEST = "finished DESC NULLS LAST, id DESC"


@dataclass(frozen=True)
class Now:
    """What runs and waits. `runs`: as `board.run_list`, without those that are over; do not change it."""

    statuses: tuple[RunStatus, ...]
    line: board.Line
    runs: pd.DataFrame
    finished: int
    """How many runs are over."""
    mark: tuple[Any, ...]
    """Another one when a run ended, came or went."""

    @property
    def running(self) -> list[RunStatus]:
        """Those that a worker works on."""
        return [status for status in self.statuses if status.state == "RUNNING"]

    @property
    def empty(self) -> bool:
        """Whether there is no run at all."""
        return self.runs.empty and not self.finished


@dataclass(frozen=True)
class _Kept:
    """What was seen, of which version of the store, and when (by the monotonic clock)."""

    version: int
    now: Now
    at: float


class Live:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(self, store: Store, home: Path, sync: Callable[[], None], line: Callable[[], board.Line]) -> None:
        self._store, self._home, self._sync, self._line = store, home, sync, line
        self._lock = threading.Lock()
        self._now: _Kept | None = None
        self._asked = 0
        self._over: tuple[int, tuple[Any, ...]] | None = None
        self._newest: dict[int, tuple[int, pd.DataFrame]] = {}

    def now(self) -> Now:
        """What runs and waits, hardly older than `FRESH_S`, and never from before a run was taken into the store.

        Whoever changes something else, such as the queue's order, says `forget`.
        """
        kept = self._now
        if kept is not None and kept.version == self._store.version:
            if time.monotonic() - kept.at < FRESH_S:
                return kept.now
            if not self._lock.acquire(blocking=False):
                return kept.now  # somebody is looking: twenty pages do not wait for what one of them sees
        else:
            self._lock.acquire()
        try:
            kept = self._now
            if kept is None or kept.version != self._store.version or time.monotonic() - kept.at >= FRESH_S:
                asked = self._asked
                self._sync()
                kept = _Kept(self._store.version, self._look(), time.monotonic())
                if asked == self._asked:  # else something was changed meanwhile: this may be how it was before
                    self._now = kept
            return kept.now
        finally:
            self._lock.release()

    def forget(self) -> None:
        """Something was changed: the next question looks again."""
        self._asked += 1
        self._now = None

    def finished(self, limit: int) -> pd.DataFrame:
        """The newest runs that are over, newest first: columns of `runs` without the experiment's text."""
        with self._lock:
            version, kept = self._store.version, self._newest.get(limit)
            if kept is None or kept[0] != version:
                frame = self._store.runs(_OVER, [list(FINISHED)], order=_NEWEST, limit=limit)
                if len(self._newest) > 4:
                    self._newest.clear()
                kept = self._newest[limit] = (version, frame.drop(columns="experiment"))
            return kept[1].copy()

    def _look(self) -> Now:
        statuses, line = board.live(self._store, self._home), self._line()
        version = self._store.version
        if self._over is None or self._over[0] != version:
            query = f"SELECT count(*), max(finished), bit_xor(hash(id)) FROM runs WHERE {_OVER}"
            self._over = (version, self._store.rows(query, [list(FINISHED)])[0])
        over = self._over[1]
        runs = self._store.runs(f"NOT {_OVER}", [list(FINISHED)])
        return Now(tuple(statuses), line, board.run_list(runs, statuses, line), int(over[0]), over)
