"""Real runs on a tiny model: experiments, and the processes that do them."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.experiment import Experiment
from core.jobs.rundir import RunDirectory, new_run_id
from tests.forks import Fork

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, one torch thread: several processes share two cores."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ESPALIER_CACHE", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """60,000 characters, which are as many tokens of the tiny model."""
    path = tmp_path / "text.txt"
    letters = random.Random(0)
    path.write_text("".join(letters.choices("abcdefghij", k=60_000)))
    return path


@pytest.fixture
def experiment(tiny_folder: Any, text: Path) -> Callable[..., Experiment]:
    """A run of seconds on a tiny model. `slow=True` makes its perplexity last about half a minute."""
    folder = tiny_folder()

    def make(*, pruning: dict[str, Any] | None = None, slow: bool = False, **changes: Any) -> Experiment:
        perplexity = {"path": str(text), "window": 16, "max_tokens": None if slow else 512}
        evaluation = {"perplexity": [perplexity], "tasks": [], "fidelity": False, "speed": False}
        evaluation |= {"batch_size": 1} if slow else {}
        data = {"name": "tiny", "model": {"name": str(folder)}, "device": "cpu"}
        return Experiment.parse({**data, "pruning": pruning, "evaluation": evaluation, **changes})

    return make


@pytest.fixture
def run_of(home: Path) -> Callable[[Experiment], RunDirectory]:
    """A run directory in the test's home that holds an experiment and nothing else."""

    def make(experiment: Experiment) -> RunDirectory:
        directory = RunDirectory(home / "runs" / new_run_id("0123456789abcdef"))
        directory.write_experiment(experiment)
        return directory

    return make


@pytest.fixture
def start(forked: bool, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a Python process in the repository; those that still live are killed after the test.

    A worker is a fork, except in tests marked `fresh`.
    """
    started: list[Any] = []

    def begin(*arguments: str, **how: Any) -> Any:
        if forked and arguments[:2] == ("-m", "core.jobs.worker"):
            log = tmp_path / f"worker-{len(started)}.txt"
            started.append(Fork.call("tests.forks:work", *arguments[2:], log=log))
            return started[-1]
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ.copy(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **how,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def until() -> Callable[..., Any]:
    """Wait until a question is answered with something true, and give the answer; fail after `seconds`."""

    def wait(question: Callable[[], Any], seconds: float = 200.0, every: float = 0.02) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = question()
            if answer:
                return answer
            time.sleep(every)
        pytest.fail(f"nothing true within {seconds} s")

    return wait
