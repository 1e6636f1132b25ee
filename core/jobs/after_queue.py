"""A command that runs once, when the queue has become empty: to shut the machine down after the last run, say.

What runs is text that a person typed into a terminal of this machine (`python -m core queue when-empty`), kept in the
home's settings.json. A page can switch it on, after showing it, and off; no page, study, experiment or imported file
can say what it is. It is off again before it runs, so that the next start does not shut the machine down once more.
"""

import logging
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core import settings
from core.errors import InputError
from core.preferences import Preferences

GRACE_S = 60.0
LOG = "after_queue.log"
MAX_LENGTH = 500
_COMMAND, _ON = "when_empty", "when_empty_on"
_started: list["subprocess.Popen[bytes]"] = []  # kept to be reaped
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AfterView:
    """What happens when the queue is empty. seconds: until it does, while the queue is empty; else None."""

    command: str
    on: bool
    seconds: float | None = None


class AfterQueue:
    """Watches for the queue's end; `look` is called by the supervisor's thread alone, the rest by anybody."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._kept = Preferences(home)
        self._clock = clock
        self._worked = False
        self._due: float | None = None

    def view(self) -> AfterView:
        """What is set now."""
        kept = self._kept.read()
        command = kept.get(_COMMAND)
        known = isinstance(command, str) and 0 < len(command) <= MAX_LENGTH
        due = self._due
        left = None if due is None else max(due - self._clock(), 0.0)
        return AfterView(str(command) if known else "", known and kept.get(_ON) is True, left)

    def set_command(self, command: str) -> None:
        """Keep a command, switched off; '' forgets it. Only for a terminal of this machine."""
        text = command.strip()
        if len(text) > MAX_LENGTH or any(ord(letter) < 32 for letter in text):
            raise InputError(f"The command has {len(text)} characters, or some that are none.",
                             f"One line of at most {MAX_LENGTH}; put more into a script.")  # fmt: skip
        self._kept.write(**{_COMMAND: text or None, _ON: None})
        self._due = None

    def switch(self, on: bool) -> None:
        """Run the command when the queue is next empty, or do not. InputError where none is set."""
        if on and not self.view().command:
            raise InputError("No command is set for when the queue is empty.",
                             "Set it in a terminal: python -m core queue when-empty COMMAND.")  # fmt: skip
        self._kept.write(**{_ON: True if on else None})
        self._due = None

    def look(self, busy: bool) -> None:
        """Called again and again with whether anything runs or waits. Only a queue that was seen busy ends."""
        if busy:
            self._worked, self._due = True, None
            return
        if not self._worked:
            return
        view = self.view()
        if not view.on:
            self._worked, self._due = False, None
        elif self._due is None:
            self._due = self._clock() + GRACE_S
            _log.warning("The queue is empty: in %.0f s this runs, unless it is called off: %s", GRACE_S, view.command)
        elif self._clock() >= self._due:
            self._worked, self._due = False, None
            self.switch(False)
            self._run(view.command)

    def _run(self, command: str) -> None:
        _log.warning("The queue is empty: %s", command)
        environment = os.environ | {"ESPALIER_HOME": str(self._home)}
        with (self._home / LOG).open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                cwd=settings.REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _started[:] = [*(each for each in _started if each.poll() is None), process]
