"""What Compare compares: filters over all runs and the ticked ones, all of it in the URL, found and sorted in SQL."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.service import Service, Wanted
from pages._parts import compare_columns, first_step, theme
from pages._parts import runs_text as say

FIRST_CHOICE = 12
NONE = "none"
PAGE = 100
"""Rows of the table at once; more are on further pages."""
_ALL_RATIOS = (0, 100)
_FILTERS = ("text", "method", "model", "study", "state", "ratio", "layers")
_DONE = "complete"


def empty(service: Service) -> None:
    """The next step where there is nothing to compare."""
    waiting = service.status_line()
    if waiting.running is not None or waiting.queue_length:
        st.html('<p class="esp-fact">No run is complete yet. Numbers stand here as soon as one is.</p>')
        if st.button("See what runs", key="compare_to_runs", type="primary", icon=":material/view_list:"):
            st.switch_page("runs.py", query_params={})
        return
    first_step.offer(service, "compare", "Nothing to compare yet.")


def choose(service: Service) -> list[str]:
    """Filters, then the table to tick runs in; returns the ids of the chosen ones."""
    titles = method_titles(service)
    with st.container(horizontal=True, vertical_alignment="bottom", key="compare_filters", gap="small"):
        wanted = _filters(service, titles)
        shown, sort, descending = _looks(service)
    measures = [column.measure for column in [*shown, sort] if column.measure is not None]
    total = service.compare.count(wanted)
    line = st.container(horizontal=True, vertical_alignment="center", key="compare_told", gap="medium")
    with line:
        everything = _matching(service)
    offset = _page(total)
    found = service.compare.find(
        wanted, sort=sort.sort, descending=descending, limit=PAGE, offset=offset, measures=list(dict.fromkeys(measures))
    )
    ids = found["id"].astype(str).tolist()
    chosen = service.compare.ids(wanted) if everything else chosen_ids(service, wanted)
    _told(line, service, total, chosen, ids, everything=everything)
    if not ids:
        st.html('<p class="esp-fact">No run meets these conditions.</p>')
        return chosen
    rows = compare_columns.table(found, shown, titles)
    config = {column.key: column.config for column in shown}
    height: Literal["content"] | int = "content" if len(ids) <= 6 else 215
    alt = "Runs that meet the conditions. Tick those to compare."
    if everything:
        st.dataframe(rows, key="compare_all_runs", hide_index=True, height=height, column_config=config, alt=alt)
        return chosen
    seen = zlib.crc32(" ".join([*ids, str(st.session_state.get("compare_ticks", 0))]).encode())
    key = f"compare_runs_{seen}"
    st.dataframe(
        rows,
        key=key,
        hide_index=True,
        height=height,
        on_select=lambda: _remember(key, ids, chosen, service.compare.most),
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [ids.index(run_id) for run_id in chosen if run_id in ids]}},
        column_config=config,
        placeholder="–",
        alt=alt,
    )
    return chosen


def method_titles(service: Service) -> dict[str, str]:
    """Method → the name that people read."""
    return {method.name: method.title for method in service.methods()}


# -------------------------------------------------------------------------------------------------------------- filters


def _filters(service: Service, titles: Mapping[str, str]) -> Wanted:
    """The conditions, as fields whose values stand in the URL."""
    there = service.compare.offered()
    text = st.text_input(
        "Search", key="compare_text", bind="query-params", placeholder="name, id, anything set", width=230,
        icon=":material/search:", max_chars=200,
    )  # fmt: skip
    words = {**titles, "dense": "dense model"}
    methods = st.multiselect(
        "Method", list(there.methods), key="compare_method", bind="query-params", width=260, placeholder="all",
        format_func=lambda name: words.get(name, name.upper()),
    )  # fmt: skip
    models = st.multiselect(
        "Model", list(there.models), key="compare_model", bind="query-params", width=260, placeholder="all"
    )
    with st.popover("More filters", key="compare_more", icon=":material/filter_list:"):
        low, high = st.slider(
            "Ratio asked for", *_ALL_RATIOS, _ALL_RATIOS, key="compare_ratio", bind="query-params", format="%d %%",
            help="Anything but 0 to 100 leaves dense runs out: they have no ratio.",
        )  # fmt: skip
        ranges = {f"{first}–{last}": (first, last) for first, last in there.layers}
        layers = st.multiselect(
            "Layers", list(ranges), key="compare_layers", bind="query-params", placeholder="all",
            help="The range that was cut, first and last layer included.",
        )  # fmt: skip
        studies = st.multiselect(
            "Study", list(there.studies), key="compare_study", bind="query-params", placeholder="all"
        )
        by_word = {say.state_word(state): state for state in [*there.states, "COMPLETE"]}
        states = st.multiselect(
            "State", list(by_word), default=[_DONE], key="compare_state", bind="query-params", placeholder="all"
        )
        st.button("Clear filters", key="compare_clear", type="tertiary", on_click=_clear)
    return Wanted(
        models=tuple(models), methods=tuple(methods),
        ratio=None if (low, high) == _ALL_RATIOS else (low / 100, high / 100),
        layers=tuple(ranges[each] for each in layers), studies=tuple(studies),
        states=tuple(by_word[each] for each in states), text=text or "",
    )  # fmt: skip


def _clear() -> None:
    defaults = {"compare_text": "", "compare_ratio": _ALL_RATIOS, "compare_state": [_DONE]}
    for name in _FILTERS:
        st.session_state[f"compare_{name}"] = defaults.get(f"compare_{name}", [])


def _looks(service: Service) -> tuple[list[compare_columns.Column], compare_columns.Column, bool]:
    """Which columns, and what the runs are sorted by, whichever way."""
    there = compare_columns.columns(service.compare.offered().measures)
    few = [title for title, column in there.items() if column.key in compare_columns.FEW]
    with st.popover("Columns and order", key="compare_looks", icon=":material/view_column:"):
        shown = st.multiselect("Columns", list(there), default=few, key="compare_columns", bind="query-params")
        sort = st.selectbox(
            "Sort by", list(there), index=list(there).index("Finished"), key="compare_sort", bind="query-params",
            help="Of all runs that meet the conditions. A click on a column’s head sorts the rows of this page alone.",
        )  # fmt: skip
        ascending = st.toggle("Smallest first", key="compare_ascending", bind="query-params")
    return [there[title] for title in shown or few], there[sort], not ascending


def _matching(service: Service) -> bool:
    return st.toggle(
        "Compare all that match", key="compare_matching", bind="query-params",
        help=f"Whatever meets the conditions, now and later, instead of ticked runs; the newest {service.compare.most} "
        "at most.",
    )  # fmt: skip


def _page(total: int) -> int:
    """Where the shown page begins."""
    pages = max(-(-total // PAGE), 1)
    if int(st.session_state.get("compare_page", 1)) > pages:
        st.session_state["compare_page"] = pages
    if pages == 1:
        return 0
    return (st.pagination(pages, key="compare_page", bind="query-params") - 1) * PAGE


# -------------------------------------------------------------------------------------------------------------- ticking


def chosen_ids(service: Service, wanted: Wanted) -> list[str]:
    """The runs named in the URL that are there; without any named, the newest own ones that meet the conditions.

    Where there is no own pair, what was imported comes with it, whole, the earliest first where it is too much: a study
    begins with what tells most.
    """
    named = st.query_params.get_all("runs")
    if named:
        return service.compare.known(named[: service.compare.most])
    brought = service.travel.runs()
    if not brought:
        return service.compare.ids(wanted, FIRST_CHOICE)
    found = service.compare.ids(wanted)
    own = [run_id for run_id in found if run_id not in brought]
    rest = [run_id for run_id in reversed(found) if run_id in brought]
    return own[:FIRST_CHOICE] if len(own) > 1 else [*own, *rest][: service.compare.most]


def _told(
    line: DeltaGenerator, service: Service, total: int, chosen: Sequence[str], ids: Sequence[str], *, everything: bool
) -> None:
    """How many runs there are, how many are ticked, and buttons that tick many at once."""
    most = service.compare.most
    with line:
        all_runs = service.compare.offered().runs
        words = f"{total:,} of {all_runs:,} runs" if total != all_runs else f"{total:,} runs"
        hidden = len(set(chosen) - set(ids))
        if everything:
            words += f", the newest {most} compared" if total > most else ", all compared"
        else:
            words += f", {len(chosen)} ticked" + (f", {hidden} of them not in this list" if hidden else "")
        st.html(f'<p class="esp-fact">{theme.html(words)}</p>')
        if everything:
            return
        missing = [run_id for run_id in ids if run_id not in set(chosen)]
        if missing and st.button(f"Tick these {len(ids)}", key="compare_tick_all", type="tertiary"):
            _tick([*chosen, *missing][:most])
        if chosen and st.button("Untick all", key="compare_untick", type="tertiary"):
            _tick([])


def _tick(chosen: Sequence[str]) -> None:
    st.query_params["runs"] = list(chosen) or [NONE]
    st.session_state["compare_ticks"] = int(st.session_state.get("compare_ticks", 0)) + 1
    st.rerun()


def _remember(key: str, ids: Sequence[str], chosen: Sequence[str], most: int) -> None:
    """Ticks of this page go into the URL; ticked runs that are not in it stay."""
    rows = st.session_state[key]["selection"]["rows"]
    ticked = [ids[row] for row in rows if row < len(ids)]
    there = set(ids)
    kept = [run_id for run_id in chosen if run_id not in there or run_id in set(ticked)]
    st.query_params["runs"] = [*kept, *(run_id for run_id in ticked if run_id not in set(kept))][:most] or [NONE]
