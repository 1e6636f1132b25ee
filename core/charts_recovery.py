"""What recovery brought back, as tables and figures, and the curve of a training. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from core.charts_frames import Z95, Quality, at_order, perplexity_text
from core.charts_style import distinct, figure, marker, measured, method_colour, palette, percent, safe, two_lines
from core.charts_tables import marks
from core.evaluation.paired import normal_p

BEFORE, AFTER = "pruned", "recovered"
APART = 0.12
"""Rows between the two values of a run, so that their bars can be told apart."""
_ALIKE = ["run_id", "task", "metric", "n", "text"]


def gains(table: pd.DataFrame, gained: pd.DataFrame | None = None) -> pd.DataFrame:
    """Of the points (`charts.points`) those that were measured before and after recovery, with what changed.

    gained: what core/pairs.py says of the same documents before and after. Further columns: gain (after − before),
    gain_stderr, gain_p (not corrected), gain_paired, regained (share of what the cut cost; nan without a dense run, or
    where the cut cost nothing). Without pairs the two values count as independent, which is cautious.
    """
    rows = table[table["before"].notna()].copy() if not table.empty else table.assign(before=[])
    rows["gain"] = rows["value"] - rows["before"]
    rows["gain_stderr"] = (rows["stderr"] ** 2 + rows["before_stderr"] ** 2) ** 0.5
    rows["text"] = [perplexity_text(*row) for row in zip(rows["metric"], rows["protocol"], strict=True)]
    rows = rows.astype({"n": "float64", "text": object})
    known = pd.DataFrame(columns=_ALIKE) if gained is None else gained.drop(columns="baseline").drop_duplicates(_ALIKE)
    known = known.astype({"n": "float64", "text": object}).rename(
        columns={"paired_stderr": "_stderr", "paired_p": "_p"}
    )
    rows = rows.merge(known, on=_ALIKE, how="left")
    for name in ("_stderr", "_p"):
        rows[name] = pd.to_numeric(rows.get(name, math.nan), errors="coerce")
    rows["gain_paired"] = rows["_stderr"].notna()
    rows["gain_stderr"] = rows["_stderr"].where(rows["gain_paired"], rows["gain_stderr"])
    own = [normal_p(gain, error) for gain, error in zip(rows["gain"], rows["gain_stderr"], strict=True)]
    rows["gain_p"] = rows["_p"].where(rows["gain_paired"], pd.Series(own, index=rows.index, dtype="float64"))
    cost = rows["before"] - rows["dense"]
    rows["regained"] = (-rows["gain"] / cost).where(cost.abs() > 0)
    return rows.drop(columns=["_stderr", "_p", "text"])


def gain_marks(rows: pd.DataFrame, chosen: Sequence[Quality], *, tasks: bool = False) -> dict[tuple[str, str], str]:
    """(run id, quality key) → ▲ or ▼ where recovery changed it beyond chance; as `marks` has it of differences."""
    if rows.empty:
        return {}
    return marks(rows.assign(delta=rows["gain"], p=rows["gain_p"]), chosen, tasks=tasks)


def regained_words(row: Mapping[str, Any] | pd.Series, quality: Quality) -> str:
    """`71 %` of what the cut cost; `–` where that is not known or the cut made this quality better."""
    lost = float(row["before"]) - float(row["dense"])
    if not math.isfinite(float(row["regained"])) or (lost > 0) != quality.lower_is_better:
        return "–"
    return percent(float(row["regained"]), 0).replace("-", "−")


def gain_words(row: Mapping[str, Any] | pd.Series, quality: Quality, mark: str = "") -> str:
    """The gain with its standard error, and its mark: `−45.50 ± 1.30 ▲`."""
    return f"{measured(float(row['gain']), float(row['gain_stderr']), quality, sign=True)} {mark}".strip()


def interval_words(row: Mapping[str, Any] | pd.Series, quality: Quality) -> str:
    """The gain's 95 % interval where it was taken on the same documents, and some changed: `−48.05 to −42.95`."""
    if not row["gain_paired"] or not float(row["gain_stderr"]) > 0:
        return ""
    reach = Z95 * float(row["gain_stderr"])
    low, high = (measured(float(row["gain"]) + by, math.nan, quality, sign=True) for by in (-reach, reach))
    return f"{low.removesuffix(' points')} to {high}"


