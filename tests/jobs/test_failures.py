"""Why runs fail: in words, in one word, and with the change that helps."""

import errno
import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import DataError, DiskFullError, EspalierError, GatedModelError, ModelError, NumericalError
from core.experiment import Experiment
from core.jobs import processes
from core.jobs.events import EventWriter
from core.jobs.failures import cause_of, explain
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.jobs.status import RunStatus
from core.remedies import Remedy, remedies

WORKER = ("-m", "core.jobs.worker")
CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB"
HOST = (
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes. Error code 12"
)
WIDTH = {"method": "taylor", "ratio": 0.5, "calibration": {"samples": 32, "length": 256}}


def error_without_room() -> ModelError:
    """As libraries wrap it: the disk's own error is the cause of another."""
    try:
        try:
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        except RuntimeError as error:
            raise ModelError("The model cannot be written.") from error
    except ModelError as error:
        return error


def test_memory_says_what_was_needed_what_was_free_and_in_which_stage() -> None:
    import torch

    gpu = explain(torch.cuda.OutOfMemoryError(CUDA), stage="calibrate")
    assert cause_of(gpu) == "memory"
    assert gpu.message.startswith("The memory of the GPU ran out in the stage calibrate: 2.7 GB more were needed, and ")
    host = explain(RuntimeError(HOST), stage="evaluate.task.boolq")
    assert host.message.startswith("The memory of this machine ran out in the stage evaluate: 9.0 GB more were needed")
    assert "GB were free." in host.message
    assert "batch size" in host.advice
    assert cause_of(explain(MemoryError())) == "memory"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota"), error_without_room()],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_known_however_it_is_wrapped(error: Exception, tmp_path: Path) -> None:
    told = explain(error, tmp_path)
    assert isinstance(told, DiskFullError)
    assert cause_of(told) == "disk"
    assert "are left where the runs lie" in told.message
    assert "Free some space" in told.advice


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (GatedModelError("x asks for its licence to be accepted."), "gated"),
        (ModelError("x is not here."), "model"),
        (DataError("No text.", "Give one."), "data"),
        (NumericalError("nan."), "nan"),
        (EspalierError("Something else."), ""),
    ],
)
def test_known_errors_keep_their_words_and_have_one_of_their_own(error: EspalierError, word: str) -> None:
    assert explain(error) is error
    assert cause_of(error) == word


def test_unknown_errors_are_named_without_their_traceback() -> None:
    assert explain(KeyError("x")).message == "An unexpected error: KeyError: 'x'"
    assert json.dumps(explain(RuntimeError("")).message) == '"An unexpected error: RuntimeError: no message"'
    assert cause_of(explain(KeyError("x"))) == ""


