"""The worker process: a light start, one a run, every end told, cancelled at any stage, resumed where it was."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from core.jobs.rundir import RunDirectory
from core.jobs.states import State

ROOT = Path(__file__).resolve().parent.parent.parent
WIDTH = {"method": "l2", "ratio": 0.5, "round_to": 1, "layers": [0, 0]}
WORKER = ("-m", "core.jobs.worker")


def kinds(directory: RunDirectory, **wanted: Any) -> list[dict[str, Any]]:
    return [event for event in directory.events() if wanted.items() <= event.items()]


def test_starting_a_worker_loads_nothing_large() -> None:
    heavy = {"torch", "transformers", "numpy", "pandas", "pydantic", "ruamel", "lm_eval", "datasets"}
    code = f"import sys, core.jobs.worker; print(sorted(set(sys.modules) & {heavy!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.fresh
def test_the_first_event_comes_before_anything_large_and_says_who_works(
    experiment: Any, run_of: Any, start: Any, until: Any
) -> None:
    directory = run_of(experiment())
    process = start(*WORKER, str(directory.path))
    first = until(directory.events)[0]
    assert (first["state"], first["pid"]) == ("RUNNING", process.pid)
    assert directory.status().state is State.RUNNING
    loaded = until(lambda: [event for event in directory.events() if event.get("status") == "finished"])[0]
    came, worked = (
        datetime.fromisoformat(event["time"]).timestamp() - first["pid_created"] for event in (first, loaded)
    )
    assert came < worked / 3  # 0.2 s and 7 s on an idle machine: torch and transformers are between them


def test_two_workers_on_one_run_are_refused(experiment: Any, run_of: Any, start: Any) -> None:
    directory = run_of(experiment())
    with directory.lock():
        process = start(*WORKER, str(directory.path))
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "already has a worker" in output
    assert directory.events() == []


def test_a_finished_run_is_not_worked_on_again(experiment: Any, run_of: Any, start: Any) -> None:
    directory = run_of(experiment())
    directory.write_state(State.WAITING)
    directory.write_state(State.CANCELLED)
    process = start(*WORKER, str(directory.path))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "never changes" in output
    assert directory.status().state is State.CANCELLED


def test_a_failed_run_says_why_in_one_sentence_and_the_log_has_the_rest(
    experiment: Any, run_of: Any, start: Any, text: Path
) -> None:
    text.write_text("too short")
    directory = run_of(experiment())
    process = start(*WORKER, str(directory.path))
    process.communicate(timeout=120)
    status = directory.status()
    assert (process.returncode, status.state) == (1, State.FAILED)
    assert "9 tokens, fewer than one window of 16" in status.reason
    assert status.advice
    assert "Traceback" in directory.log_tail(200)
    assert directory.results() is None


@pytest.mark.parametrize("stage", ["load", pytest.param("save", marks=pytest.mark.fresh), "evaluate"])
def test_cancel_works_at_any_stage(stage: str, experiment: Any, run_of: Any, start: Any, until: Any) -> None:
    directory = run_of(experiment(pruning=WIDTH if stage == "save" else None, slow=True))
    process = start(*WORKER, str(directory.path))
    until(lambda: kinds(directory, kind="stage", stage=stage, status="started") or process.poll() is not None)
    if stage == "save":  # while the fresh process verifies
        until(lambda: kinds(directory, kind="progress", task="verify"))
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert directory.status().state is State.CANCELLED
    assert directory.events()[-1]["kind"] == "state"
    assert directory.stage(stage) is None
    assert not directory.worker_lives()


def test_a_worker_that_cannot_reach_a_progress_call_is_cancelled_all_the_same(
    experiment: Any, run_of: Any, start: Any, until: Any
) -> None:
    directory = run_of(experiment())
    code = """
import sys, time
import core.jobs.pipeline, core.jobs.stopping, core.jobs.worker
def stuck(directory, events, check):
    import subprocess
    events.stage("load", "started", child=subprocess.Popen(["sleep", "600"]).pid)
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass
core.jobs.pipeline.run = stuck
core.jobs.stopping.GRACE_S = 0.5
sys.exit(core.jobs.worker.main([sys.argv[1]]))
"""
    process = start("-c", code, str(directory.path))
    child = until(lambda: kinds(directory, kind="stage"))[0]["child"]
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert directory.status().state is State.CANCELLED
    until(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2], 60)


@pytest.mark.fresh
def test_a_killed_run_goes_on_from_its_saved_model_and_finished_parts(
    experiment: Callable[..., Any], run_of: Any, start: Any, until: Any, text: Path
) -> None:
    made = experiment(pruning=WIDTH, slow=True)
    quick = {"path": str(text), "window": 16, "max_tokens": 256}
    slow = {"path": str(text), "window": 8}
    directory = run_of(made.with_changes({"evaluation.perplexity": [quick, slow]}))
    process = start(*WORKER, str(directory.path))
    until(lambda: directory.stage("evaluate.perplexity.0") and kinds(directory, kind="progress", unit="windows"))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert directory.status().state is State.INTERRUPTED
    weights = directory.model_dir / "model.safetensors"
    written, first = weights.stat().st_mtime_ns, directory.stage("evaluate.perplexity.0")
    with directory.events_file.open("ab") as file:
        file.write(b'{"v": 1, "seq": 99')  # killed in the middle of a line
    text.write_text(text.read_text()[:4000])  # else the test takes long; what is finished must not be read again

    process = start(*WORKER, str(directory.path))
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output + directory.log_tail()
    status = directory.status()
    assert (status.state, status.attempt) == (State.COMPLETE, 2)
    assert weights.stat().st_mtime_ns == written
    assert directory.stage("evaluate.perplexity.0") == first
    assert [event["stage"] for event in kinds(directory, status="reused")] == ["save", "evaluate.perplexity.0"]
    sequence = [event["seq"] for event in directory.events()]
    assert sequence == list(range(1, len(sequence) + 1))
    results = directory.results()
    assert results is not None
    assert len(results["metrics"]) == 2
    assert results["pruning"]["params_after"] < results["pruning"]["params_before"]
