"""Two runs on the same documents: differences with their certainty, and the documents that flipped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from core import charts
from core.service import Flip, PerplexityPair, RunPair, Service, TaskPair
from pages._parts import theme
from pages._parts.compare_views import Shown

LOST, WON = "right → wrong", "wrong → right"
_LONGEST = 1200
"""Letters of a prompt that are shown; the middle of longer ones is left out."""


def view(shown: Shown) -> None:
    """The view of Compare's picker."""
    show(shown.service, shown.table, shown.pinned)


def show(service: Service, table: pd.DataFrame, pinned: str | None = None) -> None:
    """Pick two of the compared runs; their differences, then the flipped documents."""
    runs = charts.at_order(table).drop_duplicates("run_id")
    names = dict(zip(runs["run_id"].astype(str), runs["label"].astype(str), strict=True))
    if len(names) < 2:
        st.html('<p class="esp-fact">Tick a second run to hold it against the first.</p>')
        return
    pruned = runs.loc[runs["kind"].ne("dense"), "run_id"].astype(str).tolist()
    start = list(names).index(pinned) if pinned in names else 0
    others = [list(names).index(run) for run in [*pruned, *names] if list(names).index(run) != start]
    first, second = _choose(names, start, others[0])
    if first == second:
        st.html('<p class="esp-fact">Both are the same run.</p>')
        return
    found = service.pair(first, second)
    if found.problem:
        st.html(theme.note(found.problem))
        return
    st.html(_differences_html(found, names))
    if found.perplexities:
        st.html(_perplexities_html(found, names))
    if found.tasks:
        _flips(service, found, names)


def _choose(names: Mapping[str, str], start: int, other: int) -> tuple[str, str]:
    ids = list(names)
    left, right = st.columns(2)
    with left:
        first = st.selectbox(
            "From", ids, index=start, key="compare_pair_first", bind="query-params", format_func=lambda run: names[run]
        )
    with right:
        second = st.selectbox(
            "To", ids, index=other, key="compare_pair_second", bind="query-params", format_func=lambda run: names[run]
        )
    return str(first), str(second)


# ---------------------------------------------------------------------------------------------------------- differences


def _differences_html(found: RunPair, names: Mapping[str, str]) -> str:
    if not found.tasks:
        return ""
    head = "".join(
        f'<th{_hidden(place)} title="{theme.html(why)}">{theme.html(word)}</th>'
        for place, (word, why) in enumerate(_heads(names[found.first], names[found.second]))
    )
    rows = _mean_row(found) + "".join(_task_row(row) for row in found.tasks)
    apart = sorted({name for row in found.tasks for name in row.differing})
    note = ""
    if apart:
        words = ", ".join(name.replace("_", " ") for name in apart)
        note = theme.note(
            f"The two were not measured in the same way: {words} differ. What differs is not the pruning alone."
        )
    return (
        '<h2 class="esp-section">On the same documents<span>points, 95 % intervals</span></h2>'
        f'<div class="esp-scroll"><table class="esp-table esp-pairs"><tr>{head}</tr>{rows}</table></div>{note}'
        '<p class="esp-fact">Read the mean first: among many tasks some differ by luck, which the corrected p accounts '
        "for. Quiet rows are the task’s other metric.</p>"
    )


def _heads(first: str, second: str) -> list[tuple[str, str]]:
    """Headings, and what each says on hover."""
    return [
        ("", ""),
        ("documents", "That both runs answered"),
        (first, "Share of right answers"),
        (second, "Share of right answers"),
        ("difference", "In points, with its 95 % interval: bootstrap over the shared documents"),
        (LOST, "Documents that only the first got right"),
        (WON, "Documents that only the second got right"),
        ("p", "Exact McNemar test; of the mean, a normal test of the paired difference"),
        ("p, corrected", "By Holm over the reported metric of all tasks shown"),
    ]


def _hidden(place: int) -> str:
    """What a phone leaves out: number of documents, and the first run's value."""
    return ' class="dense"' if place in (1, 2) else ""


def _cells(cells: Sequence[str]) -> str:
    return "".join(f"<td{_hidden(place)}>{cell}</td>" for place, cell in enumerate(cells))


def _mean_row(found: RunPair) -> str:
    mean = found.mean
    if mean is None:
        return ""
    n = sum(row.paired.n for row in found.tasks if row.reported)
    cells = [
        f"<b>mean of {mean.tasks} tasks</b>",
        f"{n:,}",
        theme.percent(mean.first),
        theme.percent(mean.second),
        f"<b>{_points(mean.difference)}</b> {_interval(mean.low, mean.high)}",
        "",
        "",
        f"<b>{_p(mean.p)}</b>",
        "",
    ]
    return f"<tr>{_cells(cells)}</tr>"


def _task_row(row: TaskPair) -> str:
    pair = row.paired
    cells = [
        theme.html(f"{row.task} {row.metric}"),
        f"{pair.n:,}",
        theme.percent(pair.first),
        theme.percent(pair.second),
        f"{_points(pair.difference)} {_interval(pair.low, pair.high)}",
        f"{pair.lost:,}",
        f"{pair.won:,}",
        _p(pair.p),
        _p(row.corrected),
    ]
    quiet = "" if row.reported else ' class="quiet"'
    return f"<tr{quiet}>{_cells(cells)}</tr>"


