"""The report on the page, and its downloads."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from typing import Any

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts import theme

PAPER = ".esp-report { border-top: 1px solid var(--line); padding-top: 1.6rem; margin-top: 0.4rem; }"
FORMS = {
    "html": ("HTML", "text/html", "One file with all figures inside; it needs nothing else."),
    "markdown": ("Markdown", "application/zip", "For GitHub: report.md with its figures as SVG files, as a zip."),
    "latex": ("LaTeX", "application/zip", "booktabs tables, pgfplots figures with their CSV files, references.bib."),
}


def downloads(service: Service, report: Any) -> None:
    """A button for each format; images of charts where they can be made. Each is written when it is pressed."""
    with st.container(horizontal=True, vertical_alignment="center", key="report_downloads"):
        for form, (title, mime, about) in FORMS.items():
            name = f"{report.stem}.html" if form == "html" else f"{report.stem}-{form}.zip"
            st.download_button(
                title, partial(_content, report, form), file_name=name, mime=mime, key=f"report_{form}",
                icon=":material/download:", help=about, on_click="ignore",
            )  # fmt: skip
        why = service.reports.why_no_images()
        st.download_button(
            "Charts as PNG", lambda: _images(service, report), file_name=f"{report.stem}-charts.zip",
            mime="application/zip", key="report_png", type="tertiary", icon=":material/image:", disabled=bool(why),
            help=theme.plain(why or "Compare’s charts of these runs, drawn by Kaleido: takes some seconds."),
            on_click="ignore",
        )  # fmt: skip


def _content(report: Any, form: str) -> bytes:
    return bytes(report.file(form)[1])


def _images(service: Service, report: Any) -> bytes:
    """Compare's charts as one zip; if the browser fails, a text that says so in their place."""
    try:
        found = service.reports.charts(report, "png")
    except EspalierError as error:
        found = {"why-there-are-none.txt": str(error).encode()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in found.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def show(service: Service, report: Any) -> None:
    """The document. Its texts are escaped where it is written; the page's own filter takes out what else is no text."""
    st.html(f"<style>{service.reports.style}{PAPER}</style>")
    st.html(service.reports.shown(report, dark=theme.dark()))
