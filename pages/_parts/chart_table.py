"""A chart with the table of its numbers beneath it, and both to take away."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import streamlit as st

from core import charts

if TYPE_CHECKING:
    import pandas as pd


def show(figure: Any, table: pd.DataFrame, name: str, key: str) -> None:
    """Chart, then its numbers folded away: as a table, CSV, Parquet, and the chart as a page of its own."""
    st.plotly_chart(figure, theme=None, width="stretch", key=key, config=charts.config(name), alt=charts.alt(figure))
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "chart"
    with st.expander("Numbers", key=f"{key}_numbers", icon=":material/table:"):
        st.dataframe(table, key=f"{key}_table", hide_index=True, height=260 if len(table) > 6 else "content")
        with st.container(horizontal=True):
            st.download_button(
                "CSV", lambda: table.to_csv(index=False).encode(), f"espalier-{stem}.csv", "text/csv", key=f"{key}_csv"
            )
            st.download_button("Parquet", lambda: _parquet(table), f"espalier-{stem}.parquet", key=f"{key}_parquet")
            st.download_button("HTML", lambda: _page(figure), f"espalier-{stem}.html", "text/html", key=f"{key}_html")


def _parquet(table: pd.DataFrame) -> bytes:
    held = io.BytesIO()
    table.to_parquet(held, index=False)
    return held.getvalue()


def _page(figure: Any) -> bytes:
    return bytes(figure.to_html(include_plotlyjs=True, full_html=True).encode())
