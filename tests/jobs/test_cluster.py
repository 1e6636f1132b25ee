"""Runs on a cluster: what the supervisor does with jobs that start late, end, are lost, or are there already.

The cluster here keeps its jobs as Ray's documents say: a name once taken is refused, a job is over for good, one that
waits for a node is stopped when it gets one, and a new head knows nothing of the old one's jobs. What its jobs do to
the run's folder is done by the test. tests/jobs/test_ray.py has the same with Ray itself and real workers.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from core.errors import InputError
from core.jobs import cluster as clusters
from core.jobs import on_cluster
from core.jobs.cluster import Capacity, ClusterError, Clusters, Order, Seen, Unreachable, check_address
from core.jobs.events import EventWriter
from core.jobs.processes import identity
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.jobs.supervisor import Supervisor

ADDRESS = "http://head.test:8265"


@dataclass
class Head:
    """A cluster's head with `slots` places for jobs."""

    slots: int = 1
    up: bool = True
    refuses: str = ""
    jobs: dict[str, Seen] = field(default_factory=dict)
    orders: list[Order] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def _answer(self) -> None:
        if not self.up:
            raise Unreachable("Failed to connect.")

    def capacity(self) -> Capacity:
        self._answer()
        return Capacity(nodes=1, cpus=2.0, gpus=1.0)

    def look(self, submission_id: str) -> Seen | None:
        self._answer()
        return self.jobs.get(submission_id)

    def submit(self, order: Order) -> None:
        self._answer()
        if self.refuses:
            raise ClusterError(self.refuses)
        assert order.submission_id not in self.jobs, "a name once taken is never given again"
        self.orders.append(order)
        busy = sum(seen.status == "RUNNING" for seen in self.jobs.values())
        self.jobs[order.submission_id] = Seen("RUNNING" if busy < self.slots else "PENDING")

    def stop(self, submission_id: str) -> None:
        self._answer()
        self.stopped.append(submission_id)

    def end(self, submission_id: str, status: str, code: int | None = None, message: str = "") -> None:
        self.jobs[submission_id] = Seen(status, code, message)

    def begin(self, submission_id: str) -> None:
        self.jobs[submission_id] = Seen("RUNNING")


