"""The methods' own options, drawn from their pydantic types: choices, numbers and switches, with their descriptions."""

import math
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import streamlit as st

from pages._parts.launch_build import short_title
from pages._parts.launch_state import OPTION


def show(methods: Sequence[Any]) -> None:
    """Widgets for the options of each method; their values go into `launch_options`."""
    kept: dict[str, dict[str, Any]] = dict(st.session_state["launch_options"])
    for method in methods:
        values = dict(kept.get(method.name, {}))
        for name, field in method.options.model_fields.items():
            value = values.get(name, field.get_default(call_default_factory=True))
            label = name.replace("_", " ").capitalize()
            if len(methods) > 1:
                label = f"{short_title(method)}: {label.lower()}"
            values[name] = _option(field, label, value, f"{OPTION}{method.name}_{name}")
        kept[method.name] = values
    st.session_state["launch_options"] = kept


def _option(field: Any, label: str, value: Any, key: str) -> Any:
    if key not in st.session_state:
        st.session_state[key] = value
    kind, empty = _kind(field.annotation)
    text = field.description
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if empty or len(choices) > 6:
            return st.selectbox(
                label, [*([None] if empty else []), *choices], format_func=_word, key=key, persist_state="session",
                help=text,
            )  # fmt: skip
        return st.segmented_control(
            label, choices, format_func=_word, key=key, persist_state="session", required=True, help=text
        )
    if kind is bool:
        return st.checkbox(label, key=key, persist_state="session", help=text)
    if kind in (int, float):
        low, high, step = _limits(field, kind)
        return st.number_input(
            label, low, high, key=key, persist_state="session", help=text, step=step, width=260,
            format="%d" if kind is int else "%g", placeholder="none" if empty else None,
        )  # fmt: skip
    return st.text_input(label, key=key, persist_state="session", help=text)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of an option, and whether it may be left empty."""
    if get_origin(annotation) in (Union, UnionType):
        inner = [each for each in get_args(annotation) if each is not type(None)]
        if len(inner) == 1 and len(inner) < len(get_args(annotation)):
            return inner[0], True
    return annotation, False


def _word(choice: object) -> str:
    return "none" if choice is None else str(choice).replace("_", " ")


def _limits(field: Any, kind: type) -> tuple[Any, Any, Any]:
    """Lowest and highest value as the type says, and a step. A bound that is itself excluded is refused in words."""
    found: dict[str, float] = {}
    for rule in field.metadata:
        for name in ("ge", "gt", "le", "lt", "multiple_of"):
            if getattr(rule, name, None) is not None:
                found[name] = kind(getattr(rule, name))
    low, high = found.get("ge", found.get("gt")), found.get("le", found.get("lt"))
    if kind is int:
        low = found["gt"] + 1 if "gt" in found and "ge" not in found else low
        high = found["lt"] - 1 if "lt" in found and "le" not in found else high
        return low, high, found.get("multiple_of", 1)
    default = abs(float(field.default)) if isinstance(field.default, int | float) and field.default else 0.1
    return low, high, 10.0 ** (math.ceil(math.log10(default)) - 1)
