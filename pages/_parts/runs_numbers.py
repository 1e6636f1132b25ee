"""The numbers of one opened run: values against dense, what guessing gives, what should be known, drift by layer."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from core import charts
from core.charts_layers import drift_rows, layer_drift
from core.service import RunDetail, Service
from pages._parts import theme
from pages._parts.runs_board import act


def show(service: Service, detail: RunDetail, *, pruned: bool) -> None:
    """Table of all metrics; where there is no dense run, the offer of one; remarks."""
    if not detail.metrics.empty:
        _table(service, detail, pruned=pruned)


def _table(service: Service, detail: RunDetail, *, pruned: bool) -> None:
    run_id = detail.status.id
    others = [detail.baseline] if detail.baseline and detail.baseline != run_id else []
    runs = service.runs()
    runs = runs[runs["id"].isin([run_id, *others])]
    metrics = service.metrics([run_id, *others])
    baselines: dict[str, str | None] = {run_id: others[0]} if others else {}
    table = charts.points(runs, metrics, baselines, paired=service.differences(baselines))
    own = table[table["run_id"] == run_id]
    if own.empty:
        return
    head = "Numbers against dense" if others else "Numbers"
    shared = _shared_words(own)
    words = [*_when(own, detail), *([f"tasks: {shared}"] if shared else [])]
    how = f"<span>{theme.html(' · '.join(words))}</span>" if words else ""
    table_html = _numbers_html(own, shared)
    st.html(f'<h2 class="esp-section">{head}{how}</h2>{table_html}{_remarks_html(own, detail)}')
    if not others and pruned and detail.experiment is not None:
        st.html('<p class="esp-fact">No dense run was judged in the same way, so there is nothing to compare with.</p>')
        st.button(
            "Queue the dense baseline", key="runs_baseline", on_click=act,
            args=(service.submit_baselines, [detail.status.id]),
        )  # fmt: skip


def _when(own: pd.DataFrame, detail: RunDetail) -> list[str]:
    """Of a run with recovery: whether these values are from before it or after it."""
    if detail.experiment is None or detail.experiment.recovery is None:
        return []
    return ["after recovery" if own["stage"].eq("recovered").any() else "before recovery"]


def _shared_words(own: pd.DataFrame) -> str:
    """How the tasks were measured, where all were measured alike: then it is said once."""
    rows = [(quality, charts.at(own, quality).iloc[0]) for quality in charts.qualities(own) if quality.is_task]
    words = {charts.protocol_words(row["protocol"], q.task) for q, row in rows if not q.is_mean}
    return words.pop() if len(words) == 1 else ""


def _numbers_html(own: pd.DataFrame, shared: str) -> str:
    compared = bool(own["dense"].notna().any())
    head = "<th></th><th>value ± standard error</th>"
    key = ""
    if compared:
        head += '<th class="dense">dense</th><th>difference</th>'
        key = (
            '<p class="esp-fact">▲ better, ▼ worse than dense at 5 %, corrected by Holm; single tasks are not marked: '
            "read their mean. Differences are taken document by document where both runs answered the same ones.</p>"
        )
    qualities = charts.qualities(own)
    marks = charts.marks(own, qualities)
    rows = "".join(
        _row(row, quality, compared, marks.get((str(row["run_id"]), quality.key), ""), shared)
        for quality in qualities
        for row in [charts.at(own, quality).iloc[0]]
    )
    return f'<div class="esp-scroll"><table class="esp-table"><tr>{head}</tr>{rows}</table></div>{key}'


def _row(row: pd.Series, quality: charts.Quality, compared: bool, mark: str, shared: str) -> str:
    words = [] if shared and quality.is_task else [charts.protocol_words(row["protocol"], quality.task)]
    if quality.measured_chance is not None and quality.majority is not None:
        words.append(charts.rates_words(quality.measured_chance, quality.majority))
    said = " · ".join(filter(None, words))
    whole = " · ".join([*charts.whole_protocol(row["protocol"]), *charts.detail_words(row["details"])])
    value = charts.measured(row["value"], row["stderr"], quality) + charts.leak(row["details"])
    cells = [f"<td>{theme.html(quality.label)}<small>{theme.html(said)}</small></td>"]
    cells.append(f'<td title="{theme.html(whole)}">{theme.html(value)}</td>')
    if compared:
        dense = charts.measured(row["dense"], row["dense_stderr"], quality)
        cells.append(f'<td class="dense">{theme.html(dense)}</td>')
        cells.append(f"<td>{theme.html(charts.difference(row['delta'], row['delta_stderr'], quality, mark))}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _remarks_html(own: pd.DataFrame, detail: RunDetail) -> str:
    """Leakage behind the values with †, then what else the run says of itself."""
    leaks = [sentence.removeprefix(f"{own['label'].iloc[0]}: ") for sentence in charts.leaks(own)]
    warnings = (detail.results or {}).get("warnings")
    others = [str(text) for text in warnings if text not in leaks] if isinstance(warnings, list) else []
    return "".join(theme.note(f"† {text}") for text in leaks) + "".join(theme.note(text) for text in others)


def drift(detail: RunDetail, method: str) -> None:
    """Drift by layer; of a recovered model with what it was before."""
    results: Any = detail.results or {}
    found, before = results.get("layer_errors"), None
    recovery = results.get("recovery")
    later = recovery.get("layer_errors") if isinstance(recovery, dict) else None
    if drift_rows(later):
        found, before = later, found
    if drift_rows(found):
        chart = layer_drift(found, method, before=before, dark=theme.dark())
        st.plotly_chart(
            chart, theme=None, width="stretch", key="runs_drift", config=charts.config("drift by layer"),
            alt=charts.alt(chart),
        )  # fmt: skip
        positions = (found.get("protocol") or {}).get("positions")
        words = f"Mean over {positions:,} positions" if isinstance(positions, int) else "Mean over positions"
        st.html(
            f'<p class="esp-fact">{words}, each by its own norm; bars are 95 % intervals. 0 % is the dense model’s '
            "state, 100 % as far off as zeros.</p>"
        )
    elif isinstance(found, dict) and found.get("reason"):
        st.html(f'<p class="esp-fact">No drift by layer: {theme.html(found["reason"])}</p>')
