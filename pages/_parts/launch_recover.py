"""Step 3 of Launch: training after the cut. What matters first, the rest folded away; only what applies is drawn."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.experiment import describe
from core.service import Service
from pages._parts.launch_build import recovery_fields
from pages._parts.launch_says import Says
from pages._parts.launch_state import FILE, NO_RECOVERY, lesson_changed, recovers, recovery_changed
from pages._parts.theme import html

KINDS = {NO_RECOVERY: "None", "lora": "LoRA", "distillation": "Distillation"}
FORMATS = {"instructions": "Instructions", "chat": "Chat messages", "text": "Plain text"}
TARGETS = {"all-linear": "All linear layers", "attention": "Attention", "mlp": "MLP"}


def show(service: Service, says: Says) -> None:
    """Draw the step. Where nothing is cut, there is nothing to recover from."""
    if not recovers(st.session_state):
        st.html('<p class="esp-fact">Nothing is cut, so there is nothing to recover from.</p>')
        says.place("recovery")
        return
    lessons = {lesson.name: lesson for lesson in service.recovery.lessons()}
    kind = st.segmented_control(
        "Training after the cut",
        list(KINDS),
        format_func=KINDS.__getitem__,
        required=True,
        key="launch_recovery",
        persist_state="session",
        label_visibility="collapsed",
        help=describe("recovery"),
        on_change=recovery_changed,
        args=([name for name, lesson in lessons.items() if lesson.format == "instructions" and lesson.here],),
    )
    st.html(f'<p class="esp-fact">{html(sentence(str(kind), _instructive()))}</p>')
    says.place("recovery", "recovery.kind")
    if kind == NO_RECOVERY:
        return
    _data(lessons, says)
    _first(says)
    _more(recovery_fields(st.session_state), says)


def sentence(kind: str, instructive: bool) -> str:
    """What the kind of training does, and which is the usual one for the data."""
    if kind == NO_RECOVERY:
        return (
            "The cut model is judged as it is. Training brings part of what was lost back; without instruction data, "
            "distillation is the usual choice."
        )
    if kind == "lora":
        does = "Small matrices beside the frozen weights are trained and merged. The model is judged before and after."
        return does if instructive else f"{does} Without instruction data, distillation is the usual choice."
    return "The dense model teaches the cut one on the same text. The model is judged before and after."


def _instructive() -> bool:
    return bool(st.session_state["launch_recovery_format"] != "text")


def _data(lessons: Mapping[str, Any], says: Says) -> None:
    chosen = st.session_state["launch_recovery_data"]
    own = [] if chosen in lessons or chosen == FILE else [chosen]

    def title(name: str) -> str:
        if name == FILE:
            return "a local file"
        if name not in lessons:
            return name
        return str(lessons[name].title) + ("" if lessons[name].here else " (data hub)")

    st.selectbox(
        "Learns from",
        [*lessons, FILE, *own],
        format_func=title,
        accept_new_options=True,
        key="launch_recovery_data",
        persist_state="session",
        help=describe("recovery.data.corpus") + " The id of another hub set can be typed.",
        on_change=lesson_changed,
        args=({name: lesson.format for name, lesson in lessons.items()},),
    )
    if chosen == FILE:
        st.text_input(
            "Path of the file",
            key="launch_recovery_path",
            persist_state="session",
            help=describe("recovery.data.path"),
            placeholder="/data/rows.jsonl",
        )
    says.place("recovery.data", "recovery.data.path", "recovery.data.corpus")
    if chosen not in lessons:
        st.segmented_control(
            "Its format",
            list(FORMATS),
            format_func=FORMATS.__getitem__,
            required=True,
            key="launch_recovery_format",
            persist_state="session",
            help=describe("recovery.data.format"),
        )
    says.place("recovery.data.format")


def _first(says: Says) -> None:
    rate, epochs, minutes = st.columns(3)
    with rate:
        _number("learning_rate", "Learning rate", 0.0, 1.0, step=1e-4, format_="%g")
    with epochs:
        _number("epochs", "Epochs", 0.0, None, step=0.5, format_="%g")
    with minutes:
        _number("max_minutes", "At most, minutes", 0.0, None, step=1.0, format_="%g", empty="no limit")
    says.place("recovery.learning_rate", "recovery.epochs", "recovery.max_minutes")


def _more(fields: frozenset[str], says: Says) -> None:
    with st.expander("More about recovery", key="launch_fold_recovery"):
        if "full_weights" in fields:
            st.checkbox(
                "Train the cut layers themselves, without LoRA",
                key="launch_recovery_full_weights",
                persist_state="session",
                help=describe("recovery.full_weights"),
            )
            _row(
                fields,
                [("temperature", "Temperature", 0.01, None, 0.5), ("loss_mix", "Teacher's share", 0.0, 1.0, 0.1),
                 ("hidden_mix", "Hidden states", 0.0, None, 0.1)],
            )  # fmt: skip
            says.place("recovery.temperature", "recovery.loss_mix", "recovery.hidden_mix", "recovery.full_weights")
        st.segmented_control(
            "Trained in each layer",
            list(TARGETS),
            format_func=TARGETS.__getitem__,
            required=True,
            key="launch_recovery_target_modules",
            persist_state="session",
            help=describe("recovery.target_modules"),
        )
        _row(
            fields,
            [("rank", "LoRA rank", 1, 1024, 1), ("alpha", "LoRA alpha", 0.0, None, 1.0),
             ("dropout", "LoRA dropout", 0.0, 0.99, 0.01)],
        )  # fmt: skip
        says.place("recovery.target_modules", "recovery.rank", "recovery.alpha", "recovery.dropout")
        _row(
            fields,
            [("batch_size", "Batch, samples", 1, None, 1), ("micro_batch", "Micro-batch", 1, 65536, 1),
             ("warmup_steps", "Warm-up steps", 0, None, 1)],
            empty={"micro_batch": "auto"},
        )  # fmt: skip
        says.place("recovery.batch_size", "recovery.micro_batch", "recovery.warmup_steps")
        left, middle, right = st.columns(3)
        with left:
            _number("cutoff", "Sample, tokens", 8, None, step=1)
        with middle:
            _number("validation", "For validation", 0.0, 0.99, step=0.01, format_="%g")
        with right:
            _number("max_samples", "At most, samples", 1, None, step=1, empty="all", about="recovery.data.max_samples")
        says.place("recovery.cutoff", "recovery.validation", "recovery.data.max_samples")
        if st.session_state["launch_recovery_data"] == "generated":
            _number(
                "prompt_tokens",
                "Written text begins with, tokens of a passage",
                1,
                None,
                step=1,
                empty="128",
                about="recovery.data.prompt_tokens",
            )
            says.place("recovery.data.prompt_tokens")


def _row(
    fields: frozenset[str],
    widgets: list[tuple[str, str, Any, Any, Any]],
    empty: Mapping[str, str] | None = None,
) -> None:
    """Three numbers beside each other, those that apply."""
    shown = [widget for widget in widgets if widget[0] in fields]
    if not shown:
        return
    for column, (name, label, low, high, step) in zip(st.columns(3), shown, strict=False):
        with column:
            form = "%d" if isinstance(step, int) else "%g"
            _number(name, label, low, high, step=step, format_=form, empty=(empty or {}).get(name))


def _number(
    name: str, label: str, low: Any, high: Any, *, step: Any, format_: str = "%d", empty: str | None = None,
    about: str = "",
) -> None:  # fmt: skip
    st.number_input(
        label,
        low,
        high,
        value=None if empty is not None else "min",
        step=step,
        format=format_,
        placeholder=empty,
        key=f"launch_recovery_{name}",
        persist_state="session",
        help=describe(about or f"recovery.{name}"),
    )
