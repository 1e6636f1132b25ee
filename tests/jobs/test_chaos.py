"""Kill -9 at any moment, full disks, damaged files: what was computed is kept, and every run is in a true state.

Forks (tests/forks.py, tests/jobs/chaos.py) die at a chosen moment of a real run of a tiny model, judged before and
after recovery; the next worker goes on from there, and it ends as if nothing had been. Apps die with their queue, their
store and their workers; the next one finds all of it. The long versions go through the whole run, and through random
moments of an app and its workers.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from core.experiment import Experiment
from core.jobs.processes import DISK_FULL
from core.jobs.rundir import RunDirectory, list_runs
from core.jobs.stages import is_reusable
from core.jobs.states import State
from core.storage.store import Store
from tests.forks import Fork

CALIBRATION = {"samples": 4, "length": 32}
TRAINING = {"batch_size": 4, "micro_batch": 2, "cutoff": 32, "epochs": 0.02, "learning_rate": 0.01, "warmup_steps": 1}

CHOSEN = {
    "the first word is torn": (r"write .*/events.jsonl", 1, True),
    "the model's folder has no name yet": (r"os.rename .*/.model-", 1, False),
    "the first part is judged, its rows are there, its numbers not": (r"os.rename .*perplexity.0.json", 1, False),
    "all parts are judged and joined, the evaluation is not": (r"os.rename .*/stages/.evaluate.json", 1, False),
    "a checkpoint of the training is half written": (r"open .*/checkpoint-\d+/trainer_state.json", 2, False),
    "the rows of both judgements are being joined": (r"os.rename .*/.samples.parquet", 2, False),
}
"""What a kill meets: a pattern of moments, which of those that fit, and whether half a line is written."""
IN_THE_APP = {
    "the run is written, and nobody knows that it waits": (r"os.rename .*/.state.json", 1),
    "it waits, and the queue's file does not say so": (r"os.rename .queue.json", 2),
    "its worker was started, and the queue's file does not say so": (r"os.rename .queue.json", 4),
}
"""The same for an app that queues two runs."""


class Server:
    """Workers and apps, each a fork that may die at a chosen moment."""

    def __init__(self, folder: Path) -> None:
        self._tell = folder / "moments.json"

    def ask(self, do: str, *arguments: str, log: Path, background: bool = False, **how: Any) -> dict[str, Any]:
        """Let a fork do that; its exit code, and the moments it went through if it was not killed."""
        self._tell.unlink(missing_ok=True)
        fork = Fork.call(f"tests.jobs.chaos:{do}", {**how, "tell": str(self._tell)}, *arguments, log=log)
        if background:
            return {"pid": fork.pid}
        try:
            code = fork.wait()
        except subprocess.TimeoutExpired as error:
            fork.end_stuck()
            logs = sorted(Path(os.environ["ESPALIER_HOME"]).rglob("log.txt"), key=lambda path: path.stat().st_mtime)
            said = "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in (log, *logs[-2:]))
            raise AssertionError(f"A fork was stuck at {do}:\n{said}") from error
        return {"code": code, "moments": json.loads(self._tell.read_text()) if self._tell.exists() else None}

    def work(self, directory: RunDirectory, **how: Any) -> dict[str, Any]:
        """One attempt at a run."""
        return self.ask("worker", str(directory.path), log=directory.log_file, **how)

    def app(self, *texts: str, **how: Any) -> dict[str, Any]:
        """An app that queues these experiments and ends when nothing waits or runs."""
        return self.ask("app", *texts, log=Path(os.environ["ESPALIER_HOME"]) / "app.log", **how)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """Where the moments are told is neither home nor cache."""
    return Server(tmp_path)


@pytest.fixture
def recovering(experiment: Any, text: Path) -> Experiment:
    """A cut, both judgements and a training of a few steps, on a tiny model."""
    pruning = {"method": "wanda", "ratio": 0.5, "calibration": {"path": str(text), **CALIBRATION}}
    recovery = {"kind": "lora", "data": {"path": str(text), "format": "text"}, **TRAINING}
    made: Experiment = experiment(pruning=pruning, recovery=recovery)
    return made.with_changes({"evaluation.fidelity": True})


def numbers(directory: RunDirectory) -> list[tuple[Any, ...]]:
    """What was measured, in order."""
    results = directory.results()
    assert results is not None
    names = ("stage", "task", "metric", "value", "stderr", "n")
    return [tuple(row[name] for name in names) for row in results["metrics"]]


def rows(directory: RunDirectory) -> list[tuple[Any, ...]]:
    """What became of each window."""
    table = pq.read_table(directory.samples_file).to_pylist()
    return sorted((row["stage"], row["task"], row["doc"], row["score"]) for row in table)


def left_over(home: Path) -> list[str]:
    """Files and folders that only a writer that was killed would leave; a run that was never written is none."""
    ours = {".supervisor.lock", ".supervisor.json"}
    hidden = [path for path in home.rglob(".*") if path.name not in ours and ".experiment.yaml." not in path.name]
    torn = [*home.glob("runs/*/stages/*.parquet"), *home.glob("runs/*/recovery/checkpoints")]
    return [str(path.relative_to(home)) for path in (*hidden, *torn)]


def finished_stages(directory: RunDirectory) -> dict[str, bytes]:
    """What a later attempt need not repeat, as it stands in the files."""
    return {name: directory.stage_file(name).read_bytes() for name in directory.stages() if is_reusable(name)}


def assert_level(home: Path) -> None:
    """The store that followed the changes holds what one that is made anew from the files does."""
    followed, anew = Store.open(home), Store()
    try:
        anew.reindex(home)
        assert followed.dump() == anew.dump()
        assert followed.notice == ""
    finally:
        followed.close()
        anew.close()


def killed_and_resumed(server: Server, directory: RunDirectory, torn: bool = False, **when: Any) -> None:
    """One attempt that is killed, and one that ends the run; nothing that the first finished is done again.

    when: `die_at`, or `die_on` (tests/jobs/chaos.py).
    """
    assert server.work(directory, torn=torn, **when)["code"] == -9, f"the moment {when} never came"
    assert directory.status().state in (State.INTERRUPTED, State.WAITING, State.COMPLETE)
    before = finished_stages(directory)
    code = server.work(directory)["code"]
    if directory.status().attempt == 1:  # it was killed after its last word, or before its first
        assert code in (0, 2)
    else:
        assert code == 0, directory.log_tail()
    assert directory.status().state is State.COMPLETE, directory.log_tail()
    after = finished_stages(directory)
    assert {name: after.get(name) for name in before} == before


@pytest.fixture
def whole(server: Server, run_of: Any, recovering: Experiment) -> tuple[list[str], RunDirectory]:
    """The moments of a run that nobody disturbs, in its second place: what runs share is cached by then."""
    server.work(run_of(recovering))
    for run in list_runs(Path(os.environ["ESPALIER_HOME"]) / "runs"):
        run.path.rename(run.path.with_name(f"away-{run.id}"))  # so that nothing is taken from it
    directory = run_of(recovering)
    done = server.work(directory)
    assert done["code"] == 0, directory.log_tail()
    directory.path.rename(kept := directory.path.with_name(f"whole-{directory.id}"))
    return done["moments"], RunDirectory(kept)


def test_a_worker_killed_at_delicate_moments_loses_nothing(
    server: Server, run_of: Any, recovering: Experiment, whole: Any, home: Path
) -> None:
    _, undisturbed = whole
    assert left_over(home) == []
    for meets, (pattern, which, torn) in CHOSEN.items():
        directory = run_of(recovering)
        killed_and_resumed(server, directory, torn, die_on=[pattern, which])
        assert numbers(directory) == numbers(undisturbed), meets
        assert rows(directory) == rows(undisturbed), meets
        assert left_over(home) == [], meets
        assert_level(home)
        directory.path.rename(directory.path.with_name(f"away-{directory.id}"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("torn", [False, True])
def test_a_worker_killed_at_any_moment_loses_nothing(
    server: Server, run_of: Any, recovering: Experiment, whole: Any, home: Path, torn: bool
) -> None:
    """30 moments evenly over the run, and 30 between them at which a line is torn."""
    moments, undisturbed = whole
    wanted = [n for n, moment in enumerate(moments, 1) if moment.startswith("write ") or not torn]
    chosen = [wanted[int((i + 0.5) * len(wanted) / 30)] for i in range(30)]
    for die_at in chosen:
        directory = run_of(recovering)
        killed_and_resumed(server, directory, torn, die_at=die_at)
        assert numbers(directory) == numbers(undisturbed), moments[die_at - 1]
        assert rows(directory) == rows(undisturbed), moments[die_at - 1]
        assert left_over(home) == [], moments[die_at - 1]
        assert_level(home)
        directory.path.rename(directory.path.with_name(f"away-{directory.id}"))


# ---------------------------------------------------------------------------------------------------------------- apps


def runs_of(home: Path) -> list[RunDirectory]:
    """Oldest first."""
    return list(list_runs(home / "runs"))[::-1]


def assert_true_states(home: Path) -> None:
    """Nobody is said to run who does not, what is complete has its results, what failed says why."""
    for run in runs_of(home):
        status = run.status()
        assert status.state is not State.RUNNING or run.worker_lives(), run
        assert (run.results() is not None) or status.state is not State.COMPLETE, run
        assert status.reason or status.state is not State.FAILED, run


def assert_all_complete(home: Path, count: int) -> None:
    """Every run ended well, all of them with the same numbers, and nothing is left of whatever happened."""
    runs = runs_of(home)
    assert len(runs) == count
    for run in runs:
        assert run.status().state is State.COMPLETE, f"{run.status()}\n{run.log_tail()}"
        assert numbers(run) == numbers(runs[0])
        assert rows(run) == rows(runs[0])
    assert left_over(home) == []
    assert_level(home)


def kill_workers(home: Path) -> None:
    """As when the machine goes down: the workers, too."""
    for run in runs_of(home):
        if run.worker_lives() and (pid := run.status().pid):
            os.kill(pid, signal.SIGKILL)


def test_an_app_killed_at_delicate_moments_leaves_a_queue_that_the_next_one_finishes(
    server: Server, experiment: Any, home: Path
) -> None:
    text = experiment().to_yaml()
    for count, die_on in enumerate(IN_THE_APP.values(), 1):
        answer = server.app(text, text, die_on=die_on)
        assert answer["code"] == -9
        if count % 2:
            kill_workers(home)
        assert_true_states(home)
        answer = server.app()
        assert answer["code"] == 0, (home / "app.log").read_text()[-3000:]
        assert_all_complete(home, len(runs_of(home)))
    assert len(runs_of(home)) == 1 + 1 + 2


def test_what_a_crash_leaves_in_files_is_read_as_far_as_it_is_true(
    server: Server, experiment: Any, home: Path, until: Any
) -> None:
    """A line that is torn, a write-ahead log that nobody closed, a database that is damaged or gone."""
    text = experiment().to_yaml()
    pid = server.app(text, background=True)["pid"]
    until(lambda: any(run.status().state is State.COMPLETE for run in runs_of(home)))
    wal = home / "results.duckdb.wal"
    until(wal.exists)
    os.kill(pid, signal.SIGKILL)
    (run,) = runs_of(home)
    with run.events_file.open("ab") as file:
        file.write(b'{"v": 1, "seq": 99, "kind": "state", "sta')
    assert run.status().state is State.COMPLETE
    assert wal.exists()
    server.app()
    assert_all_complete(home, 1)
    (home / "results.duckdb").write_bytes(b"\x00rubbish" * 1000)
    server.app()
    assert len(list(home.glob("results.duckdb.damaged-*"))) == 1
    assert_all_complete(home, 1)
    (home / "results.duckdb").unlink()
    (home / "queue.json").write_text('{"order": ["../../x", 3')
    server.app(text)
    assert_all_complete(home, 2)
    assert (home / "queue.damaged.json").exists()


def test_a_disk_that_fills_up_under_a_worker_costs_what_was_not_finished(
    server: Server, run_of: Any, recovering: Experiment, whole: Any, home: Path
) -> None:
    _, undisturbed = whole
    for pattern, which in ((r"open .*/.model-", 1), (r"write .*/events.jsonl", 12)):
        directory = run_of(recovering)
        answer = server.work(directory, die_on=[pattern, which], full=True)
        assert answer["code"] in (1, DISK_FULL), directory.log_tail()
        status = directory.status()
        if status.state is State.FAILED:  # some of it could be written
            assert status.cause == "disk"
        else:
            assert status.state is State.INTERRUPTED
            before = finished_stages(directory)
            assert server.work(directory)["code"] == 0, directory.log_tail()
            assert {name: finished_stages(directory).get(name) for name in before} == before
            assert numbers(directory) == numbers(undisturbed)
        assert_level(home)
        directory.path.rename(directory.path.with_name(f"away-{directory.id}"))


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home on a disk of 24 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    (disk / "home").mkdir()
    monkeypatch.setenv("ESPALIER_HOME", str(disk / "home"))
    monkeypatch.setenv("ESPALIER_TEST_DISK", "100000")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 64):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("when", ["stages/prune.json", "stages/evaluate.perplexity.0.json", "events.jsonl"])
def test_a_real_disk_that_is_full_holds_worker_queue_and_store_until_there_is_room(
    server: Server, recovering: Experiment, small_disk: Path, when: str, killed: bool, until: Any
) -> None:
    home, text = small_disk / "home", recovering.to_yaml()
    pid = server.app(text, text, text, background=True)["pid"]
    until(lambda: [run for run in runs_of(home) if (run.path / when).exists()], every=0.001)
    ballast = fill(small_disk)
    until(lambda: not any(run.worker_lives() for run in runs_of(home)))
    time.sleep(4)  # the app tries, cannot, and goes on
    assert not _gone(pid), (home / "app.log").read_text()[-3000:]
    if killed:
        os.kill(pid, signal.SIGKILL)
        assert_true_states(home)
        pid = server.app(background=True)["pid"]  # the next one begins on the full disk
        time.sleep(4)
        assert not _gone(pid), (home / "app.log").read_text()[-3000:]
    ballast.unlink()
    until(lambda: _gone(pid))
    assert_true_states(home)
    states = [(run.status().state, run.status().cause) for run in runs_of(home)]
    assert len(states) == 3
    for state, cause in states:
        assert state is State.COMPLETE or (state is State.FAILED and cause == "disk"), states
    assert [state for state, _ in states].count(State.COMPLETE) >= 2  # what waited did not fail with the one that ran
    assert_level(home)


# ------------------------------------------------------------------------------------------------------ random moments

KILLS, STORMS, MOST_A_RUN = 12, 5, 2
"""Kills in a storm, storms, and kills that one run's worker may suffer: a third in vain would fail it, as it should."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(STORMS))
def test_apps_and_workers_killed_at_random_moments_lose_nothing(
    server: Server, recovering: Experiment, home: Path, seed: int, until: Any
) -> None:
    _storm(server, recovering.to_yaml(), home, random.Random(seed), until, KILLS)


