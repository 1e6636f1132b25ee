"""Step 2 of Launch: what goes, by which method, how much of it, and where."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.experiment import describe
from core.service import Service
from pages._parts import launch_more, launch_options, launch_state
from pages._parts.launch_build import short_title
from pages._parts.launch_says import Says
from pages._parts.launch_state import CUTS, DENSE, NONE, QUANTISED, kind_changed
from pages._parts.launch_words import DOES, KINDS, targets
from pages._parts.theme import html, note


def show(service: Service, methods: Mapping[str, Any], architecture: Any | None, says: Says) -> None:
    """Draw the step."""
    chosen = _methods(methods)
    launch_options.show(chosen)
    says.place("pruning.method", "pruning.options", "model.quantised")
    if not chosen:
        return
    kinds = {method.kind for method in chosen}
    if "mask" in kinds:
        _pattern(service, says)
    _ratio(kinds, says)
    last = architecture.n_layers - 1 if architecture else 0
    if last > 0:
        launch_state.model_known(last)
    if last > 0 and kinds != {"hidden"}:
        st.slider(
            "Layers, both ends included",
            0,
            last,
            key="launch_layers",
            persist_state="session",
            help=describe("pruning.layers"),
        )
    says.place("pruning.layers")
    launch_more.cut(chosen, kinds, says)
    launch_more.calibration(service, chosen, says)


def _methods(methods: Mapping[str, Any]) -> list[Any]:
    """The chosen methods; none stands for the dense model."""
    if st.session_state["launch_several_methods"]:
        return _several(methods)
    kinds = {name: method.kind for name, method in methods.items()}
    st.session_state["launch_kind"] = kinds.get(st.session_state["launch_method"], NONE)
    kind = st.segmented_control(
        "What goes",
        [*CUTS, NONE],
        format_func=KINDS.__getitem__,
        key="launch_kind",
        persist_state="session",
        required=True,
        wrap=True,
        on_change=kind_changed,
        args=(kinds,),
        label_visibility="collapsed",
    )
    st.html(f'<p class="esp-fact">{DOES[str(kind)]}</p>')
    if kind == NONE:
        _quantised("Rounded to a GGUF format")
        return []
    name = st.selectbox(
        "Method",
        [name for name in methods if kinds[name] == kind],
        format_func=lambda name: methods[name].title,
        key="launch_method",
        persist_state="session",
        help=describe("pruning.method"),
    )
    if name in (None, DENSE):
        return []
    method = methods[name]
    st.html(
        f'<p class="esp-fact">{html(method.summary)} '
        f'<a href="{html(method.url)}" target="_blank">{html(method.paper)}</a></p>'
    )
    return [method]


def _quantised(label: str) -> None:
    """The dense model in Q8_0 or Q4_0, in place of a cut: a run for each."""
    st.pills(
        label,
        QUANTISED,
        selection_mode="multi",
        format_func=str.upper,
        key="launch_quantised",
        persist_state="session",
        help=describe("model.quantised"),
    )


def _several(methods: Mapping[str, Any]) -> list[Any]:
    """Methods of every kind, to be ticked: a run for each."""
    names: list[str] = []
    for kind in CUTS:
        of_kind = [name for name, method in methods.items() if method.kind == kind]
        picked = st.pills(
            KINDS[kind],
            of_kind,
            selection_mode="multi",
            format_func=lambda name: short_title(methods[name]),
            key=f"launch_methods_{kind}",
            persist_state="session",
            help=DOES[kind],
            wrap=True,
        )
        names += picked
    _quantised("No cut, but rounded to a GGUF format")
    return [methods[name] for name in names]


def _pattern(service: Service, says: Says) -> None:
    pattern = st.segmented_control(
        "Where zeros may stand",
        ["unstructured", "2:4", "4:8"],
        key="launch_pattern",
        persist_state="session",
        required=True,
        help=describe("pruning.pattern"),
    )
    said = service.zeros_in_words(str(pattern))
    if said:
        st.html(note(said, level="info"))
    says.place("pruning.pattern")


def _ratio(kinds: set[str], says: Says) -> None:
    fixed = kinds == {"mask"} and st.session_state["launch_pattern"] != "unstructured"
    if fixed:
        st.slider(
            "Removed, in per cent",
            1,
            95,
            50,
            format="%d %%",
            disabled=True,
            key="launch_ratio_fixed",
            persist_state="session",
            help=f"Pattern {st.session_state['launch_pattern']} always removes half.",
        )
    elif st.session_state["launch_several_ratios"]:
        st.multiselect(
            "Removed",
            list(range(5, 95, 5)),
            format_func=lambda ratio: f"{ratio} %",
            key="launch_ratios",
            persist_state="session",
            help=describe("pruning.ratio"),
        )
    else:
        st.slider(
            "Removed",
            1,
            95,
            format="%d %%",
            key="launch_ratio",
            persist_state="session",
            help=describe("pruning.ratio"),
        )
    if not fixed:
        words = targets(kinds)
        st.radio(
            "Fraction of what",
            list(words),
            format_func=words.__getitem__,
            horizontal=True,
            key="launch_target",
            persist_state="session",
            label_visibility="collapsed",
            help=describe("pruning.target"),
        )
    says.place("pruning.ratio", "pruning.target")
    with st.container(horizontal=True, gap="medium"):
        st.checkbox("Several ratios", key="launch_several_ratios", persist_state="session", disabled=fixed)
        st.checkbox("Several methods", key="launch_several_methods", persist_state="session")