class Worker:
    """What a worker on a node does to its run's folder: it holds the lock and writes events."""

    def __init__(self, directory: RunDirectory) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(directory.lock())
        self.events = EventWriter(directory.events_file, attempt=(directory.read_state() or {}).get("attempt", 1))
        self.events.state(State.RUNNING, **identity())

    def end(self, state: State | None = None) -> None:
        """Say how it ended, if it can, and be gone."""
        if state is not None:
            self.events.state(state)
        self.events.close()
        self.stack.close()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    monkeypatch.setenv("ESPALIER_RAY_ADDRESS", ADDRESS)
    monkeypatch.setattr(clusters, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(clusters, "RETRY_EVERY_S", 0.02)
    return Head()


@pytest.fixture
def make(head: Head) -> Iterator[Callable[[], Supervisor]]:
    made: list[Supervisor] = []

    def begin() -> Supervisor:
        one = Supervisor()
        one.clusters = Clusters(one.home, lambda address: head)
        one.start()
        made.append(one)
        return one

    yield begin
    for one in made:
        one.stop()


def queue(boss: Supervisor, run_of: Any, experiment: Any, n: int = 1) -> list[RunDirectory]:
    runs = [run_of(experiment()) for _ in range(n)]
    for run in runs:
        boss.enqueue(run.id)
    return runs


def test_a_run_is_asked_for_by_its_id_as_the_same_command_with_a_gpu_and_without_any_token(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("ESPALIER_TOKEN", "a secret of sixteen letters")
    monkeypatch.setenv("ESPALIER_RAY_CPUS", "4")
    boss = make()
    run = run_of(experiment(device="auto"))
    boss.enqueue(run.id)
    (order,) = until(lambda: head.orders)
    assert order.submission_id == run.id
    assert f"-m core.jobs.worker {run.path} >>{run.log_file} 2>&1" in order.entrypoint
    assert (order.gpus, order.cpus) == (1.0, 4.0)
    assert order.metadata["espalier_run"] == run.id
    assert order.environment["ESPALIER_HOME"] == str(boss.home)
    assert "secret" not in repr(order)


def test_a_run_for_the_cpu_asks_for_no_gpu_and_a_numbered_gpu_fails_with_what_to_choose(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    boss = make()
    numbered, plain = run_of(experiment(device="cuda:3")), run_of(experiment(device="cpu"))
    for run in (numbered, plain):
        boss.enqueue(run.id)
    (order,) = until(lambda: head.orders)
    assert (order.submission_id, order.gpus) == (plain.id, 0.0)
    status = numbered.status()
    assert (status.state, status.advice) == (State.FAILED, "Choose cuda or auto.")


def test_the_queue_keeps_its_order_and_gives_away_only_two_runs_ahead(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    boss = make()
    runs = queue(boss, run_of, experiment, 5)
    until(lambda: len(head.jobs) == 3)  # one that has a node, and two that wait for one
    time.sleep(0.3)
    assert boss.view().waiting == tuple(run.id for run in runs[3:])
    boss.move(runs[4].id, -1)
    head.begin(runs[1].id)
    until(lambda: len(head.jobs) == 4)
    assert [order.submission_id for order in head.orders] == [runs[i].id for i in (0, 1, 2, 4)]
    boss.pause()
    head.begin(runs[2].id)
    time.sleep(0.5)
    assert len(head.jobs) == 4


def test_a_run_that_ends_on_its_node_is_complete_and_leaves_the_queue(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    boss = make()
    (run,) = queue(boss, run_of, experiment)
    until(lambda: run.id in head.jobs)
    worker = Worker(run)
    until(lambda: run.status().state is State.RUNNING)
    worker.end(State.COMPLETE)
    head.end(run.id, "SUCCEEDED", 0)
    until(lambda: not boss.view().running)
    assert run.status().state is State.COMPLETE
    assert len(head.orders) == 1


def test_a_killed_worker_goes_back_to_the_head_of_the_queue_under_its_next_name(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    boss = make()
    (run,) = queue(boss, run_of, experiment)
    until(lambda: run.id in head.jobs)
    worker = Worker(run)
    until(lambda: run.status().state is State.RUNNING)
    worker.end()
    head.end(run.id, "FAILED", -9, "Job entrypoint command failed with exit code -9")
    until(lambda: f"{run.id}-2" in head.jobs)
    state = run.read_state()
    assert state is not None
    assert (state["state"], state["attempt"]) == ("WAITING", 2)
    assert "SIGKILL" in state["reason"]


def test_a_job_whose_node_has_no_python_fails_after_three_starts_and_says_what_to_do(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    boss = make()
    (run,) = queue(boss, run_of, experiment)
    for name in (run.id, f"{run.id}-2", f"{run.id}-3"):
        until(lambda name=name: name in head.jobs)
        head.end(name, "FAILED", 127, "No such file")
    until(lambda: run.status().state is State.FAILED)
    status = run.status()
    assert "exit code 127" in status.reason
    assert "3 times" in status.reason
    assert "same path on every node" in status.advice
    assert not boss.view().running


def test_a_head_that_refuses_because_it_has_just_started_is_asked_again(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    head.refuses = "Request failed with status code 500: No available agent to submit job, please try again later."
    boss = make()
    (run,) = queue(boss, run_of, experiment)
    time.sleep(0.5)
    head.refuses = ""
    until(lambda: run.id in head.jobs)
    assert (run.read_state() or {})["attempt"] == 1


def test_what_the_cluster_refuses_is_the_reason_of_the_failure(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(clusters, "REFUSED_AFTER_S", 0.05)
    head.refuses = "Request failed with status code 400: no such resource."
    boss = make()
    (run,) = queue(boss, run_of, experiment)
    until(lambda: run.status().state is State.FAILED)
    assert "The cluster refused the run: Request failed with status code 400" in run.status().reason
    assert not boss.view().running


def test_a_run_that_waits_for_a_node_is_cancelled_at_once_and_its_job_is_stopped(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    boss = make()
    first, second = queue(boss, run_of, experiment, 2)
    until(lambda: second.id in head.jobs)
    boss.cancel(second.id)
    until(lambda: second.status().state is State.CANCELLED, 60)
    until(lambda: head.stopped == [second.id], 60)
    assert boss.view().running == (first.id,)


def test_a_running_one_is_cancelled_by_its_worker_and_one_whose_worker_says_nothing_is_too(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    head.slots = 2
    boss = make()
    told, silent = queue(boss, run_of, experiment, 2)
    until(lambda: silent.id in head.jobs)
    workers = [Worker(run) for run in (told, silent)]
    until(lambda: all(run.status().state is State.RUNNING for run in (told, silent)))
    for run in (told, silent):
        boss.cancel(run.id)
    until(lambda: sorted(head.stopped) == sorted([told.id, silent.id]))
    workers[0].end(State.CANCELLED)
    workers[1].end()
    for run in (told, silent):
        head.end(run.id, "STOPPED")
    until(lambda: not boss.view().running)
    assert [run.status().state for run in (told, silent)] == [State.CANCELLED, State.CANCELLED]
    assert boss.view().waiting == ()


def test_a_lost_head_interrupts_what_ran_and_everything_goes_on_when_there_is_a_new_one(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(clusters, "LOST_AFTER_S", 0.4)
    monkeypatch.setattr(on_cluster, "MOVED_WITHIN_S", 0.1)
    boss = make()
    ran, waited, queued, last = queue(boss, run_of, experiment, 4)
    until(lambda: queued.id in head.jobs)
    worker = Worker(ran)
    until(lambda: ran.status().state is State.RUNNING)
    head.up = False
    worker.end()  # Ray kills a worker whose raylet is gone
    until(lambda: set(boss.view().waiting) == {ran.id, waited.id, queued.id, last.id})
    view = boss.cluster()
    assert view is not None
    assert not view.reachable
    assert "Failed to connect" in view.problem
    state = ran.read_state() or {}
    assert (state["state"], state["attempt"]) == ("WAITING", 2)
    assert "lost the run's job" in state["reason"]
    assert (waited.read_state() or {})["attempt"] == 1  # nothing of it was begun
    head.jobs.clear()
    head.orders.clear()
    head.up = True
    until(lambda: len(head.jobs) == 3)
    names = {order.submission_id for order in head.orders}
    assert names <= {f"{ran.id}-2", waited.id, queued.id, last.id}


def test_a_worker_that_lives_on_without_its_head_is_left_to_end_its_run(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(clusters, "LOST_AFTER_S", 0.2)
    boss = make()
    (run,) = queue(boss, run_of, experiment)
    until(lambda: run.id in head.jobs)
    worker = Worker(run)
    until(lambda: run.status().state is State.RUNNING)
    head.up = False
    time.sleep(1.0)
    assert boss.view().running == (run.id,)
    worker.end(State.COMPLETE)
    until(lambda: not boss.view().running)
    assert run.status().state is State.COMPLETE


def test_the_next_app_finds_its_jobs_again_and_asks_for_none_twice(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    first = make()
    runs = queue(first, run_of, experiment, 3)
    until(lambda: len(head.jobs) == 3)
    worker = Worker(runs[0])
    until(lambda: runs[0].status().state is State.RUNNING)
    first.stop()
    head.end(runs[1].id, "FAILED", -9)  # while nobody looked
    second = make()
    assert set(second.view().running) == {run.id for run in runs}
    until(lambda: f"{runs[1].id}-2" in head.jobs)
    worker.end(State.COMPLETE)
    head.end(runs[0].id, "SUCCEEDED", 0)
    until(lambda: runs[0].id not in second.view().running)
    assert [order.submission_id for order in head.orders] == [*(run.id for run in runs), f"{runs[1].id}-2"]


def test_what_was_written_down_but_never_arrived_is_asked_for_again(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    run = run_of(experiment())
    run.write_state(State.WAITING)
    clusters.record(run, ADDRESS, run.id, 1)  # and then the app was killed
    make()
    until(lambda: run.id in head.jobs)
    assert (run.read_state() or {})["attempt"] == 1


def test_the_job_of_an_attempt_before_that_lives_after_all_is_taken_over(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    run = run_of(experiment())
    run.write_state(State.WAITING, attempt=2)
    head.begin(run.id)
    boss = make()
    until(lambda: run.id in boss.view().running)
    until(lambda: next(iter(boss._active.values())).placed.job.asked_for)  # type: ignore[union-attr]
    assert head.orders == []


def test_a_head_that_never_answers_keeps_neither_the_queue_nor_whoever_asks_waiting(
    make: Any, head: Head, run_of: Any, experiment: Any, until: Any
) -> None:
    inside, go = threading.Event(), threading.Event()

    def hangs() -> Capacity:
        inside.set()
        go.wait(60)
        raise Unreachable("timed out")

    head.capacity = hangs  # type: ignore[method-assign]
    boss = make()
    (run,) = queue(boss, run_of, experiment)
    assert inside.wait(60)
    begun = time.monotonic()
    assert boss.view().waiting == (run.id,)
    boss.cancel(run.id)
    assert boss.cluster() is not None
    assert time.monotonic() - begun < 20
    go.set()


def test_an_address_that_is_none_starts_nothing_and_is_said(
    make: Any, run_of: Any, experiment: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("ESPALIER_RAY_ADDRESS", "head:6379")
    boss = make()
    (run,) = queue(boss, run_of, experiment)
    time.sleep(0.5)
    view = boss.cluster()
    assert view is not None
    assert "'head:6379' is not the address" in view.problem
    assert boss.view().waiting == (run.id,)


@pytest.mark.parametrize(
    "address", ["", "head:8265", "ray://head:10001", "file:///etc", "http://", "http://u:p@h:1", "http://h:1/?a=b", "http://h:0x"]
)  # fmt: skip
def test_addresses_that_are_no_dashboard_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="is not the address"):
        check_address(address)


def test_the_preferences_name_a_cluster_and_the_environment_wins(home: Any, monkeypatch: Any) -> None:
    known = Clusters(home, lambda address: Head())
    assert known.current() is None
    (home / "settings.json").write_text('{"ray_address": "http://a:8265/"}')
    assert known.address() == "http://a:8265"
    monkeypatch.setenv("ESPALIER_RAY_ADDRESS", "http://b:8265")
    assert known.address() == "http://b:8265"
    known.close()
