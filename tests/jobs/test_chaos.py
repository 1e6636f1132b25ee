"""Kill -9 at any moment: whatever was computed is kept, the run goes on from there, and ends as if nothing had been.

Children of a fork server (tests/jobs/chaos.py) die at a chosen moment of a real run of a tiny model, judged before and
after recovery; the next worker goes on. The long versions go through the whole run, and through the app's own work.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from core.experiment import Experiment
from core.jobs.rundir import RunDirectory, list_runs
from core.jobs.stages import is_reusable
from core.jobs.states import State
from core.storage.store import Store

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = {"samples": 4, "length": 32}
TRAINING = {"batch_size": 4, "micro_batch": 2, "cutoff": 32, "epochs": 0.02, "learning_rate": 0.01, "warmup_steps": 1}

CHOSEN = {
    "the first word is torn": (r"write .*/events.jsonl", 1, True),
    "a stage's file has no name yet": (r"os.rename .*/stages/.prune.json", 1, False),
    "the model's folder has no name yet": (r"os.rename .*/.model-", 1, False),
    "the first part is judged, its rows are there, its numbers not": (r"os.rename .*perplexity.0.json", 1, False),
    "all parts are judged and joined, the evaluation is not": (r"os.rename .*/stages/.evaluate.json", 1, False),
    "a checkpoint of the training is half written": (r"open .*/checkpoint-\d+/trainer_state.json", 2, False),
    "recovery is done but not marked": (r"os.rename .*/stages/.recover.json", 1, False),
    "the rows of both judgements are being joined": (r"os.rename .*/.samples.parquet", 2, False),
}
"""What a kill meets: a pattern of moments, which of those that fit, and whether half a line is written."""


class Server:
    """The fork server; one request at a time."""

    def __init__(self, folder: Path) -> None:
        places = {"ESPALIER_HOME": str(folder), "ESPALIER_CACHE": str(folder)}
        environment = {**os.environ, **places, "OMP_NUM_THREADS": "1"}
        self.log = (folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "jobs" / "chaos.py")],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, do: str, *arguments: str, log: Path, **how: Any) -> dict[str, Any]:
        """Let a child do that; its exit code, and the moments it went through if it was not killed."""
        where = {name: os.environ[name] for name in ("ESPALIER_HOME", "ESPALIER_CACHE")}
        request = {"do": do, "arguments": list(arguments), "log": str(log), "environment": where, **how}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read())
        return answer

    def work(self, directory: RunDirectory, **how: Any) -> dict[str, Any]:
        """One attempt at a run."""
        return self.ask("worker", str(directory.path), log=directory.log_file, **how)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Everything is loaded once for all tests of this file."""
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.close()


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
    """Files and folders that only a writer that was killed would leave."""
    ours = {".supervisor.lock", ".supervisor.json"}
    hidden = [path for path in home.rglob(".*") if path.name not in ours]
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


def place(moments: list[str], pattern: str, which: int) -> int:
    """The number of the moment that is the n-th to fit a pattern."""
    fitting = [number for number, moment in enumerate(moments, 1) if re.match(pattern, moment)]
    assert len(fitting) >= which, f"{len(fitting)} moments fit {pattern}"
    return fitting[which - 1]


def killed_and_resumed(server: Server, directory: RunDirectory, die_at: int, torn: bool = False) -> None:
    """One attempt that is killed, and one that ends the run; nothing that the first finished is done again."""
    assert server.work(directory, die_at=die_at, torn=torn)["code"] == -9, f"moment {die_at} never came"
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
    moments, undisturbed = whole
    assert left_over(home) == []
    for meets, (pattern, which, torn) in CHOSEN.items():
        directory = run_of(recovering)
        killed_and_resumed(server, directory, place(moments, pattern, which), torn)
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
        killed_and_resumed(server, directory, die_at, torn)
        assert numbers(directory) == numbers(undisturbed), moments[die_at - 1]
        assert rows(directory) == rows(undisturbed), moments[die_at - 1]
        assert left_over(home) == [], moments[die_at - 1]
        assert_level(home)
        directory.path.rename(directory.path.with_name(f"away-{directory.id}"))
