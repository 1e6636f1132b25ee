"""Anatomy's views, one at a time: of one run, or of two side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from core import charts_anatomy, charts_importance, charts_inside
from core.glossary import meaning
from core.service import Service
from pages._parts import anatomy_density, anatomy_scan, chart_box, theme

MAP, IMPORTANCE, DEPTH, PARTS, DENSITY = "Map", "Importance", "Error by layer", "Parameters", "Density"
SCAN = "Scan of layers"


def show(service: Service, runs: Sequence[Any]) -> None:
    """Picker, then what was picked."""
    cut = any(not run.scan for run in runs)
    views = [*([MAP, IMPORTANCE, DEPTH, PARTS] if cut else []), *([DENSITY] if _masked(runs) else []), SCAN]
    wanted = st.query_params.get("view")
    st.session_state["anatomy_view"] = wanted if wanted in views else views[0]
    view = st.segmented_control(
        "View", views, required=True, key="anatomy_view", label_visibility="collapsed", wrap=True, on_change=_remember
    )
    if view == SCAN:
        _beside(runs, lambda run, key: anatomy_scan.show(service, run, key))
        return
    runs = [run for run in runs if not run.scan]
    if view == DEPTH:
        _by_layer(runs)
    elif view == IMPORTANCE:
        _beside(runs, _importance)
    elif view == PARTS:
        _beside(runs, _parts)
    elif view == DENSITY:
        _beside(runs, lambda run, key: anatomy_density.show(service, run, key))
    else:
        _beside(runs, _map)


def _remember() -> None:
    """The view goes into the URL; a bound widget would keep buttons from leading to other pages."""
    st.query_params["view"] = st.session_state["anatomy_view"]


def _masked(runs: Sequence[Any]) -> bool:
    return any(run.matrices and not run.scan for run in runs)


def _beside(runs: Sequence[Any], draw: Callable[[Any, str], None]) -> None:
    """Once for each run; two stand side by side, on a phone one above the other."""
    places = st.columns(2, gap="medium") if len(runs) == 2 else [st.container()]
    for place, run, key in zip(places, runs, ("a", "b"), strict=False):
        with place:
            st.html(f'<h2 class="esp-section">{theme.html(run.name)}<span>{theme.html(_line(run))}</span></h2>')
            draw(run, key)


def _line(run: Any) -> str:
    share = run.pruned.get("achieved_model_ratio")
    if run.scan or not isinstance(share, int | float):
        return str(run.method)
    return f"{run.method} · {theme.percent(share)} of the whole model {'set to zero' if run.matrices else 'removed'}"


def _map(run: Any, key: str) -> None:
    if not run.layers:
        st.html(theme.note("What this run removed is not in its files.", level="info"))
        return
    figure = charts_anatomy.espalier_map(run, dark=theme.dark())
    chart_box.show(figure, f"map {run.name}", f"anatomy_map_{key}", charts_anatomy.map_table(run))
    st.html(f'<p class="esp-fact">{theme.html(_legend(run))}</p>')


def _legend(run: Any) -> str:
    if run.matrices:
        return "Filled: the share of a matrix that is not zero. Hollow: zeros. Pale: outside the chosen layers."
    words = "Filled stays, hollow went, pale was not chosen from."
    if run.dropped:
        words += f" Whole layers that went: {', '.join(map(str, run.dropped))}."
    before, after = run.pruned.get("hidden_before"), run.pruned.get("hidden_after")
    if isinstance(before, int) and isinstance(after, int) and after < before:
        words += f" The trunk is narrower: {before:,} → {after:,} channels of the stream."
    return words


def _importance(run: Any, key: str) -> None:
    choices = charts_importance.importance_choices(run)
    if not choices:
        _without(run)
        return
    names = list(dict.fromkeys(name for _, name, _ in choices))
    name = names[0]
    if len(names) > 1:
        name = st.segmented_control(
            "Part", names, default=names[0], required=True, key=f"anatomy_part_{key}", format_func=_part
        )
    layers = [layer for layer, other, _ in choices if other == name]
    layer = layers[0]
    if len(layers) > 1:
        layer = st.select_slider("Layer", layers, value=layers[len(layers) // 2], key=f"anatomy_layer_{key}_{name}")
    row = charts_importance.importance_row(run, layer, str(name))
    if row is None:
        return
    figure = charts_importance.importance(row, dark=theme.dark())
    table = charts_importance.importance_table(row)
    chart_box.show(figure, f"importance {run.name} {layer} {name}", f"anatomy_importance_{key}", table)
    st.html(f'<p class="esp-fact">{theme.html(charts_importance.words(row))}</p>')


def _part(name: str) -> str:
    return {"attention": "attention", "mlp": "MLP", "layers": "layers", "stream": "stream"}.get(name, name)


def _without(run: Any) -> None:
    """Runs from before importances were written down."""
    st.html(
        theme.note(
            "Importances are not among this run's files: it is older than they are, came from elsewhere, or its method "
            "scores nothing. A copy of it, run again here, has them.",
            level="info",
        )
    )
    if st.button("Edit a copy", key=f"anatomy_copy_{run.run_id}", icon=":material/edit:"):
        st.session_state["launch_copy"] = run.run_id
        st.switch_page("launch.py", query_params={})


def _by_layer(runs: Sequence[Any]) -> None:
    found = []
    for place, run in enumerate(runs):
        name = run.name if len({other.name for other in runs}) == len(runs) else f"{run.name} ({'ab'[place]})"
        if run.drift_recovered.get("layers"):
            found.append((f"{name}, recovered", run.method, run.drift_recovered))
        found.append((name, run.method, run.drift))
    for field, term in (("error", "drift by layer"), ("kl", "KL by layer")):
        table = charts_inside.layer_table(found, field)
        if table.empty:
            st.html(theme.note(_why_not(runs, field), level="info"))
            continue
        figure = charts_inside.by_layer(table, field, dark=theme.dark())
        chart_box.show(figure, f"{field} by layer", f"anatomy_{field}", table)
        st.html(f'<p class="esp-fact">{theme.html(meaning(term))} Bars are 95 % {theme.term("interval")}s.</p>')


def _why_not(runs: Sequence[Any], field: str) -> str:
    reasons = [str(run.drift["reason"]) for run in runs if run.drift.get("reason")]
    if reasons:
        return f"Nothing by layer: {reasons[0]}"
    if field == "kl" and any(run.drift.get("layers") for run in runs):
        return "This run is older than KL by layer: run a copy of it to have it."
    return "Not measured: fidelity was switched off in the evaluation."


def _parts(run: Any, key: str) -> None:
    table = charts_anatomy.parts_table(run)
    if table.empty:
        st.html(theme.note("The dense model is not on this machine any more: its parts are not known.", level="info"))
        return
    figure = charts_anatomy.parts_bars(table, masks=bool(run.matrices), dark=theme.dark())
    chart_box.show(figure, f"parameters {run.name}", f"anatomy_parts_{key}", table)
    st.html(f'<p class="esp-fact">{theme.html(charts_anatomy.parts_words(table, masks=bool(run.matrices)))}</p>')
