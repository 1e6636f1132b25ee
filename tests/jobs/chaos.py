"""Workers and apps that die at a moment that is asked for: functions for forks (tests/forks.py).

A moment is one thing that a process does to a file under the home or the cache: it opens one for writing, renames,
removes, makes a folder, or writes a line. At the n-th it is killed by SIGKILL, before the thing is done; with `torn`,
after half of a line was written; with `full`, it lives on and from then on the disk has no room. It runs what a worker
or an app runs. Only imports are saved, which are not what is tested.

A request: {"die_at": n, or "die_on": [pattern, which of those that fit], "torn": bool, "full": bool, "tell": a file for
the names of the moments gone by, if it was not killed}.
"""

import errno
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.forks import Subprocess, fork_verification

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Moments:
    """Counts what this process does to files below some folders, and ends it at the n-th."""

    def __init__(self, roots: list[str], request: dict[str, Any]) -> None:
        self.roots = tuple(os.path.realpath(root) for root in roots)
        self.die_at, self.torn, self.full = request.get("die_at"), bool(request.get("torn")), bool(request.get("full"))
        self.pattern, self.left = request.get("die_on") or ("", 0)
        self.seen: list[str] = []
        self.on = True
        self._write = os.write

    def install(self) -> None:
        """Watch from now on; it cannot be undone."""
        os.write = self._watched_write
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or not (event in CHANGES or event == "open"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        self._pass(event, arguments[0])

    def _watched_write(self, handle: int, data: bytes) -> int:
        half = data[: len(data) // 2] if self.torn else b""
        self._pass("write", f"/proc/self/fd/{handle}", lambda: self._write(handle, half))
        return self._write(handle, data)

    def _pass(self, event: str, path: Any, last: Callable[[], Any] = lambda: None) -> None:
        if not self.on or not isinstance(path, str | bytes | os.PathLike):
            return
        self.on = False  # what follows is ours
        place = os.path.realpath(os.fsdecode(path))
        root = next((root for root in self.roots if place.startswith(root + os.sep)), None)
        idle = place.endswith(".lock") or (event == "os.mkdir" and Path(place).exists())
        if root is not None and not idle:
            self.seen.append(f"{event} {os.path.relpath(place, root)}")
            if self.left and re.match(self.pattern, self.seen[-1]):
                self.left -= 1
                self.die_at = self.die_at if self.left else len(self.seen)
            if self.full and self.die_at is not None and len(self.seen) >= self.die_at and event in ("open", "write"):
                self.on = True
                raise OSError(errno.ENOSPC, "No space left on device")
            if len(self.seen) == self.die_at and not self.full:
                last()
                os.kill(os.getpid(), signal.SIGKILL)
        self.on = True


def _moments(request: dict[str, Any]) -> Moments:
    return Moments([os.environ["ESPALIER_HOME"], os.environ["ESPALIER_CACHE"]], request)


def _tell(moments: Moments, request: dict[str, Any]) -> None:
    moments.on = False
    Path(request["tell"]).write_text(json.dumps(moments.seen))


def worker(request: dict[str, Any], directory: str) -> int:
    """A worker at a run."""
    from core.jobs import worker

    fork_verification()
    moments = _moments(request)
    moments.install()
    try:
        return worker.main([directory])
    finally:
        _tell(moments, request)


def app(request: dict[str, Any], *texts: str) -> int:
    """What an app does: it owns the store, queues these experiments, and sees the queue to its end."""
    from core.experiment import Experiment
    from core.jobs import places, processes
    from core.service import Service

    processes.subprocess = Subprocess  # type: ignore[assignment]
    if "ESPALIER_TEST_DISK" in os.environ:
        places.DISK_KEPT_FREE = int(os.environ["ESPALIER_TEST_DISK"])
    moments = _moments(request)
    moments.install()
    service = Service()
    service.submit([Experiment.from_yaml(text) for text in texts])
    while service.run_list()["state"].isin(("RUNNING", "WAITING", "INTERRUPTED")).any():
        time.sleep(0.05)
    service.close()
    _tell(moments, request)
    return 0
