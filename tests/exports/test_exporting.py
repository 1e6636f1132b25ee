"""Exports of runs: which run is meant, what lies where afterwards, and the process that a page starts."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import Cancelled, InputError, QueueError
from core.experiment import Experiment
from core.jobs import exporting
from core.jobs.export_facts import slug, title_of
from core.jobs.export_source import both_stages
from core.jobs.exporting import Order, find_run, perform
from core.jobs.rundir import RunDirectory
from core.models.push import PushError

LAYERS = [(4, 2, 96), (2, 1, 64), (4, 2, 96)]
PROTOCOL = {"harness": "lm_eval 0.4.13", "shots": 0, "limit": 20}


def quiet(_stage: str, _done: float, _total: float, _unit: str) -> None:
    """Hears, and says nothing."""


@pytest.fixture
def run(home: Path, saved: Callable[..., Path]) -> Callable[..., RunDirectory]:
    """A complete run with a small model, as a worker leaves it."""
    made = 0

    def make(
        name: str = "Taylor 30 %", *, pruning: dict[str, Any] | None = None, state: str = "COMPLETE",
        model: str = "builtin:smollm2-135m-instruct", accuracy: float = 0.7, **folder: Any,
    ) -> RunDirectory:  # fmt: skip
        nonlocal made
        made += 1
        directory = RunDirectory(home / "runs" / f"2026112{made}-210000-0a1b2c3d-t00{made}")
        chosen = {"method": "taylor", "ratio": 0.3, "layers": [1, 1]} if pruning is None else pruning
        experiment = Experiment.parse({"name": name, "pruning": chosen or None, "model": {"name": model}, "seed": 5})
        directory.write_experiment(experiment)
        rows = [{"kind": "state", "state": "RUNNING"}, {"kind": "state", "state": state}]
        lines = [
            {"v": 1, "seq": i, "attempt": 1, "time": f"2026-11-23T21:00:0{i}.000Z", **row}
            for i, row in enumerate(rows, 1)
        ]
        directory.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if chosen:
            saved(name=f"model{made}", **{"layers": LAYERS, **folder}).replace(directory.model_dir)
        row = {"stage": "pruned", "task": "piqa", "metric": "acc", "value": accuracy, "stderr": 0.1, "n": 20}
        directory.write_results(
            {
                "experiment": experiment.to_dict(),
                "environment": {"model": {"fingerprint": "f"}, "dtype": "float32", "device": "cpu"},
                "pruning": {
                    "achieved_ratio": 0.2188,
                    "achieved_model_ratio": 0.1266,
                    "params_before": 999_999,
                    "nonzero_after": 1,
                    "model_layers": 3,
                },
                "metrics": [{**row, "protocol": PROTOCOL}],
            }
        )
        return directory

    return make


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """No process of an export outlives its test."""
    yield
    for child in exporting._CHILDREN:
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    exporting._CHILDREN.clear()


# ------------------------------------------------------------------------------------------------------- which is meant


def test_a_run_is_found_by_id_by_its_beginning_and_by_its_folder(run: Any, home: Path) -> None:
    first, second = run(), run()
    assert find_run(first.id, home).path == first.path
    assert find_run(second.id[:8], home).path == second.path
    assert find_run(str(first.path), home).path == first.path
    with pytest.raises(InputError, match="2 runs begin with '2026'"):
        find_run("2026", home)
    for wrong in ("2027", "", "../..", str(home)):
        with pytest.raises(InputError, match="There is no run"):
            find_run(wrong, home)


def test_runs_that_cannot_be_exported_say_why(run: Any) -> None:
    failed = run(state="FAILED")
    with pytest.raises(InputError, match="is FAILED, and only complete"):
        exporting.folder_of(failed)
    assert exporting.choices(failed) == []
    bare = run()
    shutil.rmtree(bare.model_dir)
    with pytest.raises(InputError, match="kept no model"):
        exporting.folder_of(bare)


def test_choices_know_sizes_and_what_llama_cpp_cannot_do(run: Any) -> None:
    found = {(each.format, each.dtype): each for each in exporting.choices(run())}
    assert list(found)[:3] == [("hf", "float32"), ("hf", "float16"), ("hf", "bfloat16")]
    assert found["gguf", "float32"].bytes == 2 * found["hf", "bfloat16"].bytes
    assert found["gguf", "q4_0"].bytes < found["gguf", "q8_0"].bytes < found["gguf", "float16"].bytes
    assert {each.blocked for each in found.values()} == {""}
    odd = {(each.format, each.dtype): each for each in exporting.choices(run(hidden_size=48))}
    assert odd["gguf", "q4_0"].bytes == odd["gguf", "float16"].bytes, "rows of 48 are kept in float16"


@pytest.mark.parametrize(
    ("text", "name"),
    [("SmolLM2, Taylor 30 %, layers 4–25", "smollm2-taylor-30-layers-4-25"), ("../../etc", "etc"), ("日本", "model"),
     ("é" * 80, "e" * 60), ("a/b\\c\n", "a-b-c")],
)  # fmt: skip
def test_file_names_are_plain(text: str, name: str) -> None:
    assert slug(text) == name


# ----------------------------------------------------------------------------------------------------------- two models


@pytest.fixture
def recovered(run: Any, saved: Callable[..., Path]) -> Callable[..., RunDirectory]:
    """A run that kept its pruned and its recovered model, with weights of their own."""
    from safetensors.torch import load_file, save_file

    def make(*, state: str = "COMPLETE") -> RunDirectory:
        directory: RunDirectory = run(state=state)
        experiment = directory.experiment().with_changes({"recovery": {"kind": "lora", "learning_rate": 0.001}})
        directory.write_experiment(experiment)
        later = saved(name=f"later-{directory.id}", layers=LAYERS)
        weights = load_file(str(later / "model.safetensors"))
        trained = {name: value + 0.01 if "q_proj" in name else value for name, value in weights.items()}
        save_file(trained, str(later / "model.safetensors"), metadata={"format": "pt"})
        later.replace(directory.recovered_dir)
        results = directory.results() or {}
        (first,) = results["metrics"]
        results["metrics"].append({**first, "stage": "recovered", "value": 0.9})
        results["recovery"] = {"training": {"steps": 7, "tokens": 99}, "data": {"data": "rows.jsonl"}}
        directory.write_results({**results, "experiment": experiment.to_dict()})
        return directory

    return make


def test_of_a_run_with_recovery_either_model_is_exported_the_last_by_default(recovered: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    directory = recovered()
    assert both_stages(directory) == ("recovered", "pruned")
    assert (directory.model_dir / "model.safetensors").read_bytes() != (
        directory.recovered_dir / "model.safetensors"
    ).read_bytes()
    made = {stage: perform(Order(directory, None, "hf", stage=stage), quiet)[0] for stage in ("pruned", "recovered")}
    default, _ = perform(Order(directory, None, "hf", out=tmp_path / "out"), quiet)
    names = {"pruned": "model", "recovered": "recovered"}
    for stage, exported in made.items():
        assert exported.path == directory.path / "export" / f"{stage}-hf-float32"
        own = load_file(str(directory.path / names[stage] / "model.safetensors"))
        written = load_file(str(exported.path / "model.safetensors"))
        assert all(bool((own[name] == value).all()) for name, value in written.items())
    assert (default.path / "model.safetensors").read_bytes() == (
        made["recovered"].path / "model.safetensors"
    ).read_bytes()
    cards = {stage: (exported.path / "README.md").read_text() for stage, exported in made.items()}
    assert "70.0 ± 10.0 %" in cards["pruned"]
    assert "90.0" not in cards["pruned"]
    assert "| Recovery | none: this is the model before recovery |" in cards["pruned"]
    assert "90.0 ± 10.0 %" in cards["recovered"]
    assert "70.0" not in cards["recovered"]
    assert (
        "LoRA, rank 8, alpha 16, learning rate 0.001; on rows.jsonl; 7 steps, 99 tokens learned" in cards["recovered"]
    )
    assert [(status.name, status.of) for status in exporting.exports(directory)] == [
        ("recovered-hf-float32", "recovered"), ("pruned-hf-float32", "pruned"),
    ]  # fmt: skip


def test_a_failed_recovery_leaves_the_pruned_model_to_export(recovered: Any) -> None:
    directory = recovered(state="FAILED")
    with pytest.raises(InputError, match="is FAILED"):  # nothing says that it was judged
        exporting.folder_of(directory)
    for stage in ("save", "evaluate"):
        directory.write_stage(stage, {"seconds": 1.0})
    assert exporting.folder_of(directory) == directory.model_dir
    assert exporting.choices(directory) != []
    with pytest.raises(InputError, match="is FAILED"):
        exporting.folder_of(directory, "recovered")
    exported, _ = perform(Order(directory, None, "gguf", "q8_0"), quiet)
    assert exported.path.parent == directory.path / "export" / "gguf-q8_0"


def test_a_stage_that_a_run_does_not_have_is_refused(run: Any) -> None:
    with pytest.raises(InputError, match="has no recovered model"):
        exporting.folder_of(run(), "recovered")
    with pytest.raises(InputError, match="judged the dense model"):
        exporting.folder_of(run("dense", pruning={}), "pruned")
    plain = run()
    assert exporting.folder_of(plain, "pruned") == plain.model_dir


def test_a_stage_is_exported_in_the_background_under_its_own_name(recovered: Any, home: Path) -> None:
    directory = recovered()
    exporting.start(directory, home, "gguf", "q8_0", "pruned")
    done = wait(directory, "pruned-gguf-q8_0", "COMPLETE", "FAILED")
    assert (done.state, done.of) == ("COMPLETE", "pruned"), exporting.log_tail(directory, "pruned-gguf-q8_0")
    assert Path(done.path).parent.name == "pruned-gguf-q8_0"


# ------------------------------------------------------------------------------------------------------------- doing it


def test_a_gguf_lies_beside_the_run_with_card_yaml_and_status(run: Any) -> None:
    directory = run()
    dense = run("dense", pruning={}, accuracy=0.75)
    heard: list[str] = []
    exported, url = perform(Order(directory, None, "gguf", "q8_0"), lambda stage, *_: heard.append(stage))
    assert url == ""
    folder = directory.path / "export" / "gguf-q8_0"
    assert exported.path == folder / "smollm2-135m-instruct-taylor-30-Q8_0.gguf"
    assert {path.name for path in folder.iterdir()} == {
        exported.path.name, "README.md", "experiment.yaml", "espalier_export.json",
    }  # fmt: skip
    assert heard[0] == "write"
    card = (folder / "README.md").read_text()
    assert "70.0 ± 10.0 % | 75.0 ± 10.0 %" in card, "the dense run beside it has the same protocol"
    assert "| Seed | 5 |" in card
    assert Experiment.from_yaml((folder / "experiment.yaml").read_text()) == directory.experiment()
    (status,) = exporting.exports(directory)
    assert (status.state, status.bytes, status.path) == ("COMPLETE", exported.bytes, str(exported.path))
    assert status.checks == exported.checks
    assert dense.path.is_dir()


def test_the_dense_model_of_a_dense_run_is_exported(run: Any, saved: Any) -> None:
    source = saved(name="dense-model")
    directory = run("dense", pruning={}, model=str(source))
    exported, _ = perform(Order(directory, None, "hf"), quiet)
    assert exported.path == directory.path / "export" / "hf-float32"
    card = (exported.path / "README.md").read_text()
    assert "dense-model, not pruned" in card
    assert str(source.parent) not in card, "no folder of this machine is published"
    assert str(source.parent) not in (exported.path / "experiment.yaml").read_text()


def test_a_dense_model_goes_under_exports(saved: Any, home: Path) -> None:
    exported, _ = perform(Order(None, str(saved(name="tiny")), "gguf", "float16"), quiet)
    assert exported.path == home / "exports" / "tiny" / "gguf-float16" / "tiny-F16.gguf"


def test_a_chosen_folder_gets_no_status_and_is_written_again(run: Any, tmp_path: Path) -> None:
    directory = run()
    for dtype in ("float32", "float16"):
        exported, _ = perform(Order(directory, None, "gguf", dtype, tmp_path / "there"), quiet)
    assert [path.name for path in (tmp_path / "there").glob("*.gguf")] == [exported.path.name]
    assert exporting.exports(directory) == []


def test_stopping_leaves_the_export_of_before(run: Any) -> None:
    directory = run()
    perform(Order(directory, None, "gguf", "q8_0"), quiet)
    before = exporting.exports(directory)[0].path

    def stop(stage: str, *_: Any) -> None:
        if stage == "write":
            raise Cancelled

    with pytest.raises(Cancelled):
        perform(Order(directory, None, "gguf", "q8_0"), stop)
    (status,) = exporting.exports(directory)
    assert status.state == "CANCELLED"
    assert Path(before).is_file()
    assert not list((directory.path / "export").glob(".*"))


def test_without_llama_cpp_the_card_says_so(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.models.llamacpp.installed", lambda: False)
    exported, _ = perform(Order(run(), None, "gguf", "float16"), quiet)
    assert exported.agreement is None
    assert "not verified with llama.cpp here" in (exported.path.parent / "README.md").read_text()


def test_an_upload_that_fails_keeps_the_export(run: Any) -> None:
    directory = run()
    with pytest.raises(PushError, match="switched off"):
        perform(Order(directory, None, "gguf", "float16", push="me/x"), quiet)
    (status,) = exporting.exports(directory)
    assert (status.state, "switched off" in status.message) == ("FAILED", True)
    assert Path(status.path).is_file()


def test_titles_name_no_folder(run: Any, saved: Any) -> None:
    assert title_of(None, "/home/me/models/tiny/") == "tiny"
    assert title_of(run(), None) == "SmolLM2-135M-Instruct, Taylor 30 %"


# -------------------------------------------------------------------------------------------------- in the background


def wait(directory: RunDirectory, name: str, *states: str) -> exporting.ExportStatus:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = {status.name: status for status in exporting.exports(directory)}
        if name in found and found[name].state in states:
            return found[name]
        time.sleep(0.1)
    pytest.fail(f"no {states}: {found}\n{exporting.log_tail(directory, name)}")


def test_a_background_export_tells_where_it_is_and_ends(run: Any, home: Path) -> None:
    directory = run()
    exporting.start(directory, home, "gguf", "q8_0")
    assert exporting.exports(directory)[0].state == "RUNNING"
    with pytest.raises(QueueError, match="already"):
        exporting.start(directory, home, "gguf", "q8_0")
    done = wait(directory, "gguf-q8_0", "COMPLETE", "FAILED")
    assert done.state == "COMPLETE", exporting.log_tail(directory, "gguf-q8_0")
    assert Path(done.path).stat().st_size == done.bytes
    deadline = time.monotonic() + 60  # the log's last lines come after the state
    while "read again" not in exporting.log_tail(directory, "gguf-q8_0") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "read again" in exporting.log_tail(directory, "gguf-q8_0")


def test_a_failed_one_says_what_happened_in_words(run: Any, home: Path) -> None:
    directory = run()
    weights = directory.model_dir / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    exporting.start(directory, home, "gguf", "float16")
    failed = wait(directory, "gguf-float16", "FAILED")
    assert "model.safetensors" in failed.message
    assert "Traceback" not in failed.message


def test_one_that_is_stopped_removes_what_it_wrote(run: Any, home: Path) -> None:
    directory = run()
    exporting.start(directory, home, "hf", "float32")
    wait(directory, "hf-float32", "RUNNING")
    while not list((directory.path / "export").glob(".hf-*")):
        time.sleep(0.05)
    exporting.cancel(directory, "hf-float32")
    assert wait(directory, "hf-float32", "CANCELLED").message == "Cancelled."
    assert {path.suffix for path in (directory.path / "export").iterdir()} == {".json", ".log"}


def test_a_process_that_is_killed_is_not_running(run: Any, home: Path) -> None:
    directory = run()
    exporting.start(directory, home, "hf", "float32")
    status = wait(directory, "hf-float32", "RUNNING")
    assert status.pid is not None
    os.kill(status.pid, 9)
    assert "ended without a result" in wait(directory, "hf-float32", "FAILED").message


def test_deleting_a_run_ends_its_exports_first(run: Any, home: Path) -> None:
    from core.service import Service

    directory = run()
    service = Service(home)
    try:
        service.start_export(directory.id, "hf", "float32")
        wait(directory, "hf-float32", "RUNNING")
        service.delete(directory.id)
        time.sleep(0.5)
        assert not directory.path.exists()
    finally:
        service.close()
