"""One chart as every page shows it: at full width, with a text alternative, its data beside it, and ways to take it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from core import charts
from pages._parts import theme

SVG, PNG = "SVG", "PNG"


def show(figure: Any, name: str, key: str, data: pd.DataFrame | Callable[[], pd.DataFrame] | None = None) -> None:
    """The chart. `key`: of the chart; its other widgets' keys begin with it. `data`: what is drawn, a row a mark.

    With data, a quiet line beneath the chart opens its table, and takes it as CSV or Parquet, and the chart as HTML.
    The camera in the mode bar saves it as SVG or PNG.
    """
    config = charts.config(name)
    config["toImageButtonOptions"]["format"] = str(st.session_state.get(f"{key}_image", SVG)).lower()
    st.plotly_chart(figure, theme=None, width="stretch", key=key, config=config, alt=charts.alt(figure))
    if data is not None:
        take(figure, name, key, data)


def take(figure: Any, name: str, key: str, data: pd.DataFrame | Callable[[], pd.DataFrame]) -> None:
    """The line beneath a chart: its data as a table, and files."""
    stem = config_name(name)

    def table() -> pd.DataFrame:
        return data() if callable(data) else data

    with st.container(horizontal=True, vertical_alignment="center", key=f"{key}_take", gap="small"):
        opened = st.toggle("Data", key=f"{key}_data", help="The numbers behind the chart, a row a mark")
        with st.popover("Export", key=f"{key}_export", type="tertiary", icon=":material/download:"):
            st.radio(
                "Image, from the camera in the chart’s bar", [SVG, PNG], key=f"{key}_image", horizontal=True,
                persist_state="session",
            )  # fmt: skip
            st.download_button(
                "HTML, with the chart alive", lambda: html_page(figure, name), f"{stem}.html", "text/html",
                key=f"{key}_html", on_click="ignore", icon=":material/web:", width="stretch",
            )  # fmt: skip
            st.download_button(
                "CSV", lambda: table().to_csv(index=False).encode(), f"{stem}.csv", "text/csv",
                key=f"{key}_csv", on_click="ignore", icon=":material/table:", width="stretch",
            )  # fmt: skip
            st.download_button(
                "Parquet", lambda: parquet(table()), f"{stem}.parquet", "application/vnd.apache.parquet",
                key=f"{key}_parquet", on_click="ignore", icon=":material/database:", width="stretch",
            )  # fmt: skip
    if opened:
        rows = table()
        st.dataframe(
            rows, key=f"{key}_rows", hide_index=True, height="content" if len(rows) <= 12 else 400, placeholder="–",
            alt=f"The numbers behind: {name}",
        )  # fmt: skip


def config_name(name: str) -> str:
    """The stem of the files, as the mode bar's image is called too."""
    return str(charts.config(name)["toImageButtonOptions"]["filename"])


def parquet(table: pd.DataFrame) -> bytes:
    """The table as a Parquet file; columns of mixed kinds become text."""
    clean = table.copy()
    for column in clean.columns:
        if clean[column].dtype == object:
            clean[column] = [None if each is None or each != each else str(each) for each in clean[column]]
    buffer = io.BytesIO()
    clean.to_parquet(buffer, index=False)
    return buffer.getvalue()


def html_page(figure: Any, name: str) -> bytes:
    """A page of its own that needs no network: the chart with its script, its title, its text alternative."""
    config = {key: value for key, value in charts.config(name).items() if key != "toImageButtonOptions"}
    chart = figure.to_html(full_html=False, include_plotlyjs=True, config=config, default_width="100%")
    wall, ink = figure.layout.paper_bgcolor, figure.layout.font.color
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{theme.html(name)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>body{{margin:1rem;background:{wall};color:{ink};font-family:system-ui,sans-serif}}</style></head>"
        f'<body><figure role="img" aria-label="{theme.html(charts.alt(figure))}" style="margin:0">{chart}</figure>'
        "</body></html>"
    )
    return page.encode()
