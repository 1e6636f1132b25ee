"""`python -m core`: what it prints, and its exit codes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.jobs.rundir import RunDirectory, list_runs
from core.jobs.states import State

ROOT = Path(__file__).resolve().parent.parent
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line to its end."""
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def call(*arguments: str, prelude: str = "") -> "subprocess.CompletedProcess[str]":
        how = (
            ["-c", f"{prelude}\nimport runpy; runpy.run_module('core', run_name='__main__')"]
            if prelude
            else ["-m", "core"]
        )
        return subprocess.run(
            [sys.executable, *how, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
        )

    return call


@pytest.fixture
def file(tmp_path: Path, tiny_folder: Any) -> Path:
    """An experiment on a tiny model: dense, one perplexity."""
    text = tmp_path / "text.txt"
    text.write_text("".join(random.Random(0).choices("abcdefghij", k=30_000)))
    evaluation = {"perplexity": [{"path": str(text), "window": 16, "max_tokens": 256}], "tasks": [], "speed": False}
    path = tmp_path / "tiny.yaml"
    model = {"name": str(tiny_folder())}
    path.write_text(json.dumps({"name": "tiny", "model": model, "evaluation": evaluation, "device": "cpu"}))
    return path


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("streamlit", "duckdb", "plotly"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
"""


def test_a_run_needs_no_streamlit_duckdb_or_plotly_and_set_changes_it(
    command: Command, file: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "by hand"
    changes = ["pruning.method=magnitude", "pruning.pattern=2:4", "evaluation.fidelity=false", "name='a: b'"]
    sets = [part for change in changes for part in ("--set", change)]
    result = command("run", str(file), "--run-dir", str(target), *sets, prelude=WITHOUT)
    assert result.returncode == 0, result.stdout + result.stderr
    directory = RunDirectory(target)
    made = directory.experiment()
    assert made.pruning is not None
    assert (made.pruning.pattern, made.pruning.ratio, made.name) == ("2:4", 0.5, "a: b")
    results = directory.results()
    assert results is not None
    assert results["run_id"] == directory.id != target.name
    assert "perplexity/text.txt" in result.stdout
    assert str(directory.results_file) in result.stdout

    again = command("run", str(file), "--run-dir", str(target), *sets)
    assert again.returncode == 0
    assert "complete already" in again.stdout
    other = command("run", str(file), "--run-dir", str(target))
    assert other.returncode == 2
    assert "holds another run" in other.stderr


def test_without_a_folder_the_run_goes_to_the_home(command: Command, file: Path, home: Path) -> None:
    result = command("run", str(file))
    assert result.returncode == 0, result.stderr
    (run,) = list_runs(home / "runs")
    assert run.status().state is State.COMPLETE
    assert run.id in result.stdout
    rebuilt = command("reindex")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert rebuilt.stdout.startswith("1 run")
    assert (home / "results.duckdb").exists()


def test_a_failed_run_exits_with_one_and_its_reason(command: Command, file: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("short")
    result = command("run", str(file), "--run-dir", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "fewer than one window" in result.stderr
    assert "log.txt" in result.stderr
    again = command("run", str(file), "--run-dir", str(tmp_path / "out"))
    assert again.returncode == 2
    assert "FAILED" in again.stderr


def test_ctrl_c_cancels(file: Path, tmp_path: Path, command: Command) -> None:
    target = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "core", "run", str(file), "--run-dir", str(target)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    directory = RunDirectory(target)
    deadline = time.monotonic() + 60
    while not any(event["kind"] == "stage" for event in directory.events()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "cancelled" in errors
    assert directory.status().state is State.CANCELLED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("pruning.method=wandb", "Did you mean 'wanda'"),
        ("pruning={method: l1, layers: [0, 30]}", "30"),
        ("modle.name=x", "modle"),
        ("model.name=/nowhere", "/nowhere"),
        ("evaluation.tasks=[pika]", "pika"),
        ("device=cuda:77", "cuda:77"),
        ("recovery={kind: lora}", "recovery"),
        ("name", "KEY=VALUE"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    change: str, said: str, command: Command, file: Path, home: Path
) -> None:
    result = command("run", str(file), "--set", change)
    assert result.returncode == 2, result.stdout
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert list(list_runs(home / "runs")) == []


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"- a list", b"name: [", b"x" * 2_000_000])
def test_a_file_that_is_no_experiment_is_refused(content: bytes | None, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    if content is not None:
        path.write_bytes(content)
    result = command("run", str(path))
    assert result.returncode == 2
    assert result.stderr.startswith("espalier: ")
    assert "Traceback" not in result.stderr


def test_a_folder_with_other_things_in_it_is_not_made_a_run(command: Command, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter.tex").write_text("x")
    result = command("run", str(file), "--run-dir", str(target))
    assert result.returncode == 2
    assert "chapter.tex" in result.stderr
    assert not (target / "experiment.yaml").exists()


def test_lists_name_what_there_is(command: Command) -> None:
    methods = command("methods", "--json")
    assert {row["name"] for row in json.loads(methods.stdout)} >= {"magnitude", "wanda", "random", "l1", "l2", "taylor"}
    assert "builtin:smollm2-135m-instruct" in command("models").stdout
    assert command("nothing").returncode == 2


def test_the_list_of_tasks_holds_the_seven_and_all_of_the_harness(command: Command) -> None:
    result = command("tasks", "--json")
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows[:7]] == [
        "boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa",
    ]  # fmt: skip
    assert len(rows) > 1000
