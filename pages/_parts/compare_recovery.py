"""Compare's view of recovery: what training brought back, run by run, and what it took."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import charts, charts_recovery
from core.service import Service
from pages._parts import chart_box, theme
from pages._parts.compare_table import styled
from pages._parts.compare_views import Shown


def has_gains(table: pd.DataFrame) -> bool:
    """Whether any of the runs was judged before and after recovery."""
    return bool(table["before"].notna().any())


def view(shown: Shown) -> None:
    """The view of Compare's picker."""
    show(shown.service, shown.table)


def show(service: Service, table: pd.DataFrame) -> None:
    """Picker of a quality, hollow and filled dots, and the gains beneath them."""
    recovered = table.loc[table["before"].notna(), "run_id"].astype(str).unique().tolist()
    rows = charts_recovery.gains(table, service.recovery.gains(recovered))
    chosen = [
        quality
        for quality in charts.qualities(table)
        if quality.key in set(rows["quality"]) and not quality.task.startswith("speed")
    ]
    by_key = {quality.key: quality for quality in chosen}
    key = st.selectbox(
        "Quality",
        list(by_key),
        key="compare_gain_quality",
        bind="query-params",
        format_func=lambda key: by_key[key].label,
        width=520,
        help="One task, metric and protocol, measured before and after recovery in the same way.",
    )
    quality = by_key[str(key)]
    chart = charts_recovery.gain_dots(rows, quality, dark=theme.dark())
    own = rows[rows["quality"] == quality.key]
    data = own[
        ["label", "dense", "before", "value", "gain", "gain_stderr", "gain_p", "gain_paired", "regained", "run_id"]
    ]
    chart_box.show(chart, f"recovery {quality.label}", "compare_plot_gains", data)
    _table(service, rows, quality, chosen)


def _table(service: Service, rows: pd.DataFrame, quality: charts.Quality, chosen: list[charts.Quality]) -> None:
    st.html('<h2 class="esp-section">Gains<span>after recovery less before, on the same documents</span></h2>')
    marks = charts_recovery.gain_marks(rows, chosen)
    numbers, texts = charts_recovery.gains_table(rows, quality, marks)
    took = service.recovery.trainings(numbers.index.astype(str).tolist()).set_index("run_id").reindex(numbers.index)
    for name, title in (("what", "Trained"), ("minutes", "Training"), ("tokens", "Tokens")):
        numbers[title] = took[name]
    texts["Trained"] = took["what"].fillna("")
    texts["Training"] = ["–" if pd.isna(m) else f"{m:,.1f} min" for m in took["minutes"]]
    texts["Tokens"] = ["–" if pd.isna(n) else f"{n:,.0f}" for n in took["tokens"]]
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    st.dataframe(
        styled(numbers, texts),
        key="compare_gains",
        hide_index=True,
        height="content" if len(numbers) <= 15 else 560,
        column_config={
            "Run": text(pinned=True, width=170),
            "Gain": number(width=165, help=theme.plain(charts.about(rows, quality))),
            "95 % interval": number(width=160, help="Of the gain, taken document by document, or window by window"),
            "Came back": number(width=95, help="The share of what the cut cost: gain over the distance to dense"),
            "Trained": text(width=190),
            "Training": number(width=85, help="Time spent training, without saving and judging"),
            "Tokens": number(width=85, help="Tokens learned, each counted as often as it was seen"),
        },
        placeholder="–",
        alt="What recovery brought back in each run",
    )
    for sentence in _called_off(took, numbers):
        st.html(theme.note(sentence))
    st.html(
        '<p class="esp-fact">▲ better, ▼ worse than before recovery at 5 %, corrected by Holm over the runs shown; '
        "single tasks are not marked: read their mean. Hollow: the pruned model; filled: recovered.</p>"
    )


def _called_off(took: pd.DataFrame, numbers: pd.DataFrame) -> list[str]:
    said = zip(numbers["Run"], took["diverged"].fillna("").astype(str), strict=True)
    return [f"{name}: called off, {why}" for name, why in said if why]
