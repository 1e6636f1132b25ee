"""A scan as a run: from its YAML to results and store, cancelled and resumed, judged by ordinary runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.storage.store import Store

CALIBRATION = {"samples": 4, "length": 32}


@pytest.fixture
def scan(experiment: Any, text: Path) -> Any:
    def make(**changes: Any) -> Any:
        calibration = {"path": str(text), **CALIBRATION}
        fields = {"method": "wanda", "ratio": 0.5, "calibration": calibration, **changes.pop("pruning", {})}
        evaluation = {"perplexity": [{"path": str(text), "window": 16, "max_tokens": 512}]}
        return experiment(pruning=fields, scan=changes.pop("scan", {}), evaluation=evaluation, **changes)

    return make


def finish(start: Any, directory: RunDirectory) -> dict[str, Any]:
    process = start("-m", "core.jobs.worker", str(directory.path))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output + directory.log_tail()
    results = directory.results()
    assert results is not None
    return results


def test_a_scan_says_for_each_layer_what_a_run_over_that_layer_says(
    scan: Any, experiment: Any, run_of: Any, start: Any, home: Path
) -> None:
    made = scan(scan={"by": "part"})
    directory = run_of(made)
    results = finish(start, directory)
    found = results["scan"]
    assert [(row["layer"], row["part"]) for row in found["layers"]] == [
        (layer, part) for layer in (0, 1) for part in ("layer", "attention", "mlp")
    ]
    assert not directory.model_dir.exists()
    assert results["metrics"] == []
    assert list(results["timings"]) == ["load", "calibrate", "scan"]
    assert found["protocol"]["window"] == 16

    only = made.with_changes({"scan": None, "pruning.layers": [1, 1], "pruning.parts": ["mlp"]})
    ordinary = finish(start, run_of(only))
    (perplexity,) = ordinary["metrics"]
    row = found["layers"][5]
    assert row["perplexity"] == pytest.approx(perplexity["value"], rel=1e-4)
    assert row["stderr"] == pytest.approx(perplexity["stderr"], rel=1e-3)
    assert perplexity["protocol"]["tokens_sha256"] == found["protocol"]["tokens_sha256"]
    dense = finish(start, run_of(experiment()))["metrics"][0]
    assert found["dense"]["perplexity"] == pytest.approx(dense["value"], rel=1e-4)
    assert row["cost"] == pytest.approx(row["nll"] - found["dense"]["nll"])

    store = Store()
    store.reindex(home)
    stored = store.scans([directory.id])
    assert list(stored["perplexity"]) == [each["perplexity"] for each in found["layers"]]
    assert store.rows("SELECT kind, method FROM runs WHERE id = ?", [directory.id]) == [("scan", "wanda")]
    store.close()


def test_a_scan_that_lost_its_worker_goes_on_behind_the_last_layer_that_was_done(
    scan: Any, run_of: Any, start: Any
) -> None:
    whole, again = run_of(scan()), run_of(scan())
    expected = finish(start, whole)
    marked = dict(whole.stage("scan.layer.0"))
    marked["rows"] = [{**marked["rows"][0], "removed": 123}]  # so that it shows whether it was done anew
    again.write_stage("scan.layer.0", marked)
    found = finish(start, again)["scan"]["layers"]
    assert found[0]["removed"] == 123
    assert found[1] == expected["scan"]["layers"][1]
    reused = [event for event in again.events() if event.get("status") == "reused"]
    assert [event["stage"] for event in reused] == ["scan.layer.0"]


def test_a_scan_is_cancelled_like_every_run(scan: Any, run_of: Any, start: Any, until: Any) -> None:
    made = scan()
    data = made.to_dict()
    data["evaluation"]["perplexity"][0]["max_tokens"] = None
    directory = run_of(type(made).parse(data))
    process = start("-m", "core.jobs.worker", str(directory.path))
    until(lambda: any(e["kind"] == "progress" and e.get("stage") == "scan" for e in directory.events()))
    process.terminate()
    process.communicate(timeout=60)
    status = directory.status()
    assert status.state in (State.CANCELLED, State.COMPLETE)
    progress = [e for e in directory.events() if e["kind"] == "progress" and e.get("stage") == "scan"]
    assert all(0 <= e["done"] <= e["total"] == 2 and e["unit"] == "layers" for e in progress)


def test_the_command_line_runs_a_scan(scan: Any, start: Any, tmp_path: Path) -> None:
    file, folder = tmp_path / "scan.yaml", tmp_path / "out"
    file.write_text(scan(pruning={"method": "l1", "calibration": {}, "round_to": 1}).to_yaml())
    process = start("-m", "core", "run", str(file), "--run-dir", str(folder))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    results = json.loads((folder / "results.json").read_text())
    assert len(results["scan"]["layers"]) == 2
    assert all(row["perplexity"] > 0 for row in results["scan"]["layers"])
