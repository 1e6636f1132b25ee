"""Run directories as workers leave them, written by hand, and the process's service on the test's own home."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from core.service import Service, close_service, get_service

TASK = {"harness": "0.4.13", "limit": 100, "shots": 0, "chat_template": False}
TEXT = {"corpus": "passages", "split": "test", "window": 512, "bos": False}
EVALUATION = {"perplexity": [{"corpus": "passages", "max_tokens": 8192}], "tasks": ["piqa"], "limit": 100}
PARAMS = 134_515_008


def metrics(perplexity: float, accuracy: float) -> list[dict[str, Any]]:
    rows = [
        ("perplexity/passages", "perplexity", perplexity, perplexity / 100, 16, TEXT),
        ("piqa", "acc", accuracy, 0.048, 100, TASK),
    ]
    names = ("task", "metric", "value", "stderr", "n", "protocol")
    return [{"stage": "pruned", **dict(zip(names, row, strict=True))} for row in rows]


@pytest.fixture
def run_folder(home: Path) -> Callable[..., str]:
    """Writes one run directory and returns its id: `run_folder("taylor 30 %", {"method": "taylor", "ratio": 0.3})`."""
    made = 0

    def make(
        name: str,
        pruning: dict[str, Any] | None = None,
        *,
        state: str = "COMPLETE",
        values: tuple[float, float] | None = (26.5, 0.65),
        removed: float = 0.2,
        events: Sequence[dict[str, Any]] = (),
        log: str = "",
        recovery: dict[str, Any] | None = None,
        **ended: Any,
    ) -> str:
        nonlocal made
        made += 1
        run_id = f"20261123-2{made // 60:01d}{made % 60:02d}00-0a1b2c3d-t{made:03d}"
        folder = RunDirectory(home / "runs" / run_id)
        parts = {"pruning": pruning, "recovery": recovery, "evaluation": EVALUATION}
        experiment = Experiment.parse({"name": name, **parts, "device": "cpu"})
        folder.write_experiment(experiment)
        time = f"2026-11-23T21:{made % 60:02d}:0"
        rows = [{"kind": "state", "state": "RUNNING"}, *events]
        rows += [{"kind": "state", "state": state, **ended}] if state != "RUNNING" else []
        lines = [
            {"v": 1, "seq": i, "attempt": 1, "time": f"{time}{min(i, 9)}.000Z", **row} for i, row in enumerate(rows, 1)
        ]
        folder.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        folder.log_file.write_text(log)
        if state == "COMPLETE":
            folder.write_results(results(run_id, experiment, values, removed))
        return run_id

    return make


def results(run_id: str, experiment: Experiment, values: tuple[float, float] | None, removed: float) -> dict[str, Any]:
    pruned = experiment.pruning
    mask = pruned is not None and pruned.method in ("wanda", "magnitude")
    share = removed if pruned is not None else 0.0
    layer = {"heads_before": 9, "heads_after": 6, "kv_before": 3, "kv_after": 2, "mlp_before": 1536, "mlp_after": 1024}
    same = {**layer, "heads_after": 9, "kv_after": 3, "mlp_after": 1536}
    return {
        "schema": 1,
        "run_id": run_id,
        "experiment": experiment.to_dict(),
        "environment": {"device": "cpu", "device_name": "AMD EPYC", "dtype": "float32", "hash": run_id},
        "pruning": {
            "params_before": PARAMS,
            "params_after": PARAMS if mask else round(PARAMS * (1 - share)),
            "nonzero_after": round(PARAMS * (1 - share)),
            "achieved_ratio": 0.3 if pruned else 0.0,
            "achieved_model_ratio": share,
            "model_layers": 30,
            "layers": [
                {"layer": i, **(same if pruned is None or mask else layer), "density": 0.5 if mask else None}
                for i in range(30)
            ],
        },
        "metrics": metrics(*values) if values else [],
        "timings": {"load": 3.0, "prune": 12.0, "evaluate": 61.0} if pruned else {"load": 3.0, "evaluate": 50.0},
    }


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    """The process's service on this test's own home, its queue at rest."""
    made = get_service()
    made.pause()
    yield made
    close_service()


@pytest.fixture
def recovered(run_folder: Any, home: Path) -> Callable[..., str]:
    """A complete run that was judged before and after recovery: `recovered("tuned", (33.0, 0.61))`."""

    def make(name: str, after: tuple[float, float], *, kind: str = "lora", diverged: str = "", **rest: Any) -> str:
        pruning = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}
        run_id: str = run_folder(name, pruning, recovery={"kind": kind}, **rest)
        folder = RunDirectory(home / "runs" / run_id)
        content = folder.results() or {}
        content["metrics"] += [{**metric, "stage": "recovered"} for metric in metrics(*after)]
        content["timings"] |= {"recover": 120.0, "judge_recovered": 60.0}
        training = {
            "steps": 90, "planned_steps": 100, "seconds": 90.0, "tokens": 12_000, "stopped": "after 1.5 min, as set",
            "validation_before": 4.5, "validation_after": 3.25, "diverged": diverged, "micro_batch": 4,
            "accumulation": 2, "gradient_checkpointing": True, "precision": "float32", "trained_parameters": 2_081_792,
        }  # fmt: skip
        data = {"data": "<b>rows</b>.jsonl", "documents": 59, "validation_documents": 1}
        content["recovery"] = {"training": training, "data": data, "layout": "per_layer"}
        folder.write_results(content)
        write_curve(folder)
        return run_id

    return make


def write_curve(folder: RunDirectory) -> None:
    """A training of two points, as it is written while it goes."""
    folder.recovery_dir.mkdir()
    points = [
        {"step": 0, "seconds": 0.0, "tokens": 0, "loss": None, "rate": 0.0, "validation": 4.5},
        {"step": 90, "seconds": 90.0, "tokens": 12_000, "loss": 3.0, "rate": 1e-5, "validation": 3.25},
    ]
    (folder.recovery_dir / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test has just written is seen by the next page, however quick it comes."""
    monkeypatch.setattr("core.service.SYNC_EVERY_S", 0.0)
    monkeypatch.setattr("core.live.FRESH_S", 0.0)
