"""Compare's view of configurations: what was set differently."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from pages._parts import theme
from pages._parts.compare_views import Shown

MOST = 40
"""Runs whose settings stand side by side."""


def show(shown: Shown) -> None:
    """A row a setting, a column a run, the baseline first; by default only rows that differ."""
    labels = shown.labels
    first = shown.pinned or next((str(each) for each in shown.baselines.values() if each), None)
    ids = sorted(labels, key=lambda run_id: run_id != first)[:MOST]
    only = st.toggle("Only differences", value=True, key="compare_only", bind="query-params")
    table = shown.service.compare.settings(ids)
    shared = len(table)
    table = shown.service.compare.differing(table) if only else table
    if table.empty:
        st.html('<p class="esp-fact">These runs have the same settings.</p>')
        return
    rows = table[ids].reset_index(names="setting")
    st.dataframe(
        rows.style.apply(
            lambda column: _marks(column, rows[first]) if first in rows else [""] * len(column), subset=pd.Index(ids)
        ),
        key="compare_settings_table",
        hide_index=True,
        height="content" if len(table) <= 18 else 620,
        column_config={
            "setting": st.column_config.TextColumn("Setting", pinned=True, width=210),
            **{run_id: st.column_config.TextColumn(theme.plain(labels[run_id]), width=150) for run_id in ids},
        },
        alt="Settings of the compared runs",
    )
    words = f"{len(table)} of {shared} settings differ." if only else f"{shared} settings, defaults filled in."
    more = f" The first {MOST} runs of {len(labels)}." if len(labels) > MOST else ""
    against = f" Bold: differs from {theme.html(labels[first])}." if first in labels else ""
    st.html(f'<p class="esp-fact">{theme.html(words + more)}{against}</p>')


def _marks(column: pd.Series, baseline: pd.Series) -> list[Any]:
    """Cells that are not as the baseline's."""
    return ["font-weight: 600" if differs else "" for differs in column != baseline]
