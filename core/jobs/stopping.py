"""How a worker is asked to stop: a signal sets a flag, the next progress call raises Cancelled.

Signals are noticed at once even while the main thread is inside a long computation of a library: the interpreter's
signal handler writes to a socket (`signal.set_wakeup_fd`) that a thread listens on. If the work has not reached a
progress call after some seconds, that thread ends the process, which is safe because every file is written whole or not
at all.
"""

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

from core.errors import Cancelled

GRACE_S = 4.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether this process was asked to stop. `install` must be called from the main thread."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._over = threading.Event()
        self._force: Callable[[], None] = lambda: None

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raise Cancelled if a signal came."""
        if self.asked:
            raise Cancelled

    def install(self, force: Callable[[], None]) -> None:
        """Listen to SIGTERM and SIGINT from now on; `force` ends the process, called from a thread after the grace."""
        self._force = force
        ear, mouth = socket.socketpair()
        ear.setblocking(True)
        mouth.setblocking(False)
        signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._handle)
        self._mouth = mouth  # kept open
        threading.Thread(target=self._listen, args=(ear,), name="signals", daemon=True).start()

    def done(self) -> None:
        """The work ended by itself: nothing is forced any more."""
        self._over.set()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._asked.set()

    def _listen(self, ear: socket.socket) -> None:
        grace: threading.Thread | None = None
        while number := ear.recv(1):
            if number[0] not in _SIGNALS:
                continue
            self._asked.set()
            if grace is None:
                grace = threading.Thread(target=self._force_later, name="grace", daemon=True)
                grace.start()
            elif number[0] == signal.SIGINT:
                self._force_now()  # a second Ctrl-C: somebody is in a hurry

    def _force_later(self) -> None:
        if not self._over.wait(GRACE_S):
            self._force_now()

    def _force_now(self) -> None:
        if not self._over.is_set():
            self._force()
