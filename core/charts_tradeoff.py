"""Quality against what a run costs: size, bytes, speed or memory, with the Pareto front. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from core.charts_frames import Z95, Quality, at, at_order, qualities
from core.charts_marks import (
    MASK_TITLE,
    Panel,
    alt_words,
    by_series,
    dense_line,
    dense_marks,
    height_with,
    of_panel,
    run_marks,
    size_axis,
    subtitle,
    value_axis,
)
from core.charts_recovery import before_marks, values_with_before
from core.charts_style import figure, measured, palette, percent

Size = Literal["removed", "parameters", "bytes"]
FRONT = "Pareto front"
TOGETHER = "All runs"
_REFERENCES = ("dense", "quantised")
_SIZE_TITLES = {
    ("removed", "cut"): "share of the whole model removed",
    ("removed", "mask"): "share of the whole model set to zero",
    ("parameters", "cut"): "parameters kept",
    ("parameters", "mask"): "parameters that are not zero",
}


@dataclass(frozen=True)
class Cost:
    """What can stand on the horizontal axis: a size, or something measured that costs time or memory."""

    key: str
    label: str
    more_is_better: bool
    quality: Quality | None = None
    """What was measured; None for sizes."""
    relative: bool = False
    """As a multiple of the dense model, measured beside the run in the same process."""

    @property
    def together(self) -> bool:
        """Whether real cuts and masks may share a panel: where the axis is not a count of zeros."""
        return self.key not in ("removed", "parameters")


SIZES = (
    Cost("removed", "share of the whole model", more_is_better=True),
    Cost("parameters", "parameters", more_is_better=False),
    Cost("bytes", "bytes on disk", more_is_better=False),
)


def costs(table: pd.DataFrame) -> list[Cost]:
    """What the points (`charts.points`) can be drawn against: the achieved share first, then sizes, speed, memory."""
    found = [size for size in SIZES if size.key != "bytes" or table["bytes"].notna().any()]
    judged = table[table["kind"].ne("dense")]
    for quality in qualities(table):
        rows = judged[judged["quality"] == quality.key]
        if quality.task != "speed" or rows.empty:
            continue
        relative = bool(rows["beside"].notna().any()) and ("per_second" in quality.metric or quality.unit == "ms")
        label = f"{quality.label}, times dense" if relative else quality.label
        found.append(Cost(quality.key, label, not quality.lower_is_better, quality, relative))
    return found


def panels(table: pd.DataFrame, size: Size | Cost = "removed") -> list[Panel]:
    """Which panels the runs need: real cuts, masks, or both; one for all where the axis is bytes, speed or memory."""
    if _cost(size).together:
        return ["all"]
    kinds = set(table["kind"]) - {"dense"}
    found: list[Panel] = []
    if kinds - {"mask"} or not kinds:
        found.append("cut")
    if "mask" in kinds:
        found.append("mask")
    return found


def tradeoff_rows(
    table: pd.DataFrame, quality: Quality, *, panel: Panel = "cut", size: Size | Cost = "removed"
) -> pd.DataFrame:
    """The points of one quality with `x` (what they cost), `front` (whether no other run of the panel is better in one
    and at least as good in the other) and `said` (x in words, '' for sizes). Runs without an x are left out."""
    cost = _cost(size)
    rows = of_panel(at(table, quality), panel)
    x, said = _measured(table, rows, cost) if cost.quality is not None else (_sized(rows, cost), [""] * len(rows))
    rows = rows.assign(x=x, said=said)
    rows = rows[rows["x"].map(math.isfinite)].reset_index(drop=True)
    better_x = rows["x"] if cost.more_is_better else -rows["x"]
    better_y = -rows["value"] if quality.lower_is_better else rows["value"]
    return rows.assign(front=frontier(better_x.tolist(), better_y.tolist()))


def frontier(first: Sequence[float], second: Sequence[float]) -> list[bool]:
    """Which points no other dominates, where more is better in both: by a sort, O(n log n). Equal points both stay."""
    order = sorted(range(len(first)), key=lambda place: (-first[place], -second[place]))
    keep = [False] * len(first)
    best: tuple[float, float] | None = None
    for place in order:
        point = (first[place], second[place])
        if best is None or point[1] > best[1] or point == best:
            keep[place], best = True, point
    return keep


def tradeoff(
    table: pd.DataFrame,
    quality: Quality,
    *,
    panel: Panel = "cut",
    size: Size | Cost = "removed",
    dark: bool = False,
    front: bool = True,
    dominated: bool = True,
    rows: pd.DataFrame | None = None,
) -> go.Figure:
    """Quality against size or another cost, one mark a run, and the Pareto front as a stair.

    table: `charts.points`. size 'removed': achieved share of the whole model; 'parameters': what stays (for masks, what
    is not zero); 'bytes': on disk; or one of `costs`. Masks have a panel of their own where zeros are counted: they
    make nothing smaller. Both panels of one quality share the range of their quality axis. dominated=False leaves out
    what another run beats, but never the dense model, rounded or not. rows: what `tradeoff_rows` says of the
    same, where it was asked already.
    """
    cost = _cost(size)
    rows = tradeoff_rows(table, quality, panel=panel, size=cost) if rows is None else rows
    x_title = _SIZE_TITLES.get((cost.key, panel), cost.label)
    heading = {"mask": MASK_TITLE, "all": TOGETHER}.get(panel, "Real cuts")
    shown = rows if dominated else rows[rows["front"] | rows["kind"].isin(_REFERENCES)]
    words = alt_words(f"{heading}: {quality.label} against {x_title}", shown)
    best = ", ".join(map(str, rows.loc[rows["front"], "label"].head(12)))
    chart = figure(
        heading,
        f"{words} On the Pareto front: {best or 'none'}.",
        dark=dark,
        height=height_with(shown["series"].nunique()),
    )
    _cost_axis(chart, x_title, shown["x"], cost)
    value_axis(chart, quality, values_with_before(at(table, quality)), shown)
    if panel == "all" and rows["kind"].eq("mask").any():
        subtitle(chart, "masks keep their bytes; zeros alone make nothing faster")
    dense_line(chart, shown, quality, dark)
    if front and int(rows["front"].sum()) > 1:
        chart.add_trace(_stair(rows[rows["front"]], cost, dark))
    for variant, (name, group) in by_series(shown[shown["kind"] != "dense"]):
        chart.add_trace(run_marks(group, "x", quality, name, variant, dark))
    before_marks(chart, shown, "x", quality, dark)
    dense_marks(chart, shown, "x", quality, dark)
    return chart


def _cost(size: Size | Cost) -> Cost:
    return size if isinstance(size, Cost) else next(each for each in SIZES if each.key == size)


def _sized(rows: pd.DataFrame, cost: Cost) -> pd.Series:
    """Share removed, bytes, or parameters that stay; of masks those that are not zero (parameters · (1 − zeroed))."""
    if cost.key != "parameters":
        return rows[cost.key].astype("float64")
    masks = rows["kind"] == "mask"
    return rows["parameters"].where(~masks, rows["parameters"] * (1 - rows["removed"]))


def _measured(table: pd.DataFrame, rows: pd.DataFrame, cost: Cost) -> tuple[list[float], list[str]]:
    """What each run measured of the cost, and that in words."""
    assert cost.quality is not None
    found = table[table["quality"] == cost.quality.key].drop_duplicates("run_id").set_index("run_id")
    values, words = [], []
    for run_id in rows["run_id"]:
        row = found.loc[run_id] if run_id in found.index else None
        values.append(math.nan if row is None else _times(row) if cost.relative else float(row["value"]))
        said = "" if row is None else f"{cost.quality.label}  {measured(row['value'], row['stderr'], cost.quality)}"
        words.append(f"{said}, {values[-1]:.2f} times dense" if cost.relative and math.isfinite(values[-1]) else said)
    return values, words


def _times(row: pd.Series) -> float:
    """The value over the dense model's, measured beside it, else by its dense baseline."""
    if row["kind"] == "dense":
        return 1.0
    other = row["beside"] if math.isfinite(row["beside"]) else row["dense"] if row["against"] == "dense" else math.nan
    return float(row["value"] / other) if other else math.nan


def _cost_axis(chart: go.Figure, title: str, values: pd.Series, cost: Cost) -> None:
    if cost.quality is None:
        size_axis(chart, title, values, cost.key)
        return
    unit = "" if cost.relative or not cost.quality.unit else f" [{cost.quality.unit}]"
    better = "more is better" if cost.more_is_better else "less is better"
    chart.update_xaxes(title_text=f"{title}{unit}, {better}", tickformat=None if cost.relative else "~s")
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    pad = 0.08 * ((high - low) or abs(high) or 1.0)
    chart.update_xaxes(range=[low - pad, high + pad])


def _stair(rows: pd.DataFrame, cost: Cost, dark: bool) -> go.Scatter:
    """The best quality to be had at each cost: the step falls where the better run cannot be afforded any more."""
    rows = at_order(rows).sort_values("x", kind="stable")
    return go.Scatter(
        x=rows["x"].tolist(),
        y=rows["value"].tolist(),
        mode="lines",
        name=FRONT,
        line={"color": palette(dark).ink, "width": 1.4, "dash": "dot", "shape": "vh" if cost.more_is_better else "hv"},
        hoverinfo="skip",
        customdata=[[str(run_id)] for run_id in rows["run_id"]],
    )


def tradeoff_data(rows: pd.DataFrame, quality: Quality, cost: Cost) -> pd.DataFrame:
    """The drawn rows as a table to read and export: run, settings, cost, value with its 95 % interval, on the front."""
    return pd.DataFrame(
        {
            "run": rows["label"],
            "method": rows["series"],
            "ratio": rows["ratio"],
            cost.label: rows["x"],
            quality.label: rows["value"],
            "low": rows["value"] - Z95 * rows["stderr"],
            "high": rows["value"] + Z95 * rows["stderr"],
            "on the front": rows["front"],
            "id": rows["run_id"],
        }
    )


def hidden_words(rows: pd.DataFrame) -> str:
    """How many runs are left out where dominated ones are hidden; '' for none."""
    count = int((~rows["front"] & ~rows["kind"].isin(_REFERENCES)).sum())
    return f"{count} dominated run{'' if count == 1 else 's'} hidden" if count else ""


__all__ = [
    "FRONT", "MASK_TITLE", "SIZES", "Cost", "Size", "costs", "frontier", "hidden_words", "panels", "percent",
    "tradeoff", "tradeoff_data", "tradeoff_rows",
]  # fmt: skip
