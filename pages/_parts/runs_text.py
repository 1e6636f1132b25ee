"""Runs in words and small HTML: names, states, progress, time. Pure; every text from a run is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pandas as pd

from core.service import RunDetail
from pages._parts.theme import duration, html

STAGES = {
    "load": "load",
    "calibrate": "calibrate",
    "prune": "prune",
    "scan": "scan",
    "save": "save",
    "evaluate": "evaluate",
    "recover": "recover",
    "judge_recovered": "evaluate again",
}
RECOVERIES = {"lora": "LoRA", "distillation": "distillation"}
STATES = {
    "WAITING": "waiting",
    "RUNNING": "running",
    "INTERRUPTED": "interrupted",
    "COMPLETE": "complete",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
}
SILENT_AFTER_S = 180
"""Work tells of itself every few seconds; after so long without a word people are told."""
ACTIVE = ("RUNNING",)
QUEUED = ("WAITING", "INTERRUPTED")


def state_word(state: object) -> str:
    """The state as people read it."""
    return STATES.get(str(state), str(state).lower())


def stage_word(stage: object) -> str:
    """The stage as people read it; the main stage of a part such as `judge_recovered.task.boolq`."""
    name, _, part = str(stage).partition(".")
    words = part.split(".")[1:] or ([part] if part else [])
    return " ".join([STAGES.get(name, name.replace("_", " ")), *words])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as mappings by column name."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def method_line(row: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """What a run does, in one short line: `Taylor 30 % · layers 4–25 · LoRA`, `dense model`."""
    method = row.get("method")
    if nothing(method):
        return "dense model"
    if row.get("kind") == "quantised":
        return f"dense model in {str(method).upper()}"
    words = [f"{titles.get(str(method), str(method))} {100 * float(row['ratio']):.3g} %"]
    scan = ["scan of layers"] if row.get("kind") == "scan" else []
    pattern = row.get("pattern")
    if not nothing(pattern) and pattern != "unstructured":
        words[0] = f"{titles.get(str(method), str(method))} {pattern}"
    if row.get("target") == "model":
        words[0] += " of the whole model"
    first, last = row.get("layer_first"), row.get("layer_last")
    if first is not None and last is not None and not nothing(first) and not nothing(last):
        words.append(f"layers {int(first)}–{int(last)}")
    recovery = row.get("recovery")
    if not nothing(recovery):
        words.append("distilled" if recovery == "distillation" else RECOVERIES.get(str(recovery), str(recovery)))
    return " · ".join([*scan, *words])


def removed(row: Mapping[str, Any]) -> str:
    """Achieved share of the whole model: `16.9 %`, for masks `39.0 % zeros`, nothing for the dense model."""
    share = row.get("achieved_model_ratio")
    if nothing(row.get("method")) or row.get("kind") in ("quantised", "scan") or share is None or nothing(share):
        return ""
    return f"{100 * float(share):.1f} %{' zeros' if row.get('kind') == 'mask' else ''}"


def whole_cuts(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went besides heads and channels of single layers: whole layers, channels of the stream. Rows of one run."""
    words = []
    gone = [int(row["layer"]) for row in layers if not any(_number(row, f"{unit}_after") for unit in ("heads", "mlp"))]
    if gone:
        many = "layer" if len(gone) == 1 else "layers"
        words.append(f"{many} {', '.join(map(str, gone))} removed, {len(layers) - len(gone)} left")
    before, after = (max((_number(row, f"hidden_{when}") for row in layers), default=0) for when in ("before", "after"))
    if before != after:
        words.append(f"the stream {before:,} → {after:,} channels wide")
    return words


def _number(row: Mapping[str, Any], name: str) -> int:
    return 0 if nothing(row.get(name)) else int(row[name])


def nothing(value: object) -> bool:
    """Whether a table has no value there."""
    return value is None or value is pd.NA or value is pd.NaT or value == "" or value != value


def left(eta_s: object) -> str:
    """Time left, or '' where nobody knows it yet."""
    if not isinstance(eta_s, int | float) or eta_s != eta_s:
        return ""
    return f"about {duration(float(eta_s))} left"


def silence(spoke: object) -> str:
    """`nothing new for 12 min`, given when a worker last told of progress; '' while it tells."""
    if not isinstance(spoke, str) or not spoke:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(spoke)).total_seconds()
    return f"nothing new for {duration(seconds)}" if seconds >= SILENT_AFTER_S else ""


def count_of(done: object, total: object, unit: object) -> str:
    """`120 of 400 documents`; '' where it is not counted."""
    if not isinstance(done, int | float) or not isinstance(total, int | float) or done != done or not total > 0:
        return ""
    if unit == "bytes":
        return f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
    return f"{done:,.0f} of {total:,.0f} {'' if nothing(unit) else unit}".strip()


