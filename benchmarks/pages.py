"""How long each page's script takes with many stored runs: `python -m benchmarks.pages [--runs 10000] [--home DIR]`.

Writes run directories as workers leave them (every file by its schema, numbers drawn at random), lets the app's own
service take them into its store, and runs each page through Streamlit's AppTest: the whole script with navigation and
status line, the first time and then warm. `cpu` is the time of this process, all threads; `wall` is what a visitor
would wait on a machine that does nothing else. A home that is there already is used again.
"""

import argparse
import cProfile
import json
import os
import pstats
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

METHODS = ("wanda", "magnitude", "taylor", "l1", "random", "flap", "block_influence")
LAYERS = 30
PARAMS = 134_515_008
TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
_SIZES = {"heads_before": 9, "heads_after": 9, "kv_before": 3, "kv_after": 3, "mlp_before": 1536, "mlp_after": 1536}


def build(home: Path, runs: int) -> None:
    """Write `runs` run directories and two studies' worth of marks."""
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    draw = random.Random(0)
    for number in range(runs):
        _write(home / "runs", number, begun + timedelta(minutes=13 * number), draw)


def _experiment(number: int, draw: random.Random) -> Any:
    from core.experiment import Experiment

    data: dict[str, Any] = {"name": f"run {number}", "device": "cpu", "seed": number % 5}
    data["evaluation"] = {"perplexity": ["passages"], "tasks": list(TASKS), "limit": 100}
    if number % 25:
        method = METHODS[number % len(METHODS)]
        first = draw.randint(0, 8)
        data["pruning"] = {"method": method, "ratio": draw.randint(2, 12) * 0.05, "layers": [first, first + 20]}
    if number % 25 and number % 40 == 2 and method not in ("wanda", "magnitude"):
        data["recovery"] = {"kind": "lora"}
    return Experiment.parse(data)


def _write(runs: Path, number: int, moment: datetime, draw: random.Random) -> None:
    from core.jobs.rundir import to_json
    from core.jobs.status import to_iso

    digest = f"{draw.getrandbits(64):016x}"
    run_id = f"{moment:%Y%m%d-%H%M%S}-{digest[:8]}-{number % 10000:04d}"
    folder = runs / run_id
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    experiment = _experiment(number, draw)
    state = "FAILED" if number % 19 == 3 else "CANCELLED" if number % 23 == 5 else "COMPLETE"
    (folder / "experiment.yaml").write_text(experiment.to_yaml())
    word = {"v": 1, "created": to_iso(moment), "hash": digest * 4, "resolved": {"device": "cpu", "dtype": "float32"},
            "state": "WAITING", "time": to_iso(moment), "attempt": 1, "reason": "", "advice": ""}  # fmt: skip
    (folder / "state.json").write_text(to_json(word))
    said = {"reason": "Cancelled."} if state == "CANCELLED" else {}
    said = {"reason": "The memory of this machine is exhausted.", "advice": "Lower it."} if state == "FAILED" else said
    rows = [{"kind": "state", "state": "RUNNING", "pid": 1, "pid_created": 1.0}]
    rows += [{"kind": "stage", "stage": name, "status": "finished", "seconds": 3.0} for name in ("load", "prune")]
    rows += [{"kind": "state", "state": state, **said}]
    lines = [
        {"v": 1, "seq": i, "attempt": 1, "time": to_iso(moment + timedelta(seconds=60 * i)), **row}
        for i, row in enumerate(rows, 1)
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "log.txt").write_text("The run began.\n")
    for name in ("load", "prune", "save", *(f"judge {task}" for task in TASKS)) if state == "COMPLETE" else ():
        done = {
            "v": 1,
            "stage": name,
            "finished": to_iso(moment),
            "attempt": 1,
            "seconds": round(draw.random() * 60, 1),
        }
        (folder / "stages" / f"{name.replace(' ', '%20')}.json").write_text(json.dumps(done))
    if number % 10 == 7:
        (folder / "study.json").write_text(json.dumps({"v": 1, "study": f"study-{number % 400 // 10}"}))
    if state == "COMPLETE":
        (folder / "results.json").write_text(json.dumps(_results(run_id, digest * 4, experiment, draw)))


