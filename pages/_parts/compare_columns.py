"""Columns of Compare's table of runs: what can be shown and sorted by, how it is called, and how it looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import streamlit as st

from core import charts
from core.service import Measure
from pages._parts import runs_text as say
from pages._parts import theme

FEW = ("name", "what", "removed", "finished")
"""Columns without anybody's choice."""
_c = st.column_config


@dataclass(frozen=True)
class Column:
    """A column of the table. `sort`: the name that the store sorts by, or the measure's key; '' cannot be sorted by."""

    key: str
    title: str
    sort: str
    config: Any
    measure: Measure | None = None


FIXED = (
    Column("name", "Run", "name", _c.TextColumn("Run", width="medium")),
    Column("what", "Method and layers", "method", _c.TextColumn("Method and layers", width=265)),
    Column(
        "removed", "Of the model", "removed",
        _c.TextColumn("Of the model", alignment="right", help="Achieved share of the whole model removed, or zeroed"),
    ),
    Column("ratio", "Ratio", "ratio", _c.NumberColumn("Ratio", format="percent", help="Asked for", width=75)),
    Column("layers", "Layers", "layers", _c.TextColumn("Layers", width=75)),
    Column("model", "Model", "model", _c.TextColumn("Model", width="medium")),
    Column("parameters", "Parameters", "parameters", _c.NumberColumn("Parameters", format="compact", width=95)),
    Column("bytes", "Bytes", "bytes", _c.NumberColumn("Bytes", format="bytes", width=85)),
    Column("seed", "Seed", "seed", _c.NumberColumn("Seed", width=60, format="%d")),
    Column("recovery", "Recovery", "recovery", _c.TextColumn("Recovery", width=95)),
    Column("study", "Study", "study", _c.TextColumn("Study", width="small")),
    Column("state", "State", "state", _c.TextColumn("State", width=90)),
    Column("seconds", "Took", "seconds", _c.TextColumn("Took", alignment="right", width=80)),
    Column("dtype", "Format", "dtype", _c.TextColumn("Format", width=85)),
    Column("device", "Device", "device", _c.TextColumn("Device", width="medium")),
    Column("finished", "Finished", "finished", _c.DatetimeColumn("Finished", format="D MMM, HH:mm", width=115)),
    Column("id", "Id", "created", _c.TextColumn("Id", width="medium")),
)  # fmt: skip


def columns(measures: Sequence[Measure]) -> dict[str, Column]:
    """All columns by their titles, which are what URLs say: those of every run, then one a measure."""
    found = {column.title: column for column in FIXED}
    for quality in charts.qualities(_as_points(measures)):
        measure = next(each for each in measures if each.key == quality.key)
        help_ = theme.plain(" · ".join(charts.whole_protocol(measure.protocol)))
        form = "percent" if quality.fraction else "compact" if quality.unit in ("bytes", "MACs") else "%.2f"
        config = _c.NumberColumn(quality.label, format=form, help=help_, width=120)
        title = quality.label if quality.label not in found else f"{quality.label}, {quality.protocol_key}"
        found[title] = Column(quality.key, title, quality.key, config, measure)
    return found


def _as_points(measures: Sequence[Measure]) -> pd.DataFrame:
    """The measures as `charts.qualities` wants them."""
    rows = [
        {
            "quality": each.key, "task": each.task, "metric": each.metric, "protocol": each.protocol,
            "protocol_key": each.protocol_key, "details": "{}",
        }
        for each in measures
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["quality", "task", "metric", "protocol", "protocol_key", "details"])


def table(runs: pd.DataFrame, chosen: Sequence[Column], titles: Mapping[str, str]) -> pd.DataFrame:
    """The runs as the chosen columns show them; `titles`: method → the name that people read."""
    rows = say.records(runs)
    return pd.DataFrame({column.key: _values(column, runs, rows, titles) for column in chosen}, index=runs.index)


_Rows = Sequence[Mapping[str, Any]]
_WORDS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str]], Any]] = {
    "what": say.method_line,
    "removed": lambda row, _: say.removed(row),
    "layers": lambda row, _: "" if pd.isna(row["layer_first"]) else f"{row['layer_first']:.0f}–{row['layer_last']:.0f}",
    "state": lambda row, _: say.state_word(row["state"]),
    "seconds": lambda row, _: "" if pd.isna(row["seconds"]) else theme.duration(float(row["seconds"])),
    "recovery": lambda row, _: say.RECOVERIES.get(str(row["recovery"]), ""),
}
_STORED = {"parameters": "params_after", "device": "device_name"}


def _values(column: Column, runs: pd.DataFrame, rows: _Rows, titles: Mapping[str, str]) -> Any:
    if column.key in _WORDS:
        return [_WORDS[column.key](row, titles) for row in rows]
    if column.key == "finished":
        return say.local_times(runs["finished"], st.context.timezone)
    found = runs[_STORED.get(column.key, column.key)]
    return found.fillna("").astype(str) if column.key in ("name", "model", "study", "dtype", "device") else found
