"""Runs let others measure speed, and fail before pruning where a task's data cannot be had."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.data import tasks
from core.device_use import Use
from core.experiment import Experiment
from core.files import write_atomic
from core.jobs import worker
from core.jobs.journal import MEASURED
from core.jobs.rundir import RunDirectory
from core.jobs.states import State


def progress(directory: RunDirectory) -> list[dict[str, Any]]:
    return [event for event in directory.events() if event["kind"] == "progress"]


def test_a_run_pauses_while_another_measures_speed_and_says_so(
    experiment: Callable[..., Experiment],
    run_of: Callable[[Experiment], RunDirectory],
    start: Callable[..., Any],
    until: Callable[..., Any],
) -> None:
    directory = run_of(experiment(slow=True))
    process = start("-m", "core.jobs.worker", str(directory.path))
    until(lambda: any((event.get("task") or "").startswith("perplexity") for event in progress(directory)))
    use = Use("cpu")
    with use.alone() as alone:
        assert alone
        until(lambda: any(event.get("task") == MEASURED for event in progress(directory)), 60)
        assert process.poll() is None
    before = len(progress(directory))
    until(lambda: any(event.get("task") != MEASURED for event in progress(directory)[before:]), 60)
    use.close()
    process.terminate()
    process.wait(60)
    assert directory.status().state is State.CANCELLED


def test_a_paused_run_can_be_cancelled(
    experiment: Callable[..., Experiment],
    run_of: Callable[[Experiment], RunDirectory],
    start: Callable[..., Any],
    until: Callable[..., Any],
) -> None:
    use = Use("cpu")
    with use.alone():
        directory = run_of(experiment())
        process = start("-m", "core.jobs.worker", str(directory.path))
        until(lambda: any(event.get("task") == MEASURED for event in progress(directory)), 60)
        process.terminate()
        process.wait(60)
    use.close()
    assert directory.status().state is State.CANCELLED


def test_a_task_whose_data_cannot_be_had_fails_before_pruning(
    experiment: Callable[..., Experiment],
    run_of: Callable[[Experiment], RunDirectory],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is cached under the data set's name is no data: that shows only when it is opened."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache / "datasets"))
    (cache / "datasets" / "eleutherai___lambada_openai").mkdir(parents=True)
    info = tasks.TaskInfo("lambada_openai", data_set="EleutherAI/lambada_openai")
    write_atomic(tasks.index_file(), tasks.index_text([info]))
    made = experiment(pruning={"method": "magnitude", "ratio": 0.5})
    directory = run_of(made.with_changes({"evaluation.tasks": ["lambada_openai"]}))
    with directory.lock():
        assert worker.work(directory) == worker.FAILED
    status = directory.status()
    assert "lambada_openai cannot be had" in status.reason
    assert "prune" not in directory.stages()
    begun = [event["stage"] for event in directory.events() if event["kind"] == "stage"]
    assert set(begun) == {"load"}
