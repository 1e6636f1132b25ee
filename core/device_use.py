"""Who may work on a device now: everybody, until somebody measures speed, who then has it alone.

Two files a device lie under the cache, shared by all homes of this user, and hold no content but their locks:

| file | shared lock | exclusive lock |
|---|---|---|
| `<device>.working` | whoever works, while it works | the measurement |
| `<device>.measuring` | – | the measurement, before it asks for the other |

Those that work look at `measuring` between two steps (`Use.pass_by`); where it is taken they let go of `working` until
it is free again. So a measurement is never kept waiting by a stream of short steps, and locks of processes that die
are gone with them. Foreign programs know none of this: core/evaluation/load.py notices them.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core import settings

POLL_S = 0.05
PATIENCE_S = 600.0
"""Longest wait for others to come to a pause; then it is measured beside them, and said."""

Tick = Callable[[], None]


def _nothing() -> None:
    pass


def _name(device: str) -> str:
    """The device's name for all processes, however CUDA_VISIBLE_DEVICES counts for this one."""
    from core.device import identity

    name = identity(device)
    # Nodes of a cluster may share the cache, and each has a processor of its own; a GPU's UUID is nobody else's.
    return name if name.startswith("GPU-") else f"{name}-{platform.node()}"


def _open(device: str, kind: str) -> int:
    folder = settings.cache() / "devices"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_name(device)}.{kind}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(handle: int, how: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free(handle: int) -> None:
    import fcntl

    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)


class Use:
    """One process's work on a device (`cpu`, `cuda:0`). Not for several threads at once.

    A cache that cannot be written to makes it do nothing: locks are a courtesy, and no reason for a run to fail.
    """

    def __init__(self, device: str | None) -> None:
        self._working: int | None = None
        self._measuring: int | None = None
        self._held = False
        self._alone = False
        if device is None:  # nobody's device: nothing is ever waited for
            return
        with suppress(OSError):
            self._measuring = _open(device, "measuring")
            self._working = _open(device, "working")

    def closed(self) -> bool:
        """Whether somebody else measures, so that no step may begin. Takes microseconds."""
        import fcntl

        if self._measuring is None or self._alone:
            return False
        if not _try(self._measuring, fcntl.LOCK_SH):
            return True
        _free(self._measuring)
        return False

    def enter(self) -> bool:
        """Begin to work; False, and nothing is taken, while somebody measures."""
        import fcntl

        if self._working is None or self._held or self._alone:
            return True
        if self.closed() or not _try(self._working, fcntl.LOCK_SH):
            return False
        self._held = True
        return True

    def leave(self) -> None:
        """A pause: others may measure."""
        if self._working is not None and self._held:
            _free(self._working)
            self._held = False

    def pass_by(self, tick: Tick = _nothing) -> float:
        """Between two steps: go on at once, or wait until nobody measures; returns the seconds waited.

        `tick` is called while it waits and may raise.
        """
        if self._working is None or self._alone or (self._held and not self.closed()):
            return 0.0
        self.leave()
        begun = time.monotonic()
        while not self.enter():
            tick()
            time.sleep(POLL_S)
        return time.monotonic() - begun

    @contextmanager
    def alone(self, tick: Tick = _nothing, patience: float = PATIENCE_S) -> Iterator[bool]:
        """Have the device without others that follow these rules; yields whether all of them paused in time.

        Inside, `enter` and `pass_by` of this object return at once. Without a place for the files it waits for nobody.

        `tick` is called while it waits for them and may raise.
        """
        import fcntl

        if self._working is None or self._measuring is None:
            yield True
            return
        held = self._held
        self.leave()
        try:
            while not _try(self._measuring, fcntl.LOCK_EX):
                tick()
                time.sleep(POLL_S)
            deadline = time.monotonic() + patience
            while not (alone := _try(self._working, fcntl.LOCK_EX)) and time.monotonic() < deadline:
                tick()
                time.sleep(POLL_S)
            self._alone = True
            yield alone
        finally:
            self._alone = False
            _free(self._working)
            _free(self._measuring)
            if held:
                self.pass_by()

    def close(self) -> None:
        """Give the files back; the object is then of no use."""
        self.leave()
        for handle in (self._working, self._measuring):
            if handle is not None:
                os.close(handle)
        self._working = self._measuring = None


def lock_files(device: str) -> list[Path]:
    """Where the locks of a device lie."""
    return [settings.cache() / "devices" / f"{_name(device)}.{kind}" for kind in ("working", "measuring")]
