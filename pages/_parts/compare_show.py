"""Compare's picker, one view at a time, and the table of numbers beneath it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import charts
from pages._parts import chart_box, theme
from pages._parts.compare_table import styled
from pages._parts.compare_tasks import mixed
from pages._parts.compare_views import Shown, views


def show(shown: Shown) -> None:
    """Picker, the view, the numbers."""
    offered = {view.name: view for view in views() if view.there(shown)}
    name = st.segmented_control(
        "Chart",
        list(offered),
        default=next(iter(offered)),
        required=True,
        key="compare_chart",
        bind="query-params",
        label_visibility="collapsed",
        wrap=True,
    )
    offered[str(name)].show(shown)
    numbers(shown)


def numbers(shown: Shown) -> None:
    """Every run's numbers and their differences; the usual qualities first, the others on request."""
    table = shown.table
    with st.container(horizontal=True, vertical_alignment="center", key="compare_table_head"):
        what = f"value ± standard error; Δ against {shown.against}, 95 % interval"
        st.html(f'<h2 class="esp-section">Numbers<span>{theme.html(what)}</span></h2>')
        everything = st.toggle("All metrics", key="compare_all", bind="query-params")
        tasks = st.toggle(
            "Mark tasks",
            key="compare_mark_tasks",
            bind="query-params",
            help="Mark single tasks, too, corrected by Holm over all tasks and runs shown. By default only the mean of "
            "the seven tasks, perplexity and speed are marked.",
        )
        st.download_button(
            "CSV", lambda: charts.export(table), "espalier-comparison.csv", "text/csv", key="compare_csv",
            type="tertiary", icon=":material/download:", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Parquet", lambda: chart_box.parquet(table), "espalier-comparison.parquet",
            "application/vnd.apache.parquet", key="compare_parquet", type="tertiary", icon=":material/download:",
            on_click="ignore",
        )  # fmt: skip
    _rows(shown, everything=everything, tasks=tasks)


def _rows(shown: Shown, *, everything: bool, tasks: bool) -> None:
    chosen = [quality for quality in shown.qualities if everything or quality.primary]
    values, texts = shown.once("numbers", lambda: _table(shown, chosen, tasks=tasks), everything, tasks)
    st.dataframe(
        styled(values, texts),
        key="compare_table",
        hide_index=True,
        height="content" if len(values) <= 15 else 560,
        column_config={
            "Run": st.column_config.TextColumn(pinned=True, width=170),
            "Method": st.column_config.TextColumn(width="medium"),
            "Removed": st.column_config.NumberColumn(width=110),
            **{
                name: st.column_config.NumberColumn(help=_tip(shown, quality), width=_width(name))
                for quality in chosen
                for name in (quality.label, charts.DELTA + quality.label)
            },
        },
        placeholder="–",
        alt=f"Numbers of the chosen runs with differences to {shown.against}",
    )
    _remarks(shown, chosen)


def _table(shown: Shown, chosen: list[charts.Quality], *, tasks: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    values, texts = charts.comparison_table(shown.table, chosen, tasks=tasks, intervals=True)
    return values.drop(columns=charts.without_numbers(values)), texts


def _remarks(shown: Shown, chosen: list[charts.Quality]) -> None:
    rows = shown.table[shown.table["quality"].isin([quality.key for quality in chosen])]
    for sentence in charts.leaks(rows):
        st.html(theme.note(f"† {sentence}"))
    for sentence in charts.disturbances(rows):
        st.html(theme.note(f"‡ {sentence}"))
    mixed(chosen)
    st.html(
        f'<p class="esp-fact">▲ better, ▼ worse than {theme.html(shown.against)} at 5 %, corrected by Holm over the '
        "runs shown. Differences are taken document by document where both runs answered the same ones, else as of "
        "independent values.</p>"
    )


def _width(heading: str) -> int:
    """Pixels of a column: of its heading, and of `+52.00 (+50.37 to +53.63) ▼` at least where it is a difference."""
    least = 245 if heading.startswith(charts.DELTA) else 125
    return min(max(least, 40 + 7 * len(heading)), 330)


def _tip(shown: Shown, quality: charts.Quality) -> str:
    """The protocol, for a column's tooltip, which reads Markdown."""
    return theme.plain(charts.about(shown.table, quality))
