"""What a pipeline says between two steps that can be told, and how it is stopped there."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import Cancelled
from core.jobs import events
from core.jobs.events import EventWriter
from core.jobs.journal import Journal
from core.jobs.rundir import RunDirectory
from core.jobs.states import State


class Asked:
    """A stop that is asked for in the middle of the work."""

    asked = False

    def check(self) -> None:
        if self.asked:
            raise Cancelled


def told(directory: RunDirectory) -> list[tuple[str, Any, Any]]:
    return [
        (each["stage"], each["done"], each.get("task")) for each in directory.events() if each["kind"] == "progress"
    ]


def test_a_tick_says_the_last_progress_again_and_ends_the_work_where_it_was_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_EVERY_S", 0.0)  # what says nothing new is written at once
    directory, stop = RunDirectory(tmp_path / "20261123-201854-1a2b3c4d-x7y9"), Asked()
    with EventWriter(directory.events_file) as writer:
        writer.state(State.RUNNING)
        journal = Journal(directory, writer, stop.check)
        journal.begin("calibrate")
        journal.tick()  # nothing was told yet
        journal.progress(task="read")(1, 4, "windows")
        journal.tick()
        assert told(directory) == [("calibrate", 1, "read")] * 2
        journal.begin("prune")
        journal.tick()  # and nothing of the stage before
        assert told(directory) == [("calibrate", 1, "read")] * 2
        stop.asked = True
        with pytest.raises(Cancelled):
            journal.tick()