def test_a_gated_model_is_said_to_be_one_by_config_and_by_weights(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Any
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    from core.experiment import ModelChoice
    from core.models import catalogue, loading
    from core.models.catalogue import ModelSource

    def closed(*_: Any, **__: Any) -> str:
        raise GatedRepoError("403", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", closed)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", closed)
    with pytest.raises(GatedModelError, match="licence") as told:
        catalogue.resolve(ModelChoice(name="some/gated-model"))
    assert "hf auth login" in told.value.advice
    sizes = catalogue.resolve(ModelChoice(name=str(tiny_folder()))).architecture
    source = ModelSource("some/gated-model", "gated", None, "some/gated-model", None, sizes, {})
    with pytest.raises(GatedModelError, match="licence"):
        loading.weights_directory(source)


def test_what_killed_a_worker_is_told_by_its_code() -> None:
    assert processes.cause_of_end(-signal.SIGKILL) == "killed"
    assert processes.cause_of_end(processes.DISK_FULL) == "disk"
    assert "disk is full" in processes.describe_end(processes.DISK_FULL)[0]
    assert [processes.cause_of_end(code) for code in (None, 1, -signal.SIGTERM)] == ["", "", ""]
    reason, advice = processes.ended_for_memory(3_000_000_000)
    assert "it held 3.0 of " in reason
    assert "smaller batch" in advice
    assert processes.out_of_memory_kills() >= 0


# ------------------------------------------------------------------------------------------------------------- remedies


def offered(cause: str, stage: str, dtype: str = "bfloat16", **changes: Any) -> list[Remedy]:
    data = {"pruning": WIDTH, "evaluation": {"fidelity": True, "speed": False}, "device": "cpu", **changes}
    experiment = Experiment.parse(data)
    found = remedies(experiment, RunStatus("x", State.FAILED, stage=stage, cause=cause), dtype)
    for remedy in found:
        assert experiment.with_changes(remedy.changes) != experiment
        assert remedy.text[0].isupper()
    return found


def test_where_memory_ran_out_what_that_stage_holds_is_lowered() -> None:
    one_by_one, fewer = offered("memory", "calibrate")
    assert one_by_one.changes == {"pruning.calibration.batch_size": 1}
    assert (fewer.text, fewer.changes) == ("Lower the calibration samples to 16", {"pruning.calibration.samples": 16})
    assert offered("memory", "scan.layer.7") == [one_by_one, fewer]
    assert offered("killed", "evaluate.task.boolq")[0].changes == {"evaluation.batch_size": 1}
    kept = {"fidelity": True, "speed": False, "batch_size": 1}
    assert offered("memory", "judge_recovered", evaluation=kept)[0].changes == {"evaluation.fidelity": False}
    training = {"kind": "lora", "micro_batch": 1}
    assert offered("memory", "recover", recovery=training)[0].changes == {"recovery.cutoff": 128}
    assert offered("memory", "load", "float32")[0].changes == {"model.dtype": "bfloat16"}
    assert offered("memory", "load") == []


def test_a_shorter_window_keeps_the_texts_and_says_what_it_costs(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("x")
    texts = [{"corpus": "passages", "window": 2048}, {"path": str(file), "window": 64}]
    judged = {"perplexity": texts, "fidelity": False, "speed": False, "batch_size": 1}
    (remedy,) = offered("memory", "evaluate", evaluation=judged)
    changed = Experiment.parse({"evaluation": judged}).with_changes(remedy.changes).evaluation.perplexity
    assert [(text.corpus, text.path, text.window) for text in changed] == [
        ("passages", None, 1024),
        (None, str(file), 64),
    ]
    assert "cannot be compared" in remedy.note


def test_other_causes_have_other_changes_and_most_have_none() -> None:
    assert [remedy.changes for remedy in offered("disk", "save")] == [{"save_model": False}]
    assert offered("disk", "save", save_model=False) == []
    assert [remedy.changes for remedy in offered("nan", "evaluate", "float16")] == [
        {"model.dtype": "bfloat16"}, {"model.dtype": "float32"},
    ]  # fmt: skip
    assert offered("nan", "recover", recovery={"kind": "lora"})[0].changes == {"recovery.learning_rate": 2.5e-05}
    assert offered("nan", "evaluate", "float32") == []
    for cause in ("gated", "data", "model", "", "<b>forged</b>"):
        assert offered(cause, "load") == []


# ------------------------------------------------------------------------------------------------------- real workers


FAILING = """
import sys
import core.jobs.pipeline, core.jobs.worker
import torch
def fails(directory, events, check):
    events.stage("evaluate", "started")
    {what}
core.jobs.pipeline.run = fails
sys.exit(core.jobs.worker.main([sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("what", "cause", "word"),
    [
        ("torch.empty(1 << 56, dtype=torch.uint8)", "memory", "GB more were needed"),
        ("raise OSError(28, 'No space left on device')", "disk", "The disk is full"),
    ],
)
def test_a_worker_that_fails_leaves_the_cause_in_its_last_word(
    what: str, cause: str, word: str, experiment: Any, run_of: Any, start: Any
) -> None:
    directory: RunDirectory = run_of(experiment())
    process = start("-c", FAILING.format(what=what), str(directory.path))
    output, _ = process.communicate(timeout=120)
    status = directory.status()
    assert (process.returncode, status.state) == (1, State.FAILED), output
    assert status.cause == cause
    assert word in status.reason
    assert status.stage == "evaluate"


def test_a_disk_too_full_for_the_last_word_is_told_by_the_exit_code(
    experiment: Any, run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.jobs import worker

    directory: RunDirectory = run_of(experiment())
    full = OSError(errno.ENOSPC, "No space left on device")

    def run(*_: Any) -> None:
        raise full

    def state(writer: EventWriter, state: State, **more: Any) -> None:
        if state is State.FAILED:
            raise full
        said(writer, state, **more)

    said = EventWriter.state
    monkeypatch.setitem(sys.modules, "core.jobs.pipeline", type("pipeline", (), {"run": staticmethod(run)}))
    monkeypatch.setattr(EventWriter, "state", state)
    monkeypatch.setattr("core.jobs.worker.StopRequest.install", lambda *_: None)
    with directory.lock():
        assert worker.work(directory) == processes.DISK_FULL
    assert directory.status().state is State.INTERRUPTED


def test_the_worker_is_the_first_to_go_where_memory_runs_out(experiment: Any, run_of: Any, start: Any) -> None:
    directory = run_of(experiment())
    code = "print(open('/proc/self/oom_score_adj').read())"
    process = start("-c", FAILING.format(what=code), str(directory.path))
    output, _ = process.communicate(timeout=120)
    assert "500" in output
