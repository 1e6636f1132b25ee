"""The book that a pipeline keeps while it works: which stage runs, how far it is, what it found, how long it took."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from core.device_use import Use
from core.jobs.events import EventWriter
from core.jobs.rundir import RunDirectory
from core.progress import Progress

MEASURED = "waits: another run measures speed on this device"
_log = logging.getLogger(__name__)


class Journal:
    """Events and stage files of one attempt at a run. `check` raises Cancelled when the run was asked to stop."""

    def __init__(self, directory: RunDirectory, events: EventWriter, check: Callable[[], None]) -> None:
        self.directory = directory
        self.events = events
        self.check = check
        self.stage: str | None = None
        self.use = Use(None)
        self._begun = 0.0
        self._told: Callable[[], None] = lambda: None

    def work_on(self, device: str) -> None:
        """From now on this run's work is on `device`: it pauses where another one measures speed there."""
        self.use.close()
        self.use = Use(device)
        self._pause(self.stage or "")

    def begin(self, stage: str, **more: Any) -> None:
        """A stage starts."""
        self.check()
        self.stage, self._begun = stage, time.monotonic()
        self._told = lambda: None
        _log.info("Stage %s begins.", stage)
        self.events.stage(stage, "started", **more)

    def finish(self, found: Mapping[str, Any], *, extra_seconds: float = 0.0, **more: Any) -> None:
        """The stage is done: its file is written whole, then the event. `more` goes into the event too."""
        stage = self.stage
        assert stage is not None
        seconds = round(time.monotonic() - self._begun + extra_seconds, 3)
        self.write(stage, found, seconds)
        self.events.stage(stage, "finished", seconds=seconds, **more)
        _log.info("Stage %s took %.1f s.", stage, seconds)
        self.stage = None

    def write(self, name: str, found: Mapping[str, Any], seconds: float) -> None:
        """Write the file of a finished stage, or of a part of one."""
        kept = {"attempt": self.events.attempt, "seconds": seconds, "memory": peak_memory(), **found}
        self.directory.write_stage(name, kept)

    def reuse(self, stage: str) -> dict[str, Any] | None:
        """What an earlier attempt found in this stage, told as an event; None if it must be done."""
        found = self.directory.stage(stage)
        if found is not None:
            self.events.stage(stage, "reused", attempt_of=found.get("attempt"))
        return found

    def progress(self, stage: str | None = None, task: str | None = None) -> Progress:
        """A Progress for the present stage (or the named one) that also ends the work when it was asked to stop."""
        name = stage or self.stage
        assert name is not None

        def tell(done: float, total: float, unit: str) -> None:
            self.check()
            self._pause(name)
            self._told = partial(self.events.progress, name, done, total, unit, task)
            self._told()

        return tell

    def tick(self) -> None:
        """Between two things that can be told: the same again, which ends the work if it was asked to stop."""
        self.check()
        self._pause(self.stage or "")
        self._told()

    def _pause(self, stage: str) -> None:
        """Let others measure, if they are about to."""

        def tick() -> None:
            self.check()
            self.events.progress(stage, 0, 1, "pause", MEASURED)

        self.use.pass_by(tick)

    def say(self, text: str) -> None:
        """Say something in the log that the result does not need."""
        _log.info(text)

    def warn(self, text: str) -> None:
        """Say something that belongs beside the result; repeated attempts say it again, results hold it once."""
        _log.warning(text)
        self.events.warning(text, self.stage)


def peak_memory() -> dict[str, int]:
    """`peak_rss_bytes` of this process so far and `peak_device_bytes` that torch held on its GPUs."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        found["peak_device_bytes"] = sum(cuda.max_memory_allocated(i) for i in range(cuda.device_count()))
    return found
