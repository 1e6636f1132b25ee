"""The supervisor with real workers: order, cancel, death of either, and the next one."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import InputError, QueueError
from core.jobs import ending, processes, silence, supervisor
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.jobs.status import RunStatus
from core.jobs.supervisor import Supervisor


@pytest.fixture
def make() -> Iterator[Callable[..., Supervisor]]:
    """Started supervisors; afterwards they are stopped and their workers killed."""
    made: list[Supervisor] = []

    def begin(**how: Any) -> Supervisor:
        one = Supervisor(**how)
        one.start()
        made.append(one)
        return one

    yield begin
    for one in made:
        active = list(one._active.values())
        one.stop()
        for run in active:
            if (process := one._process_of(run)) is not None:
                processes.kill_group(process)
    for process in supervisor._left_running:
        process.wait(timeout=60)


def progresses(directory: RunDirectory) -> bool:
    return any(event["kind"] == "progress" and event["unit"] == "windows" for event in directory.events())


def test_runs_are_done_one_after_the_other_and_every_change_is_told(
    make: Any, experiment: Any, run_of: Any, until: Any
) -> None:
    told: list[str] = []
    boss = make(on_change=told.append)
    runs = [run_of(experiment()) for _ in range(2)]
    for run in runs:
        boss.enqueue(run.id, hash="ab", resolved={"device": "cpu"})
    until(lambda: runs[0].status().state is State.RUNNING)
    assert boss.view().running == (runs[0].id,)
    assert boss.view().waiting == (runs[1].id,)
    assert runs[1].status().state is State.WAITING
    until(lambda: all(run.status().state is State.COMPLETE for run in runs) and not boss.view().running)
    assert runs[0].status().finished <= runs[1].status().started
    assert {run.id for run in runs} == set(told)
    assert json.loads((boss.home / "queue.json").read_text())["order"] == []


def test_who_looks_at_the_queue_does_not_wait_for_a_disk_that_is_slow(
    make: Any, experiment: Any, run_of: Any, until: Any
) -> None:
    boss = make()
    boss.pause()
    run, begun, done = run_of(experiment()), threading.Event(), threading.Event()
    boss.enqueue(run.id)
    assert boss.view().waiting == (run.id,)

    def work() -> None:
        with boss._lock:  # as while it starts a worker
            begun.set()
            done.wait(20)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert begun.wait(20)
        asked = time.monotonic()
        assert boss.view().waiting == (run.id,)
        assert time.monotonic() - asked < 5
        assert not done.is_set()
    finally:
        done.set()
        worker.join()
    boss.cancel(run.id)
    assert boss.view().waiting == ()


@pytest.mark.fresh
def test_a_killed_worker_is_started_again_and_the_run_ends_well(
    make: Any, experiment: Any, run_of: Any, until: Any, text: Path
) -> None:
    boss = make()
    run = run_of(experiment(slow=True))
    boss.enqueue(run.id)
    until(lambda: progresses(run))
    text.write_text(text.read_text()[:2000])  # the second attempt is quick
    os.kill(run.status().pid, signal.SIGKILL)
    until(lambda: run.status().attempt == 2)
    until(lambda: run.status().state.finished)
    status = run.status()
    assert (status.state, status.attempt) == (State.COMPLETE, 2)


def test_a_run_that_never_gets_further_fails_after_three_starts(
    make: Any, experiment: Any, run_of: Any, until: Any
) -> None:
    boss = make()
    run, after = run_of(experiment()), run_of(experiment())
    boss.enqueue(run.id)
    boss.enqueue(after.id)
    killed: set[int] = set()

    def kill() -> bool:
        status = run.status()
        if status.state is State.RUNNING and status.pid not in killed:
            killed.add(status.pid)
            os.kill(status.pid, signal.SIGKILL)
        return status.state.finished

    until(kill)
    status = run.status()
    assert status.state is State.FAILED
    assert len(killed) == status.attempt == 3
    assert status.cause == "killed"
    assert "SIGKILL" in status.reason
    assert "3 times" in status.reason
    assert "memory" in status.advice
    until(lambda: after.status().state is State.RUNNING)  # one bad job does not end the night's queue


def test_waiting_runs_are_cancelled_moved_deleted_and_held_back_by_a_pause(
    make: Any, experiment: Any, run_of: Any
) -> None:
    boss = make()
    boss.pause()
    one, two, three = (run_of(experiment()) for _ in range(3))
    for run in (one, two, three, one):
        boss.enqueue(run.id)
    boss.move(three.id, -1)
    assert boss.view().waiting == (one.id, three.id, two.id)
    boss.cancel(one.id)
    assert one.status().state is State.CANCELLED
    boss.delete(two.id)
    assert not two.path.exists()
    assert boss.view().waiting == (three.id,)
    assert boss.view().paused
    with pytest.raises(QueueError, match="is CANCELLED already"):
        boss.cancel(one.id)
    with pytest.raises(QueueError, match="not waiting"):
        boss.move(one.id, 1)
    with pytest.raises(InputError, match="not the id of a run"):
        boss.delete("../runs")
    assert three.status().state is State.WAITING


def test_a_running_run_is_cancelled(make: Any, experiment: Any, run_of: Any, until: Any) -> None:
    boss = make()
    run = run_of(experiment(slow=True))
    boss.enqueue(run.id)
    until(lambda: progresses(run))
    with pytest.raises(QueueError, match="is running"):
        boss.delete(run.id)
    pid = run.status().pid
    boss.cancel(run.id)
    boss.cancel(run.id)  # an impatient click
    until(lambda: run.status().state is State.CANCELLED, 60)
    until(lambda: not boss.view().running)
    assert not psutil.pid_exists(pid)


def test_a_worker_that_does_not_answer_is_killed_with_its_children(
    make: Any, experiment: Any, run_of: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "KILL_AFTER_S", 0.5)
    boss = make()
    run = run_of(experiment(slow=True))
    boss.enqueue(run.id)
    pid = until(lambda: run.status().pid)
    os.kill(pid, signal.SIGSTOP)  # it cannot even notice the request
    boss.cancel(run.id)
    until(lambda: run.status().state is State.CANCELLED, 60)
    until(lambda: not boss.view().running)
    assert not psutil.pid_exists(pid)
    assert not run.worker_lives()


def test_a_worker_that_falls_silent_says_where_it_stands_and_its_run_goes_on(
    make: Any, experiment: Any, run_of: Any, until: Any, monkeypatch: pytest.MonkeyPatch, text: Path
) -> None:
    """The text is a pipe that nobody writes to: who opens it waits for ever, while the heartbeat goes on."""
    monkeypatch.setenv("ESPALIER_SILENT_MINUTES", "0.1")
    monkeypatch.setattr(ending, "WAKES_WITHIN_S", 0.2)
    run = run_of(experiment())
    written = text.rename(text.with_name("written.txt"))
    os.mkfifo(text)
    told: set[str] = set()
    boss = make(on_change=lambda _: told.update(filter(None, [(run.read_state() or {}).get("reason")])))
    boss.enqueue(run.id)
    until(lambda: run.status().unit == "checks")
    boss.pause()
    until(lambda: told)
    monkeypatch.setenv("ESPALIER_SILENT_MINUTES", "0")
    written.rename(text)
    boss.resume()
    until(lambda: run.status().state.finished, 60)
    assert (run.status().state, run.status().attempt) == (State.COMPLETE, 2)
    assert told == {"The worker did nothing for 0 min and was ended."}
    assert "in check_corpus" in run.log_file.read_text()


def test_a_worker_that_the_machine_stopped_is_ended_and_started_again(
    make: Any, experiment: Any, run_of: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_SILENT_MINUTES", "0.1")
    monkeypatch.setattr(ending, "WAKES_WITHIN_S", 0.5)
    told: set[str] = set()
    run = run_of(experiment(slow=True))
    boss = make(on_change=lambda _: told.update(filter(None, [(run.read_state() or {}).get("reason")])))
    boss.enqueue(run.id)
    until(lambda: progresses(run))
    os.kill(run.status().pid, signal.SIGSTOP)
    until(lambda: told, 60)
    monkeypatch.setenv("ESPALIER_SILENT_MINUTES", "0")
    assert told == {"The worker did nothing for 0 min and was ended."}
    until(lambda: run.status().attempt == 2 and run.status().state is State.RUNNING, 60)
    boss.cancel(run.id)
    until(lambda: run.status().state is State.CANCELLED, 60)


def test_silence_counts_from_the_last_word_or_work_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, did = [0.0], [silence.Effort(0.0, 0)]
    monkeypatch.setattr(silence.time, "monotonic", lambda: clock[0])
    watched = silence.Silence(since=0.0, _looked=0.0)

    def until_minute(minute: float, spoke: str, processor_share: float = 0.001) -> bool:
        said = False
        while clock[0] < 60 * minute:
            clock[0] += 5
            did[0] = silence.Effort(did[0].processor_s + 5 * processor_share, did[0].written + 5 * 100)
            said = watched.too_long(RunStatus("x", State.RUNNING, spoke=spoke), lambda: did[0])
        return said

    assert not until_minute(29, "a")
    assert not until_minute(50, "b")
    assert not until_minute(75, "b", processor_share=0.5)  # it tells nothing and works
    assert not until_minute(100, "b")
    assert until_minute(107, "b")
    assert watched.why() is None  # nobody ended it yet
    watched.over = True
    assert watched.why()[0] == "The worker did nothing for 32 min and was ended."
    clock[0] += 3600  # app and worker were held, as in a container that was paused
    assert not watched.too_long(RunStatus("x", State.RUNNING, spoke="b"), lambda: did[0])
    monkeypatch.setenv("ESPALIER_SILENT_MINUTES", "0")
    assert not until_minute(6000, "b")


def test_a_run_in_somebodys_terminal_is_left_alone_however_long_it_does_nothing(
    make: Any, experiment: Any, run_of: Any, until: Any, monkeypatch: pytest.MonkeyPatch, start: Any
) -> None:
    monkeypatch.setenv("ESPALIER_SILENT_MINUTES", "0.02")
    monkeypatch.setattr(ending, "WAKES_WITHIN_S", 0.1)
    run = run_of(experiment())
    held = "from core.jobs.rundir import RunDirectory; import sys, time\nd = RunDirectory(sys.argv[1])\n" \
           "with d.lock(): print('held', flush=True); time.sleep(600)"  # fmt: skip
    process = start("-c", held, str(run.path))
    assert process.stdout.readline() == "held\n"
    boss = make()
    until(lambda: run.id in boss.view().running)
    time.sleep(4)
    assert process.poll() is None


APP = """
import sys, time
from core.jobs.supervisor import Supervisor
boss = Supervisor()
boss.start()
for run_id in sys.argv[1:]:
    boss.enqueue(run_id)