def gains_table(rows: pd.DataFrame, quality: Quality, mark: Mapping[tuple[str, str], str]) -> tuple[Any, Any]:
    """(numbers, texts) of one quality, one row a run; index: run id. rows: of `gains`; mark: of `gain_marks`.

    Columns: Run, Dense, Pruned, Recovered, Gain, 95 % interval, Came back (share of what the cut cost).
    """
    shown = at_order(rows[rows["quality"] == quality.key]).set_index("run_id")
    numbers = pd.DataFrame({"Run": shown["label"]}, index=shown.index)
    texts = numbers.astype(object)
    for name, value, error in (
        ("Dense", "dense", "dense_stderr"), ("Pruned", "before", "before_stderr"), ("Recovered", "value", "stderr"),
    ):  # fmt: skip
        numbers[name] = shown[value]
        texts[name] = [measured(v, e, quality) for v, e in zip(shown[value], shown[error], strict=True)]
    numbers["Gain"] = shown["gain"]
    numbers["95 % interval"] = (Z95 * shown["gain_stderr"]).where(shown["gain_paired"].astype(bool))
    numbers["Came back"] = shown["regained"]
    each = [row for _, row in shown.iterrows()]
    texts["Gain"] = [
        gain_words(row, quality, mark.get((str(run_id), quality.key), ""))
        for run_id, row in zip(shown.index, each, strict=True)
    ]
    texts["95 % interval"] = [interval_words(row, quality) or "–" for row in each]
    texts["Came back"] = [regained_words(row, quality) for row in each]
    return numbers, texts


def gain_dots(rows: pd.DataFrame, quality: Quality, *, dark: bool = False) -> go.Figure:
    """One row a run: hollow the pruned value, filled the recovered one, a line between; dashed where dense stands."""
    shown = at_order(rows[rows["quality"] == quality.key])
    better_side = "lower is better" if quality.lower_is_better else "higher is better"
    title = "Before and after recovery"
    said = "; ".join(
        f"{row['label']}: {measured(row['before'], row['before_stderr'], quality)} to "
        f"{measured(row['value'], row['stderr'], quality)}"
        for _, row in shown.iterrows()
    )
    words = f"{title}: {quality.label}, {better_side}. {said or 'No values.'}"
    chart = figure(title, words, dark=dark, height=150 + 50 * len(shown))
    subtitle = f'<span style="font-size:12px;color:{palette(dark).muted}">{better_side}</span>'
    chart.update_layout(title_text=f"{chart.layout.title.text}  {subtitle}")
    for place, (_, row) in enumerate(shown.iterrows()):
        _pair(chart, row, place, quality, dark)
    for dense in sorted(set(shown["dense"].dropna())):
        chart.add_vline(
            x=dense, line={"color": palette(dark).muted, "width": 1, "dash": "dash"}, annotation_text="dense",
            annotation_font={"size": 11, "color": palette(dark).muted}, annotation_position="top",
        )  # fmt: skip
    labels = [two_lines(label) for label in distinct(shown["label"].astype(str).tolist(), 64)]
    unit = f" [{quality.unit}]" if quality.unit and not quality.fraction else ""
    chart.update_xaxes(title_text=safe(quality.label) + unit, tickformat=".0%" if quality.fraction else None)
    chart.update_yaxes(
        tickmode="array", tickvals=list(range(len(shown))), ticktext=labels,
        range=[len(shown) - 0.4, -0.6], showgrid=False, showline=False, ticks="",
    )  # fmt: skip
    return chart


