"""Who owns a store: the one process whose supervisor runs its queue and which has its database open.

runs/.supervisor.lock   held by the owner all its life; the kernel frees it when the owner ends, however it ends
runs/.supervisor.json   who that is, for the banner of those who come second
"""

import logging
import platform
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import QueueError
from core.jobs import processes
from core.jobs.rundir import held, read_json, to_json, write_atomic
from core.jobs.status import now_iso

WAIT_S = 0.3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that owns a store. `pid` None: it has not said who it is; `host` '': this machine."""

    pid: int | None = None
    host: str = ""

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        return f"{who} on {self.host}" if self.host else who


def lock_of(home: Path) -> FileLock:
    """The lock of a store, not taken. It waits a moment: whoever looks whether it is free holds it for microseconds."""
    return FileLock(home / "runs" / ".supervisor.lock", timeout=WAIT_S, poll_interval=0.02, thread_local=False)


def take(lock: FileLock, home: Path) -> None:
    """Take the lock and leave word of who has it. QueueError if another process was first."""
    (home / "runs").mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise QueueError(
            f"Another Espalier ({_said(home)}) works on {home}.", "Use that one, or stop it first."
        ) from None
    word = {**processes.identity(), "host": platform.node(), "time": now_iso()}
    try:
        write_atomic(home / "runs" / ".supervisor.json", to_json(word))
    except OSError:  # a full disk: the lock is what counts
        _log.exception("Who owns %s cannot be written down.", home)


def owner_of(home: Path) -> Owner | None:
    """Who owns the store now; None if nobody does. The lock is looked at, not taken."""
    lock = home / "runs" / ".supervisor.lock"
    return None if not held(lock) else _said(home)


def _said(home: Path) -> Owner:
    """What the owner said of itself, unless it is the word of one that is gone."""
    word = read_json(home / "runs" / ".supervisor.json") or {}
    pid, created, host = word.get("pid"), word.get("pid_created"), str(word.get("host") or "")
    if not isinstance(pid, int) or not isinstance(created, int | float):
        return Owner()
    if host and host != platform.node():
        return Owner(pid, host)
    return Owner(pid) if processes.find(pid, created) is not None else Owner()
