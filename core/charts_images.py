"""Charts as PNG or SVG files, by Kaleido, where it and a Chrome are installed; else an error that says what to do.

Kaleido is not required: the mode bar of a chart saves images without it, and reports draw figures of their own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go

ImageFormat = Literal["png", "svg"]
KALEIDO = "kaleido==1.5.0"
_CHROMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WITHOUT = "HTML, Markdown and LaTeX need neither, and the mode bar of a chart saves it as SVG."
WIDTH, SCALE = 1000, 2


def chrome() -> Path | None:
    """A Chrome or Chromium of this machine, if there is one."""
    found = next(filter(None, map(shutil.which, _CHROMES)), None)
    return Path(found) if found else None


def problem() -> str:
    """Why images cannot be made here, and what to do; '' where they can."""
    from importlib.util import find_spec

    if find_spec("kaleido") is None:
        return f"Images of charts need Kaleido. Install it: .venv/bin/pip install {KALEIDO}. {_WITHOUT}"
    if chrome() is None:
        return f"Images of charts need Chrome or Chromium, and none is installed. {_WITHOUT}"
    return ""


def images(figures: Mapping[str, go.Figure], form: ImageFormat) -> dict[str, bytes]:
    """Each figure as an image, by name. One browser draws all. InputError where Kaleido or a Chrome is missing.

    PNG: 1000 px wide at twice the pixels, heights as in the app.
    """
    why = problem()
    if why:
        raise InputError(why)
    import asyncio

    return asyncio.run(_drawn(figures, form))


async def _drawn(figures: Mapping[str, go.Figure], form: ImageFormat) -> dict[str, bytes]:
    import kaleido

    found: dict[str, bytes] = {}
    try:
        async with kaleido.Kaleido(n=1, path=chrome(), timeout=120, mathjax=False) as browser:
            for name, figure in figures.items():
                size = {"format": form, "width": WIDTH, "height": int(figure.layout.height or 500), "scale": SCALE}
                found[name] = bytes(await browser.calc_fig(figure, opts=size))
    except (OSError, RuntimeError, TimeoutError) as error:
        raise InputError(f"Kaleido could not draw the charts: {error}", _WITHOUT) from error
    return found