def _pair(chart: go.Figure, row: pd.Series, place: int, quality: Quality, dark: bool) -> None:
    method = str(row["method"])
    colour = method_colour(method, dark)
    chart.add_trace(
        go.Scatter(
            x=[row["before"], row["value"]], y=[place - APART, place + APART], mode="lines",
            line={"color": colour, "width": 2}, hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip
    both = ((BEFORE, "before", "before_stderr", 1, -APART), (AFTER, "value", "stderr", 0, APART))
    for name, value, error, variant, by in both:
        words = f"<b>{safe(row['label'])}</b><br>{name}  {measured(row[value], row[error], quality)}"
        if name == AFTER:
            words += f"<br>gain  {safe(gain_words(row, quality))}"
        chart.add_trace(
            go.Scatter(
                x=[row[value]],
                y=[place + by],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=place == 0,
                marker=marker(method, variant, dark, 12),
                error_x={
                    "type": "data", "array": [Z95 * row[error] if math.isfinite(row[error]) else 0.0],
                    "color": colour, "thickness": 1.2, "width": 4,
                },
                customdata=[[str(row["run_id"]), words]],
                hovertemplate="%{customdata[1]}<extra></extra>",
            )
        )  # fmt: skip


def before_marks(chart: go.Figure, rows: pd.DataFrame, x: str, quality: Quality, dark: bool) -> None:
    """In a chart of recovered values: where each stood before, small and hollow, with a line to where it stands."""
    for _, row in rows[rows["before"].notna()].iterrows():
        method = str(row["method"])
        style = {**marker(method, 1, dark, 8), "opacity": 0.8}
        words = f"<b>{safe(row['label'])}</b><br>before recovery  "
        words += measured(row["before"], row["before_stderr"], quality)
        chart.add_trace(
            go.Scatter(
                x=[row[x], row[x]],
                y=[row["before"], row["value"]],
                mode="lines+markers",
                marker={**style, "opacity": [0.8, 0.0]},
                line={"color": method_colour(method, dark), "width": 1, "dash": "dot"},
                legendgroup=str(row["series"]),
                showlegend=False,
                customdata=[[str(row["run_id"]), words], [str(row["run_id"]), ""]],
                hovertemplate=["%{customdata[1]}<extra></extra>", None],
                hoverinfo=["text", "skip"],
            )
        )


def values_with_before(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and beneath them those of recovered runs again with the value from before: what an axis must hold."""
    early = rows[rows["before"].notna()]
    if early.empty:
        return rows
    return pd.concat([rows, early.assign(value=early["before"], stderr=early["before_stderr"])], ignore_index=True)


# ----------------------------------------------------------------------------------------------------------- the curve


def curve_table(points: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Step, minutes, tokens, loss, validation and learning rate of each point that can be read."""
    rows = [
        {
            "step": int(point["step"]),
            "minutes": float(point.get("seconds") or 0.0) / 60,
            "tokens": int(point.get("tokens") or 0),
            "training loss": _number(point.get("loss")),
            "validation": _number(point.get("validation")),
            "learning rate": _number(point.get("rate")),
        }
        for point in points
        if isinstance(point.get("step"), int | float)
    ]
    names = ["step", "minutes", "tokens", "training loss", "validation", "learning rate"]
    return pd.DataFrame(rows, columns=names)


def training_curve(points: Sequence[Mapping[str, Any]], *, dark: bool = False) -> go.Figure:
    """Loss and validation by optimiser step, both in nats a token."""
    table = curve_table(points)
    held = table[table["validation"].notna()]
    title = "Training"
    said = " No points yet."
    if not held.empty:
        first, last = held.iloc[0], held.iloc[-1]
        said = (
            f" Validation from {first['validation']:.3f} at step {int(first['step'])} to {last['validation']:.3f} at "
            f"step {int(last['step'])}."
        )
    chart = figure(title, f"Loss and validation by step, nats a token.{said}", dark=dark, height=280)
    colours = palette(dark)
    lines = (
        ("training loss", colours.muted, {"width": 1.5}, None),
        ("validation", colours.ink, {"width": 2}, {"color": colours.ink, "size": 8, "symbol": "circle"}),
    )
    for name, colour, line, style in lines:
        rows = table[table[name].notna()]
        few = len(rows) < 3
        chart.add_trace(
            go.Scatter(
                x=rows["step"].tolist(),
                y=rows[name].tolist(),
                mode="lines" if style is None and not few else "lines+markers",
                name=name if name == "training loss" else "validation, held-out text",
                line={"color": colour, **line},
                marker=style or {"color": colour, "size": 6, "symbol": "diamond"},
                customdata=rows[["minutes", "tokens"]].to_numpy().tolist(),
                hovertemplate=(
                    f"step %{{x:,}}, {name} %{{y:.3f}}<br>%{{customdata[0]:.1f}} min, %{{customdata[1]:,}} tokens"
                    "<extra></extra>"
                ),
            )
        )
    chart.update_xaxes(title_text="optimiser step", rangemode="tozero")
    chart.update_yaxes(title_text="nats a token")
    return chart


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan
