"""A worker that lives and does nothing: a driver that hangs, a file system that is gone, a lock that nobody gives back.

Work tells of itself every few seconds where it can (core/jobs/events.py); beside it a thread says that the process
lives. Some steps tell nothing for long, and work all the same. So a worker counts as idle where for
`settings.silent_minutes` it told nothing, took next to no processor time, and wrote next to nothing, with all that it
started. The supervisor ends it, and the run goes on from its last finished stage.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from core import settings
from core.jobs.status import RunStatus

LOOK_EVERY_S = 60.0
PROCESSOR_SHARE = 0.02
"""Of one core: a heartbeat takes a tenth of that."""
BYTES_PER_S = 2000.0
"""A heartbeat writes a tenth of that."""
GAP_S = 10.0
"""Looks that are further apart than this: app and worker were both held, as in a container that was paused."""


@dataclass(frozen=True)
class Effort:
    """What a process and its children have done since they began: seconds of processor time, bytes written."""

    processor_s: float
    written: float


@dataclass
class Silence:
    """Since when a worker has done nothing, by this process's clock: that of the machine may be set anew.

    `end_at`: when it is killed unless it moves; `over`: it was asked where it stands, and is to be killed.
    """

    spoke: str | None = None
    since: float = field(default_factory=time.monotonic)
    minutes: float = 0.0
    end_at: float | None = None
    over: bool = False
    _looked: float = field(default_factory=time.monotonic)
    _effort: tuple[float, Effort | None] | None = None

    def too_long(self, status: RunStatus, effort: Callable[[], Effort | None]) -> bool:
        """Look again; whether the worker should be ended now. `effort` is asked about once a minute of silence."""
        now, most = time.monotonic(), settings.silent_minutes()
        gap, self._looked = now - self._looked, now
        if status.spoke != self.spoke or gap > GAP_S or most <= 0:
            self.spoke, self.since, self._effort = status.spoke, now, None
        elif self._effort is None:
            self._effort = (now, effort())
        elif now - self._effort[0] >= min(LOOK_EVERY_S, 15 * most):
            before, self._effort = self._effort, (now, effort())
            if _works(before[1], self._effort[1], now - before[0]):
                self.since = now
        self.minutes = (now - self.since) / 60
        return 0 < most <= self.minutes

    def why(self) -> tuple[str, str] | None:
        """Reason and advice for a worker that was ended for it; None for others."""
        if not self.over:
            return None
        return (
            f"The worker did nothing for {self.minutes:.0f} min and was ended.",
            "Its log says where every thread stood. A driver or a network disk may hang; see the machine's own log.",
        )


def _works(before: Effort | None, after: Effort | None, seconds: float) -> bool:
    """Whether a process did more than say that it lives; where it cannot be asked, it is taken to work."""
    if before is None or after is None:
        return True
    # A child that has ended takes its share with it: any large change is work.
    processor, written = abs(after.processor_s - before.processor_s), abs(after.written - before.written)
    return processor > PROCESSOR_SHARE * seconds or written > BYTES_PER_S * seconds