print("ready", flush=True)
time.sleep(600)
"""


def test_the_worker_outlives_a_killed_app_and_the_next_one_adopts_it(
    make: Any, experiment: Any, run_of: Any, start: Any, until: Any
) -> None:
    run, waiting = sorted(
        (run_of(experiment()), run_of(experiment())), key=lambda one: one.id
    )  # the order of the queue
    run.write_experiment(experiment(slow=True))
    app = start("-c", APP, run.id, waiting.id)
    assert app.stdout.readline() == "ready\n"
    until(lambda: run.status().state is State.RUNNING)
    pid = run.status().pid
    with pytest.raises(QueueError, match=f"process {app.pid}"):
        Supervisor().start()
    os.killpg(app.pid, signal.SIGKILL)
    app.communicate()
    until(lambda: progresses(run))  # it goes on without anybody
    assert psutil.pid_exists(pid)

    told: list[str] = []
    boss = make(on_change=told.append)
    assert boss.view().running == (run.id,)
    assert boss.view().waiting == (waiting.id,)
    boss.cancel(run.id)  # a worker that was adopted answers too
    until(lambda: run.status().state is State.CANCELLED, 60)
    until(lambda: waiting.status().state is State.COMPLETE)
    until(lambda: {run.id, waiting.id} <= set(told))


def test_a_run_that_ended_while_no_app_lived_is_seen_as_it_ended(
    make: Any, experiment: Any, run_of: Any, start: Any, until: Any
) -> None:
    run = run_of(experiment())
    app = start("-c", APP, run.id)
    assert app.stdout.readline() == "ready\n"
    until(lambda: run.status().state is State.RUNNING)
    app.kill()
    app.communicate()
    until(lambda: run.status().state is State.COMPLETE)
    until(lambda: not run.worker_lives())
    boss = make()
    assert boss.view().running == boss.view().waiting == ()
    assert run.results() is not None


def test_after_a_restart_of_the_machine_every_run_is_in_a_true_state(make: Any, experiment: Any, run_of: Any) -> None:
    from core.jobs.events import EventWriter

    lost, waiting, forgotten = (run_of(experiment()) for _ in range(3))
    with EventWriter(lost.events_file) as events:
        events.state(State.RUNNING, pid=1, pid_created=1.0)
    waiting.write_state(State.WAITING)
    queue = lost.path.parent.parent / "queue.json"
    queue.write_text('{"v": 1, "paused": true, "order": ["20200101-000000-00000000-gone"')  # torn: paused is lost too
    boss = Supervisor()
    boss._start_next = lambda: None  # type: ignore[method-assign]
    boss.start()
    try:
        assert boss.view().waiting[0] == lost.id
        assert set(boss.view().waiting[1:]) == {waiting.id, forgotten.id}
        assert (lost.status().state, lost.status().attempt) == (State.WAITING, 2)
    finally:
        boss.stop()


def test_a_device_that_is_not_there_fails_the_run_and_not_the_queue(
    make: Any, experiment: Any, run_of: Any, until: Any
) -> None:
    boss = make()
    wrong = run_of(experiment(device="cuda:77"))
    boss.enqueue(wrong.id)
    until(lambda: wrong.status().state is State.FAILED, 60)
    assert "cuda:77" in wrong.status().reason
    assert wrong.status().advice


def test_a_listener_that_fails_ends_nothing(make: Any, experiment: Any, run_of: Any) -> None:
    def broken(_run_id: str) -> None:
        raise RuntimeError("the listener's own fault")

    boss = make(on_change=broken)
    boss.pause()
    run = run_of(experiment())
    boss.enqueue(run.id)
    assert run.status().state is State.WAITING
    assert any(thread.name == "supervisor" for thread in threading.enumerate())


def test_a_run_of_the_command_line_is_noticed_while_it_works(
    make: Any, experiment: Any, run_of: Any, start: Any, until: Any
) -> None:
    told: list[str] = []
    boss = make(on_change=told.append)
    other = experiment(slow=True)
    file = boss.home / "slow.yaml"
    file.write_text(other.to_yaml())
    process = start("-m", "core", "run", str(file))
    (found,) = until(lambda: boss.view().running)
    waiting = run_of(experiment())
    boss.enqueue(waiting.id)
    assert boss.view().waiting == (waiting.id,)  # its device is busy
    boss.cancel(found)
    process.communicate(timeout=60)
    assert process.returncode == 130
    until(lambda: found in told and boss.view().running == (waiting.id,))
