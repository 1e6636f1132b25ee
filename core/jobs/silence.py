"""A worker that lives and does nothing: a driver that hangs, a file system that is gone, a lock that nobody gives back.

Work tells of itself at least every few seconds, however long it lasts (core/jobs/events.py); beside it a thread says
that the process lives. Where for `settings.silent_minutes` there is only the latter, or nothing, the supervisor ends
the worker, and the run goes on from its last finished stage.
"""

import time
from dataclasses import dataclass, field

from core import settings
from core.jobs.states import State
from core.jobs.status import RunStatus


@dataclass
class Silence:
    """Since when a worker has said nothing new, by this process's clock: that of the machine may be set anew.

    `end_at`: when it is killed unless it speaks; `over`: it was.
    """

    spoke: str | None = None
    since: float = field(default_factory=time.monotonic)
    minutes: float = 0.0
    end_at: float | None = None
    over: bool = False

    def too_long(self, status: RunStatus) -> bool:
        """Look again; whether the worker should be ended now."""
        now = time.monotonic()
        if status.state is not State.RUNNING or status.spoke != self.spoke:
            self.spoke, self.since = status.spoke, now
        self.minutes = (now - self.since) / 60
        most = settings.silent_minutes()
        return 0 < most <= self.minutes

    def why(self) -> tuple[str, str] | None:
        """Reason and advice for a worker that was ended for it; None for others."""
        if not self.over:
            return None
        return (
            f"The worker did nothing for {self.minutes:.0f} min and was ended.",
            "Its log says where every thread stood. A driver or a network disk may hang; see the machine's own log.",
        )
