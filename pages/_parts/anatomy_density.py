"""Where the zeros of one masked matrix are, from the whole matrix down to single weights."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core import charts_inside
from core.errors import EspalierError
from core.service import Service
from pages._parts import chart_box, theme

ROLES = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
ROLES |= {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
ZOOMS = (1, 2, 4, 8, 16, 32, 64)


def show(service: Service, run: Any, key: str) -> None:
    """Matrix, zoom and place; then the image."""
    if not run.matrices:
        st.html(theme.note("This run removed whole units: its matrices have no pattern of zeros.", level="info"))
        return
    layers = [int(row["layer"]) for row in run.layers]
    one, two, three = st.columns([1.1, 1.4, 1.4])
    with one:
        role = st.selectbox("Matrix", run.matrices, key=f"anatomy_role_{key}", format_func=ROLES.__getitem__)
    with two:
        layer = st.select_slider("Layer", layers, key=f"anatomy_density_layer_{key}")
    with three:
        zoom = st.select_slider("Zoom", ZOOMS, key=f"anatomy_zoom_{key}", format_func=lambda times: f"{times}×")
    try:
        whole = service.anatomy.zeros(run.run_id, layer, role)
        image = whole
        if whole is not None and whole.exact and zoom > 1:
            image = service.anatomy.zeros(run.run_id, layer, role, charts_inside.zoomed(whole, zoom, *_place(key)))
    except EspalierError as error:
        st.html(theme.note(str(error), level="error"))
        return
    if image is None:
        st.html(
            theme.note("Neither this run's weights nor an image of them are kept. Make the model again.", level="info")
        )
        return
    where = f"layer {layer}, {ROLES[role]}"
    figure = charts_inside.density(image, where, dark=theme.dark())
    chart_box.show(figure, f"density {where}", f"anatomy_density_{key}", lambda: charts_inside.density_table(image))
    rows, columns = image.shape
    words = f"{rows:,} × {columns:,} weights, {theme.percent(image.zeros)} zeros in what is shown"
    if not image.exact:
        words += "; the weights were not kept, so this is the image taken when it was pruned, and it cannot be zoomed"
    st.html(f'<p class="esp-fact">{theme.html(words)}.</p>')


def _place(key: str) -> tuple[float, float]:
    """Where the zoomed region lies, as shares of the way down and to the right."""
    left, right = st.columns(2)
    with left:
        down = st.slider("Rows from", 0, 100, 0, key=f"anatomy_down_{key}", format="%d %%")
    with right:
        across = st.slider("Columns from", 0, 100, 0, key=f"anatomy_across_{key}", format="%d %%")
    return down / 100, across / 100
