"""Rows as the store gives them, and what tests read off a chart."""

import json
import math

import pandas as pd

from core import charts

TASK = {"limit": 100, "shots": 0, "harness": "0.4.13"}


TEXT = {"corpus": "passages", "split": "heldout", "window": 512, "bos": False}


def run_row(run_id, method, ratio=None, removed=None, kind=None, name="", experiment=""):
    kind = None if method is None else kind or ("mask" if method in ("wanda", "magnitude") else "width")
    before = 134_515_008
    removed = removed if removed is not None else (None if method is None else ratio * 0.6)
    after = before if kind in (None, "mask") else int(before * (1 - removed))
    return {
        "id": run_id, "name": name, "state": "COMPLETE", "method": method, "kind": kind, "ratio": ratio,
        "achieved_model_ratio": removed, "params_before": before, "params_after": after, "experiment": experiment,
    }  # fmt: skip


def metric_row(run_id, task, metric, value, stderr=None, protocol=None, stage="pruned", n=100):
    protocol = protocol or (TEXT if metric == "perplexity" else TASK)
    text = json.dumps(protocol, sort_keys=True)
    return {
        "run_id": run_id, "stage": stage, "task": task, "metric": metric, "value": value, "stderr": stderr, "n": n,
        "protocol": text, "protocol_key": str(abs(hash(text)))[:8],
    }  # fmt: skip


def study():
    """Dense, two Taylor ratios, one Wanda; perplexity and two tasks."""
    runs = pd.DataFrame(
        [
            run_row("dense-1", None, name="dense"),
            run_row("taylor-30", "taylor", 0.3, 0.169),
            run_row("taylor-20", "taylor", 0.2, 0.106),
            run_row("wanda-50", "wanda", 0.5, 0.39),
        ]
    )
    values = {
        "dense-1": (26.2, 0.3, 0.65, 0.48),
        "taylor-30": (78.5, 1.2, 0.57, 0.5),
        "taylor-20": (44.0, 0.6, 0.6, 0.51),
        "wanda-50": (40.1, 0.5, 0.61, 0.49),
    }
    rows = []
    for run_id, (ppl, err, piqa, wino) in values.items():
        rows += [
            metric_row(run_id, "perplexity/passages", "perplexity", ppl, err, n=40_000),
            metric_row(run_id, "piqa", "acc", piqa, math.sqrt(piqa * (1 - piqa) / 99)),
            metric_row(run_id, "winogrande", "acc", wino, math.sqrt(wino * (1 - wino) / 99)),
        ]
    return runs, pd.DataFrame(rows), dict.fromkeys(runs["id"], "dense-1")


def traces(figure, name=None):
    return [trace for trace in figure.data if trace.mode and "markers" in trace.mode and name in (None, trace.name)]


def quality(table, task, metric="acc"):
    return next(q for q in charts.qualities(table) if q.task == task and q.metric == metric)
