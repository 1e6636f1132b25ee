"""The command for when the queue is empty: once, after a grace, never unasked, and never from a file that travels."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.__main__ import main
from core.errors import EspalierError, InputError
from core.experiment import Experiment
from core.jobs import after_queue
from core.jobs.after_queue import GRACE_S, AfterQueue
from core.service import Service
from core.study import Study


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def reaped() -> Iterator[None]:
    """Every command that was started has ended when its test has."""
    yield
    for process in after_queue._started:
        process.wait(60)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def after(home: Path, clock: Clock) -> AfterQueue:
    """One whose command leaves a mark."""
    made = AfterQueue(home, clock.monotonic)
    made.set_command(f"echo ran >> '{home}/mark'")
    return made


def ran(home: Path, seconds: float = 3.0) -> int:
    """How often the command has run, after a moment for it to do so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (home / "mark").exists():
        time.sleep(0.02)
    return (home / "mark").read_text().count("ran") if (home / "mark").exists() else 0


def test_it_runs_once_after_the_last_run_and_a_grace_and_is_off_again(
    after: AfterQueue, clock: Clock, home: Path
) -> None:
    after.switch(True)
    after.look(busy=True)
    after.look(busy=False)
    assert after.view().seconds == GRACE_S
    clock.now += GRACE_S - 1
    after.look(busy=False)
    assert after.view().seconds == 1
    clock.now += 2
    after.look(busy=False)
    assert ran(home) == 1
    assert not after.view().on
    for busy in (True, False, False):
        clock.now += 2 * GRACE_S
        after.look(busy=busy)
    assert ran(home, 0.3) == 1


def test_a_run_that_comes_in_the_grace_puts_it_off(after: AfterQueue, clock: Clock, home: Path) -> None:
    after.switch(True)
    after.look(busy=True)
    after.look(busy=False)
    clock.now += GRACE_S - 1
    after.look(busy=True)
    clock.now += 10
    after.look(busy=False)
    assert after.view().seconds == GRACE_S
    after.switch(False)
    clock.now += 2 * GRACE_S
    after.look(busy=False)
    assert ran(home, 0.3) == 0


@pytest.mark.parametrize("on", [True, False])
def test_a_queue_that_never_worked_does_not_end(after: AfterQueue, clock: Clock, home: Path, on: bool) -> None:
    """A start of the app on an empty queue must not shut the machine down; nor what is off."""
    after.switch(on)
    for busy in (False, False) if on else (True, False, False):
        after.look(busy=busy)
        clock.now += 2 * GRACE_S
    after.look(busy=False)
    assert ran(home, 0.3) == 0
    if not on:  # switched on after the last run: that one counts no more
        after.switch(True)
        after.look(busy=False)
        clock.now += 2 * GRACE_S
        after.look(busy=False)
        assert ran(home, 0.3) == 0


def test_what_is_no_command_is_refused_and_a_damaged_file_runs_nothing(
    after: AfterQueue, clock: Clock, home: Path
) -> None:
    for text in ("a\nb", "x" * 501):
        with pytest.raises(InputError):
            after.set_command(text)
    after.set_command("")
    with pytest.raises(InputError, match="No command"):
        after.switch(True)
    for content in ("[", '{"when_empty": ["rm"], "when_empty_on": true}', '{"when_empty_on": true}'):
        (home / "settings.json").write_text(content)
        assert not after.view().on
        for busy in (True, False, False):
            after.look(busy=busy)
            clock.now += 2 * GRACE_S


def test_a_new_command_is_off_until_it_is_switched_on(after: AfterQueue) -> None:
    after.switch(True)
    after.set_command("true")
    assert not after.view().on


def test_no_study_and_no_experiment_can_say_it() -> None:
    for make in (Study.from_yaml, Experiment.from_yaml):
        with pytest.raises(EspalierError):
            make("name: x\nwhen_empty: reboot")
    with pytest.raises(EspalierError):
        Study.from_yaml("name: x\nruns: [{when_empty: reboot}]")


def test_the_supervisor_sees_the_end_of_its_queue(home: Path, experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(after_queue, "GRACE_S", 0.2)
    service = Service()
    try:
        service.after_queue.set_command("echo ran > $ESPALIER_HOME/mark")
        service.after_queue.switch(True)
        assert ran(home, 1.0) == 0
        (run_id,) = service.submit([experiment()])
        assert ran(home, 60) == 1
        assert service.run_detail(run_id).status.state == "COMPLETE"
        assert not service.after_queue.view().on
    finally:
        service.close()


def test_the_command_line_sets_and_shows_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "when-empty"]) == 0
    assert "No command" in capsys.readouterr().out
    assert main(["queue", "when-empty", "--on"]) == 2
    assert main(["queue", "when-empty", "shutdown now"]) == 0
    assert capsys.readouterr().out.startswith("Off")
    assert main(["queue", "when-empty", "--on"]) == 0
    assert capsys.readouterr().out.startswith("On")
    assert main(["queue", "show"]) == 0
    said = capsys.readouterr().out
    assert "Nothing waits." in said
    assert "shutdown now" in said
    assert main(["queue", "when-empty", "--forget"]) == 0
    assert "No command" in capsys.readouterr().out