def progress_html(row: Mapping[str, Any], *, dense: bool) -> str:
    """Stages with the present one marked, the bar of that stage, and what is left. Its height never changes."""
    stage = None if nothing(row.get("stage")) else str(row["stage"])
    done, total = row.get("done"), row.get("total")
    counted = count_of(done, total, row.get("unit"))
    share = min(max(float(done) / float(total), 0.0), 1.0) if counted and done is not None and total else 0.0
    task = "" if nothing(row.get("task")) else str(row["task"])
    words = [word for word in (task, counted, left(row.get("eta_s")), silence(row.get("spoke"))) if word]
    said = html(" · ".join(words)) or ("starting" if stage is None else "…")
    recovery, scan = not nothing(row.get("recovery")), row.get("kind") == "scan"
    stages = stages_html(stage, dense=dense, recovery=recovery, scan=scan)
    return (
        f'{stages}<div class="esp-bar" role="progressbar" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{100 * share:.0f}" aria-label="progress of this stage">'
        f'<i style="width:{share:.2%}"></i></div>'
        f'<p class="esp-left">{said}</p>'
    )


def stages_html(stage: str | None, *, dense: bool, recovery: bool = False, scan: bool = False) -> str:
    """The pipeline's stages in a line, those behind in ink, the present one bold."""
    names = [name for name in STAGES if name != "scan" and (recovery or name not in ("recover", "judge_recovered"))]
    names = [name for name in names if not dense or name in ("load", "evaluate")]
    names = ["load", "calibrate", "scan"] if scan else names
    top = stage.split(".")[0] if stage else ""
    place = names.index(top) if top in names else -1
    items = []
    for index, name in enumerate(names):
        mark = "now" if index == place else "done" if index < place else ""
        current = ' aria-current="step"' if mark == "now" else ""
        items.append(f'<li class="{mark}"{current}>{STAGES[name]}</li>')
    return f'<ul class="esp-stages">{"".join(items)}</ul>'


def row_html(name: object, line: object, state: object = "") -> str:
    """A run's name, its state and one quiet line."""
    badge = f'<span class="esp-state">{html(state_word(state))}</span>' if state else ""
    title = f"<b>{html(name)}</b>" if name else ""
    return f'<p class="esp-row">{title}{badge}<span>{html(line)}</span></p>'


def failure_html(reason: str, advice: str) -> str:
    """What happened in one sentence, and what to do."""
    what = reason or "The run ended without saying why."
    then = advice or "The end of the log says more."
    return f'<p class="esp-failed" role="alert"><b>{html(what)}</b><span>{html(then)}</span></p>'


def timings_html(timings: Mapping[str, float]) -> str:
    """Seconds of each stage as bars to one scale."""
    longest = max(timings.values(), default=1.0) or 1.0
    rows = []
    for name, seconds in timings.items():
        bar = f'<i style="width:{max(seconds, 0) / longest:.1%}"></i>'
        rows.append(f"<span>{html(stage_word(name))}</span>{bar}<span>{html(took(seconds))}</span>")
    return f'<div class="esp-timing">{"".join(rows)}</div>'


def took(seconds: float) -> str:
    """A measured duration: tenths below ten seconds."""
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def stage_seconds(detail: RunDetail) -> dict[str, float]:
    """Seconds of the main stages, from results or, before they are there, from the finished stages."""
    timings = (detail.results or {}).get("timings") or {
        name: content.get("seconds") for name, content in detail.stages.items()
    }
    pairs = {str(name): value for name, value in timings.items() if isinstance(value, int | float)}
    main = {name: float(pairs[name]) for name in STAGES if name in pairs}
    return main or {name: float(value) for name, value in pairs.items()}


def local_times(times: pd.Series, zone: str | None) -> pd.Series:
    """UTC times as the visitor's wall clock, without zone."""
    moments = pd.to_datetime(times, utc=True, errors="coerce")
    try:
        return moments.dt.tz_convert(ZoneInfo(zone or "UTC")).dt.tz_localize(None)
    except (ZoneInfoNotFoundError, ValueError):
        return moments.dt.tz_localize(None)


def when(text: str | None, zone: str | None) -> str:
    """An ISO time as `23 Nov, 21:04` on the visitor's clock."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    with suppress(ZoneInfoNotFoundError, ValueError):
        moment = moment.astimezone(ZoneInfo(zone or "UTC"))
    return f"{moment.day} {moment:%b, %H:%M}"


def cluster_size(cluster: Any) -> str:
    """`2 nodes, 4 GPUs, 64 cores`."""
    has = cluster.capacity
    words = ["1 node" if has.nodes == 1 else f"{has.nodes} nodes"]
    words += [] if not has.gpus else ["1 GPU"] if has.gpus == 1 else [f"{has.gpus:g} GPUs"]
    return ", ".join([*words, "1 core" if has.cpus == 1 else f"{has.cpus:g} cores"])