def _perplexities_html(found: RunPair, names: Mapping[str, str]) -> str:
    rows = "".join(_perplexity_row(each) for each in found.perplexities)
    head = "".join(
        f"<th>{theme.html(word)}</th>"
        for word in ("", "windows", names[found.first], names[found.second], "ratio, 95 % interval")
    )
    return (
        '<h2 class="esp-section">Perplexity on the same windows<span>bootstrap over windows, drawn for both at once'
        f'</span></h2><div class="esp-scroll"><table class="esp-table esp-pairs"><tr>{head}</tr>{rows}</table></div>'
    )


def _perplexity_row(each: PerplexityPair) -> str:
    words = charts.protocol_words(each.protocol, f"perplexity/{each.corpus}")
    cells = [
        f"{theme.html(each.corpus)} <small>{theme.html(words)}</small>",
        f"{each.windows:,}",
        f"{each.first:,.2f}",
        f"{each.second:,.2f}",
        f"× {each.ratio:.3f} <small>{each.low:.3f} to {each.high:.3f}</small>",
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _points(share: float) -> str:
    shown = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if shown in ("+0.0", "−0.0") else shown


def _interval(low: float, high: float) -> str:
    return f"<small>{_points(low)} to {_points(high)}</small>"


def _p(value: float) -> str:
    if math.isnan(value):
        return ""
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


# ---------------------------------------------------------------------------------------------------------------- flips


def _flips(service: Service, found: RunPair, names: Mapping[str, str]) -> None:
    st.html('<h2 class="esp-section">Documents that flipped<span>one got it right, the other wrong</span></h2>')
    rows = {f"{row.task} {row.metric}": row for row in found.tasks}
    left, right = st.columns([1, 1], vertical_alignment="bottom")
    with left:
        moved = next((place for place, each in enumerate(rows.values()) if each.paired.lost), 0)
        row = rows[st.selectbox("Task", list(rows), index=moved, key="compare_flips_task", bind="query-params")]
    counted = {LOST: row.paired.lost, WON: row.paired.won}
    with right:
        way = st.segmented_control(
            "Which way", [LOST, WON], default=LOST, required=True, key="compare_flips_way", bind="query-params",
            format_func=lambda option: f"{option} ({counted[option]:,})",
        )  # fmt: skip
    total = counted[str(way)]
    if not total:
        st.html('<p class="esp-fact">No document went this way.</p>')
        return
    size = service.flips_at_once
    page = 1
    if total > size:
        pages = list(range(1, -(-total // size) + 1))
        page = st.selectbox(
            "Documents", pages, key=f"compare_flips_page_{row.task}_{row.metric}_{way == LOST}", width=220,
            format_func=lambda number: f"{(number - 1) * size + 1:,}–{min(number * size, total):,} of {total:,}",
        )  # fmt: skip
    flips = service.flips(found.first, found.second, row.task, row.metric, way == LOST, (page - 1) * size)
    if any(not flip.known for flip in flips):
        st.html(theme.note("The texts of some documents were not kept when these runs were made.", level="info"))
    heads = (names[found.first], names[found.second])
    st.html("".join(_flip_html(flip, heads, normed=row.metric == "acc_norm") for flip in flips))


def _flip_html(flip: Flip, heads: tuple[str, str], *, normed: bool) -> str:
    rows = "".join(_choice_html(flip, place, normed=normed) for place in range(len(flip.first_logs)))
    prompt = f'<p class="esp-prompt">{theme.html(_shortened(flip.prompt))}</p>' if flip.prompt else ""
    head = "".join(f"<th>{theme.html(head)}</th>" for head in heads)
    return (
        f'<section class="esp-flip"><h3>Document {flip.doc:,}</h3>{prompt}<div class="esp-scroll">'
        f'<table class="esp-table"><tr><th>log-likelihood of each choice</th>{head}</tr>{rows}</table></div></section>'
    )


def _choice_html(flip: Flip, place: int, *, normed: bool) -> str:
    text = flip.choices[place] if place < len(flip.choices) else f"choice {place + 1}"
    right = " <i>right answer</i>" if place == flip.target else ""
    cells = []
    for logs, chosen in ((flip.first_logs, flip.first_choice), (flip.second_logs, flip.second_choice)):
        value = f"{logs[place]:,.2f}".replace("-", "−") if place < len(logs) else "–"
        if normed and flip.known and place < len(logs):
            value += f"<small>{logs[place] / max(1, len(text)):.3f} a letter</small>".replace("-", "−")
        cells.append(f'<td class="chosen"><b>{value}</b></td>' if chosen == place else f"<td>{value}</td>")
    return f"<tr><td>{theme.html(text)}{right}</td>{''.join(cells)}</tr>"


def _shortened(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half].rstrip()} […] {text[-half:].lstrip()}"