def _results(run_id: str, digest: str, experiment: Any, draw: random.Random) -> dict[str, Any]:
    cut = experiment.pruning
    share = 0.0 if cut is None else cut.ratio * 0.5
    mask = cut is not None and cut.method in ("wanda", "magnitude")
    first, last = (0, -1) if cut is None else cut.layers
    layers = []
    for layer in range(LAYERS):
        sizes = dict(_SIZES)
        if cut is not None and first <= layer <= last and not mask:
            sizes |= {"heads_after": 6, "kv_after": 2, "mlp_after": round(1536 * (1 - cut.ratio))}
        layers.append({"layer": layer, **sizes, "density": 1 - cut.ratio if mask else None})
    text = {"corpus": "passages", "split": "heldout", "window": 512, "bos": False}
    harness = {"harness": "0.4.13", "limit": 100, "shots": 0, "chat_template": False}
    stages = ["pruned"] if experiment.recovery is None else ["pruned", "recovered"]
    metrics = []
    for stage in stages:
        perplexity = 26.0 * (1 + share) * (1 + draw.random())
        metrics.append({"stage": stage, "task": "perplexity/passages", "metric": "perplexity", "value": perplexity,
                        "stderr": perplexity / 100, "n": 16, "protocol": text})  # fmt: skip
        for task in TASKS:
            for name in ("acc", "acc_norm"):
                metrics.append({"stage": stage, "task": task, "metric": name, "value": 0.3 + 0.4 * draw.random(),
                                "stderr": 0.048, "n": 100, "protocol": harness})  # fmt: skip
    after = PARAMS if mask else round(PARAMS * (1 - share))
    return {
        "schema": 1, "run_id": run_id, "experiment": experiment.to_dict(),
        "environment": {"device": "cpu", "device_name": "a processor", "dtype": "float32", "hash": digest,
                        "model": {"fingerprint": "f" * 64}},
        "pruning": {"params_before": PARAMS, "params_after": after, "nonzero_after": round(PARAMS * (1 - share)),
                    "achieved_ratio": 0.0 if cut is None else cut.ratio, "achieved_model_ratio": share,
                    "model_layers": LAYERS, "layers": layers, "bytes": after * 4, "layout": "per_layer"},
        "metrics": metrics, "timings": {"load": 3.0, "prune": 12.0, "evaluate": 61.0}, "memory": {},
    }  # fmt: skip


# --- measuring


def cases(run_id: str, study: str) -> list[tuple[str, str, dict[str, str]]]:
    """What is opened: a name, the page's file, its query."""
    folder = Path(__file__).resolve().parent.parent / "pages"
    pages = [(path.stem, path.name, {}) for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]
    opened = [("runs, one opened", "runs.py", {"run": run_id}), ("studies, one opened", "studies.py",
              {"study": study})]  # fmt: skip
    return [*pages, *opened]


def page(file: str, query: dict[str, str]) -> Any:
    """One visitor on that page, before its first run."""
    from streamlit.testing.v1 import AppTest

    root = Path(__file__).resolve().parent.parent
    app = AppTest.from_file(str(root / "pages" / "_main.py"), default_timeout=120)
    app.switch_page(file)
    for key, value in query.items():
        app.query_params[key] = value
    return app


def clocked(work: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of wall and of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000


def measure(name: str, file: str, query: dict[str, str], times: int) -> bool:
    """Print one page's figures; whether its warm median is within 300 ms."""
    app = page(file, query)
    first, _ = clocked(app.run)
    assert not app.exception, app.exception
    found = [clocked(app.run) for _ in range(times)]
    wall, cpu = (sorted(column) for column in zip(*found, strict=True))
    p95 = wall[min(round(0.95 * len(wall)), len(wall) - 1)]
    middle = statistics.median(wall)
    print(f"{name:22} {first:9.0f} {middle:9.0f} {p95:9.0f} {wall[0]:9.0f} {statistics.median(cpu):9.0f}", flush=True)
    return middle <= 300


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--home", type=Path, help="a folder for the runs; a temporary one otherwise")
    parser.add_argument("--times", type=int, default=15)
    parser.add_argument("--only", default="", help="a page, as its row says: that one alone")
    parser.add_argument("--profile", action="store_true", help="say where the time of each page goes")
    options = parser.parse_args()
    home = options.home or Path(tempfile.mkdtemp(prefix="espalier-pages-"))
    os.environ["ESPALIER_HOME"] = str(home)
    if not (home / "runs").is_dir():
        print(f"{clocked(lambda: build(home, options.runs))[0] / 1000:.0f} s to write {options.runs} runs into {home}")
    from core.service import close_service, get_service

    print(f"{clocked(get_service)[0] / 1000:.1f} s to open the app on them (a new store reads every file)")
    service = get_service()
    service.pause()
    runs = service.runs()
    assert len(runs) >= options.runs, f"{home} holds {len(runs)} runs"
    run_id = str(runs.loc[(runs["state"] == "COMPLETE") & runs["method"].notna(), "id"].iloc[0])
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; ms of {options.times} warm scripts each\n")
    print(f"{'page':22} {'first':>9} {'warm p50':>9} {'p95':>9} {'least':>9} {'cpu p50':>9}")
    slow = []
    for name, file, query in cases(run_id, service.studies.all()[0].id):
        if not options.only or options.only == name:
            if not measure(name, file, query, options.times):
                slow.append(name)
            if options.profile:
                _profile(file, query)
    print(f"\nabove 300 ms: {', '.join(slow) or 'none'}")
    close_service()


def _profile(file: str, query: dict[str, str]) -> None:
    """Where one warm script spends its time; it runs in a thread of its own."""
    from streamlit.runtime.scriptrunner.script_runner import ScriptRunner

    app = page(file, query)
    app.run()
    profiler, plain = cProfile.Profile(), ScriptRunner._run_script_thread
    ScriptRunner._run_script_thread = lambda self: profiler.runcall(plain, self)  # type: ignore[method-assign]
    try:
        app.run()
    finally:
        ScriptRunner._run_script_thread = plain  # type: ignore[method-assign]
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("espalier|main/(core|pages)|duckdb|pandas", 40)


if __name__ == "__main__":
    main()
