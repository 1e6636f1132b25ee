"""A cancelled run gives its memory back, all of it, soon; and says so."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.device import DeviceInfo
from core.jobs import ending, freeing, processes, supervisor
from core.jobs.freeing import Freed, Held
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.jobs.supervisor import Supervisor

FAMILY = """
import signal, subprocess, sys, time
held = bytearray(30_000_000)
if sys.argv[1:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; print('there', flush=True); time.sleep(600)"],
                             start_new_session=sys.argv[1] == "apart")
else:
    print("there", flush=True)
time.sleep(600)
"""


@pytest.fixture
def family() -> Iterator[Callable[..., psutil.Process]]:
    """A process that holds 30 MB, with or without a child, in a session of its own."""
    made: list[subprocess.Popen[str]] = []

    def begin(*how: str) -> psutil.Process:
        command = [sys.executable, "-c", FAMILY, *how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        made.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        return psutil.Process(process.pid)

    yield begin
    for process in made:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def directory(home: Path) -> RunDirectory:
    folder = RunDirectory(home / "runs" / "20261123-201854-1a2b3c4d-x7y9")
    folder.path.mkdir(parents=True)
    return folder


def test_what_a_worker_holds_is_counted_with_its_children(family: Any) -> None:
    alone, both = freeing.look(family(), "cpu"), freeing.look(family("beside"), "cpu")
    assert (len(alone.family), len(both.family)) == (1, 2)
    assert 30_000_000 < alone.rss < both.rss
    assert both.on_device is None
    assert both.in_use is None


def test_a_child_that_left_the_group_does_not_outlive_the_run(family: Any, directory: RunDirectory) -> None:
    worker = family("apart")
    held = freeing.look(worker, "cpu")
    processes.kill_group(worker)
    os.kill(worker.pid, signal.SIGKILL)
    freed = freeing.settle(directory, held, forced=True)
    assert freed.all
    assert [pid for pid, created in held.family if processes.find(pid, created) is not None] == []
    assert freeing.read(directory) == freed


def test_what_will_not_go_is_named(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeing, "WAIT_S", 0.1)

    class Stuck:
        pid = 17

        def kill(self) -> None:
            raise psutil.AccessDenied(17)

    monkeypatch.setattr(freeing.processes, "find", lambda *_: Stuck())
    freed = freeing.settle(directory, Held("cpu", time.monotonic(), ((17, 1.0),), 5), forced=True)
    assert freed.left == (17,)
    assert not freed.all
    assert freeing.read(directory) == freed


@dataclass
class Card:
    """A GPU as NVML shows it: bytes by process, and bytes in use in all."""

    by_pid: dict[int, int]
    in_use: int = 0
    NVMLError = ValueError

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: Any) -> list[Any]:
        return [type("P", (), {"pid": pid, "usedGpuMemory": used}) for pid, used in self.by_pid.items()]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card({})
    monkeypatch.setattr(freeing, "WAIT_S", 0.1)
    monkeypatch.setattr(freeing, "nvml_handle", lambda device: (made, 0))
    monkeypatch.setattr(
        freeing, "info", lambda device: DeviceInfo("cuda", 0, "GPU", 16 * 10**9, 16 * 10**9 - made.in_use, (7, 5))
    )
    return made


def test_the_gpu_is_asked_by_process(card: Card, family: Any, directory: RunDirectory) -> None:
    worker = family()
    card.by_pid = {worker.pid: 4 * 10**9, 1: 2 * 10**9}
    held = freeing.look(worker, "cuda:0")
    assert held.on_device == 4 * 10**9
    worker.kill()
    still = freeing.settle(directory, held, forced=False)
    assert (still.device_bytes, still.device_left, still.all) == (4 * 10**9, 4 * 10**9, False)
    del card.by_pid[worker.pid]
    gone = freeing.settle(directory, held, forced=False)
    assert (gone.device_bytes, gone.device_left, gone.all) == (4 * 10**9, 0, True)


def test_in_a_container_the_gpu_is_asked_as_a_whole(card: Card, family: Any, directory: RunDirectory) -> None:
    card.by_pid, card.in_use = {99_999: 4 * 10**9}, 5 * 10**9  # the host's number of the same process
    worker = family()
    held = freeing.look(worker, "cuda:0")
    worker.kill()
    card.in_use = 10**9
    freed = freeing.settle(directory, held, forced=False)
    assert (freed.device_bytes, freed.device_left) == (4 * 10**9, 0)


def test_in_a_container_what_does_not_come_back_within_a_second_is_said(
    card: Card, family: Any, directory: RunDirectory
) -> None:
    card.in_use = 7 * 10**9
    worker = family()
    held = freeing.look(worker, "cuda:0", claimed=4 * 10**9)
    worker.kill()
    card.in_use = 6 * 10**9
    freed = freeing.settle(directory, held, forced=False)
    assert (freed.device_bytes, freed.device_left, freed.all) == (4 * 10**9, 3 * 10**9, False)


def test_in_a_container_the_driver_is_given_a_moment(
    card: Card, family: Any, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeing, "WAIT_S", 60.0)
    card.in_use = 5 * 10**9
    worker = family()
    held = freeing.look(worker, "cuda:0", claimed=4 * 10**9)
    worker.kill()
    clears_up = threading.Timer(0.2, setattr, (card, "in_use", 5 * 10**8))  # with the context, which torch counts not
    clears_up.start()
    freed = freeing.settle(directory, held, forced=False)
    clears_up.join()
    assert (freed.device_bytes, freed.device_left, freed.all) == (45 * 10**8, 0, True)


def test_a_device_that_cannot_be_asked_is_not_called_free(
    family: Any, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeing, "nvml_handle", lambda device: None)
    monkeypatch.setattr(freeing, "info", lambda device: DeviceInfo("cpu", 0, "CPU", 10**9, 10**9))
    worker = family()
    held = freeing.look(worker, "cuda:0", claimed=4 * 10**9)
    worker.kill()
    freed = freeing.settle(directory, held, forced=False)
    assert (freed.device_bytes, freed.device_left, freed.asked) == (None, None, False)
    assert freeing.read(directory) == freed


@pytest.mark.parametrize(
    "text", ["", "[]", '{"seconds": "x"}', '{"seconds": 1, "rss": -5, "left": []}', '{"seconds": 1}']
)
def test_a_damaged_word_is_none(directory: RunDirectory, text: str) -> None:
    (directory.path / freeing.FILE).write_text(text)
    assert freeing.read(directory) is None


@pytest.fixture
def boss(home: Path) -> Iterator[Supervisor]:
    made = Supervisor()
    made.start()
    yield made
    made.stop()


def cancelled(boss: Supervisor, run: RunDirectory, until: Any) -> Freed:
    boss.cancel(run.id)
    until(lambda: run.status().state is State.CANCELLED and not boss.view().running, 60)
    freed = freeing.read(run)
    assert freed is not None
    return freed


def test_a_cancelled_run_ends_within_five_seconds_and_its_memory_is_free(
    boss: Supervisor, experiment: Any, run_of: Any, until: Any
) -> None:
    run = run_of(experiment(slow=True))
    boss.enqueue(run.id)
    until(lambda: any(event["kind"] == "progress" and event["unit"] == "windows" for event in run.events()))
    pid = run.status().pid
    freed = cancelled(boss, run, until)
    assert freed.all
    assert not freed.forced
    assert freed.seconds < 5 + supervisor.POLL_S + 1
    assert freed.rss > 100_000_000  # torch alone
    assert not psutil.pid_exists(pid)


def test_a_worker_that_does_not_answer_is_killed_after_twenty_seconds_and_that_is_said(
    boss: Supervisor, experiment: Any, run_of: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ending.KILL_AFTER_S == 20
    monkeypatch.setattr(ending, "KILL_AFTER_S", 0.5)
    run = run_of(experiment(slow=True))
    boss.enqueue(run.id)
    pid = until(lambda: run.status().pid)
    os.kill(pid, signal.SIGSTOP)
    freed = cancelled(boss, run, until)
    assert freed.all
    assert freed.forced


def test_the_page_says_it(directory: RunDirectory) -> None:
    from core.jobs.status import RunStatus
    from pages._parts.runs_ended import cancelled as words

    class Detail:
        status = RunStatus(directory.id, State.CANCELLED, reason="Cancelled.")
        freed: Freed | None = None

    detail: Any = Detail()
    assert words(detail) == "Somebody cancelled this run."
    good = Freed(1.2, False, 1_300_000_000, "cuda:0", 4_000_000_000, 0)
    detail.freed = good
    assert words(detail) == (
        "Somebody cancelled this run. It ended after 1.2 s. 1.3 GB of memory are free again, 4.0 GB on cuda:0: "
        "nothing of it is left."
    )
    detail.freed = replace(good, device_bytes=None, device_left=None)
    assert words(detail) == (
        "Somebody cancelled this run. It ended after 1.2 s. 1.3 GB of memory are free again. "
        "cuda:0 could not be asked whether its memory is free again."
    )
    detail.freed = replace(good, forced=True, device_left=2_000_000_000, left=(17,))
    assert "did not answer and was killed" in words(detail)
    assert "Still there: process 17" in words(detail)
    assert "2.0 GB on cuda:0 are not free yet" in words(detail)
    assert "free again" not in words(detail)
    assert json.dumps(words(detail))