def test_an_app_and_its_workers_killed_at_a_few_random_moments_lose_nothing(
    server: Server, experiment: Any, home: Path, until: Any
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # shown where it fails
    _storm(server, experiment().to_yaml(), home, random.Random(seed), until, 6)


def _storm(server: Server, text: str, home: Path, dice: random.Random, until: Any, kills: int) -> None:
    """Kill the app, the worker, or both, again and again; each time the next app finds a true state and goes on."""
    suffered: Counter[str] = Counter()
    victims = ["app", "worker", "both"] * (kills // 3)
    dice.shuffle(victims)
    pid = 0
    while victims:
        if _gone(pid):
            more = [text] * (0 if _unfinished(home) > 2 else 4)
            pid = server.app(*more, background=True)["pid"]
            _begun(home, pid, until)
        time.sleep(dice.uniform(0.02, 1.2))
        workers = {run.id: run.status().pid for run in runs_of(home) if run.worker_lives()}
        if victims[-1] != "app":
            if not workers or any(suffered[run] >= MOST_A_RUN for run in workers):
                continue  # until there is one
            suffered.update(workers.keys())
            for worker in filter(None, workers.values()):
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        if victims.pop() != "worker":
            _kill_app(home, pid, until)
    if not _gone(pid):
        _kill_app(home, pid, until)
    assert server.app()["code"] == 0, (home / "app.log").read_text()[-3000:]
    assert_all_complete(home, len(runs_of(home)))


def _begun(home: Path, pid: int, until: Any) -> None:
    until(lambda: _unfinished(home) or _gone(pid))


def _kill_app(home: Path, pid: int, until: Any) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: _gone(pid))
    assert_true_states(home)


def _unfinished(home: Path) -> int:
    return sum(not run.status().state.finished for run in runs_of(home))


def _gone(pid: int) -> bool:
    return not pid or not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
