"""Compare's charts, one at a time, and the table beneath them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from core import charts
from core.service import Service
from pages._parts import compare_pairs, compare_recovery, theme
from pages._parts.compare_table import styled

TRADEOFF, BY_RATIO, BY_TASK, TWO_RUNS = "Quality and size", "By ratio", "By task", "Two runs"
RECOVERY = "Recovery"
SHARE, PARAMETERS, ASKED = "share of the whole model", "parameters kept", "ratio asked for"


def show(service: Service, table: pd.DataFrame) -> None:
    """Picker, chart, table, download."""
    qualities = charts.qualities(table)
    tasks = [quality for quality in qualities if quality.is_task and quality.primary]
    recovered = [RECOVERY] if compare_recovery.has_gains(table) else []
    kinds = [TRADEOFF, BY_RATIO, *([BY_TASK] if tasks else []), *recovered, TWO_RUNS]
    kind = st.segmented_control(
        "Chart",
        kinds,
        default=TRADEOFF,
        required=True,
        key="compare_chart",
        bind="query-params",
        label_visibility="collapsed",
    )
    if kind == TWO_RUNS:
        compare_pairs.show(service, table)
    elif kind == RECOVERY:
        compare_recovery.show(service, table)
    elif kind == BY_TASK:
        _by_task(table, tasks)
    else:
        _against(table, qualities, str(kind))
    _table(table, qualities)


def _against(table: pd.DataFrame, qualities: Sequence[charts.Quality], kind: str) -> None:
    by_key = {quality.key: quality for quality in qualities}
    left, right = st.columns([1.4, 1], vertical_alignment="bottom")
    with left:
        key = st.selectbox(
            "Quality",
            list(by_key),
            key="compare_quality",
            format_func=lambda key: by_key[key].label,
            help="One task, metric and protocol. What was measured in another way is another entry.",
        )
    with right:
        sizes = [SHARE, PARAMETERS] if kind == TRADEOFF else [SHARE, ASKED]
        axis = st.segmented_control(
            "Across", sizes, default=SHARE, required=True, key=f"compare_axis_{sizes[1].split()[0]}"
        )
    quality = by_key[str(key)]

    def draw(panel: charts.Panel) -> object:
        if kind == TRADEOFF:
            size: charts.Size = "removed" if axis == SHARE else "parameters"
            return charts.tradeoff(table, quality, panel=panel, size=size, dark=theme.dark())
        x: charts.RatioAxis = "removed" if axis == SHARE else "ratio"
        return charts.ratio_curve(table, quality, panel=panel, x=x, dark=theme.dark())

    _panels(charts.panels(charts.at(table, quality)), draw, f"{kind} {quality.label}")
    st.html(f'<p class="esp-fact">{theme.html(_protocol(table, quality))}</p>')
    absent = charts.missing(table, quality)
    if absent:
        st.html(
            theme.note(
                f"Not measured in this way: {', '.join(absent[:6])}{' …' if len(absent) > 6 else ''}.", level="info"
            )
        )


def _protocol(table: pd.DataFrame, quality: charts.Quality) -> str:
    rows = charts.at(table, quality)
    counts = sorted({f"{int(n):,}" for n in rows["n"].dropna()})
    details = charts.protocol_words(rows.iloc[0]["protocol"])
    what = "windows" if quality.metric == "perplexity" else "documents" if quality.is_task else ""
    measured = f"{' or '.join(counts)} {what}" if counts and what else ""
    return " · ".join(word for word in ("Bars are 95 % intervals", details, measured) if word) + "."


def _panels(panels: Sequence[charts.Panel], draw: Callable[[charts.Panel], object], name: str) -> None:
    """Real cuts and masks side by side, never on one axis; on a phone, one above the other."""
    places = st.columns([1.6, 1]) if len(panels) == 2 else [st.container()]
    for place, panel in zip(places, panels, strict=True):
        with place:
            _chart(draw(panel), f"{name} {panel}", f"compare_plot_{panel}")


def _by_task(table: pd.DataFrame, tasks: Sequence[charts.Quality]) -> None:
    _chart(charts.task_dots(table, tasks, dark=theme.dark()), "accuracy by task", "compare_plot_tasks")
    st.html(
        '<p class="esp-fact">The task’s usual metric. Dotted: guessing; dashed, majority: always the '
        "most frequent answer. Bars are 95 % intervals.</p>"
    )
    _mixed(tasks)


def _mixed(qualities: Sequence[charts.Quality]) -> None:
    """Say plainly where the page holds values that were measured in different ways."""
    for sentence in charts.mixed_protocols(qualities):
        st.html(theme.note(sentence))


def _chart(figure: object, name: str, key: str) -> None:
    st.plotly_chart(figure, theme=None, width="stretch", key=key, config=charts.config(name), alt=charts.alt(figure))


def _table(table: pd.DataFrame, qualities: Sequence[charts.Quality]) -> None:
    """Every run's numbers and their differences to dense; the usual qualities first, the others on request."""
    with st.container(horizontal=True, vertical_alignment="center", key="compare_table_head"):
        st.html('<h2 class="esp-section">Numbers<span>value ± standard error, Δ against dense</span></h2>')
        everything = st.toggle("All metrics", key="compare_all")
        tasks = st.toggle(
            "Mark tasks",
            key="compare_mark_tasks",
            help="Mark single tasks, too, corrected by Holm over all tasks and runs shown. By default only the mean of "
            "the seven tasks, perplexity and speed are marked.",
        )
        st.download_button(
            "CSV", charts.export(table), "espalier-comparison.csv", "text/csv", key="compare_csv", type="tertiary",
            icon=":material/download:", on_click="ignore",
        )  # fmt: skip
    chosen = [quality for quality in qualities if everything or quality.primary]
    numbers, texts = charts.comparison_table(table, chosen, tasks=tasks)
    numbers = numbers.drop(columns=charts.without_numbers(numbers))
    st.dataframe(
        styled(numbers, texts),
        key="compare_table",
        hide_index=True,
        height="content" if len(numbers) <= 15 else 560,
        column_config={
            "Run": st.column_config.TextColumn(pinned=True, width="medium"),
            "Method": st.column_config.TextColumn(width="medium"),
            "Removed": st.column_config.NumberColumn(width=110),
            **{
                name: st.column_config.NumberColumn(help=_tip(table, quality), width=_width(name))
                for quality in chosen
                for name in (quality.label, charts.DELTA + quality.label)
            },
        },
        placeholder="–",
        alt="Numbers of the chosen runs with differences to the dense model",
    )
    shown = table[table["quality"].isin([quality.key for quality in chosen])]
    for sentence in charts.leaks(shown):
        st.html(theme.note(f"† {sentence}"))
    for sentence in charts.disturbances(shown):
        st.html(theme.note(f"‡ {sentence}"))
    _mixed(chosen)
    st.html(
        '<p class="esp-fact">▲ better, ▼ worse than dense at 5 %, corrected by Holm over the runs shown. Differences '
        "are taken document by document where both runs answered the same ones, else as of independent values.</p>"
    )


def _width(heading: str) -> int:
    """Pixels of a column: of its heading, and of `+52.00 ± 0.83 points ▼` at least."""
    return min(max(165, 40 + 7 * len(heading)), 330)


def _tip(table: pd.DataFrame, quality: charts.Quality) -> str:
    """The protocol, for a column's tooltip, which reads Markdown."""
    return theme.plain(charts.about(table, quality))
