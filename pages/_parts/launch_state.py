"""What the Launch form holds: its keys, where they start, and what the doors fill in. No widgets here."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.experiment import BUILTIN_MODEL, SEVEN_TASKS, Experiment
from core.service import Service

DENSE = ""  # the method that is none: judge the model as it is
FILE = "file"  # the corpus that is a path
KEPT = "launch_kept"
START_RATIO = {"mask": 50, "width": 35, "depth": 20}
MIDDLE = (4, 25)  # of SmolLM2's 30 layers: first and last ones are the dearest to lose
LIMITS = (20, 50, 100, 200, 500, 1000, None)

DEFAULTS: dict[str, Any] = {
    "launch_model": BUILTIN_MODEL,
    "launch_trust": False,
    "launch_dtype": "auto",
    "launch_method": "taylor",
    "launch_methods": ["taylor", "random"],
    "launch_several_methods": False,
    "launch_ratio": START_RATIO["width"],
    "launch_ratios": [20, 40, 60],
    "launch_several_ratios": False,
    "launch_layers": MIDDLE,
    "launch_parts": ["attention", "mlp"],
    "launch_heads": "kv_groups",
    "launch_round_to": 32,
    "launch_same_sizes": False,
    "launch_pattern": "unstructured",
    "launch_options": {},
    "launch_calibration_corpus": "passages",
    "launch_calibration_path": "",
    "launch_calibration_split": "train",
    "launch_calibration_samples": 32,
    "launch_calibration_length": 512,
    "launch_calibration_seed": None,
    "launch_perplexity": ["passages"],
    "launch_perplexity_path": "",
    "launch_perplexity_window": 512,
    "launch_perplexity_max_tokens": None,
    "launch_perplexity_bos": False,
    "launch_tasks": list(SEVEN_TASKS),
    "launch_limit": 100,
    "launch_shots": 0,
    "launch_chat_template": False,
    "launch_fidelity": True,
    "launch_speed": True,
    "launch_baseline": True,
    "launch_name": "",
    "launch_seed": 0,
    "launch_device": "auto",
    "launch_save_model": True,
}

DOORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "smaller": (
        "Smaller and faster",
        "Taylor takes a third of the heads and channels of the middle layers; the model on disk shrinks.",
        {"launch_method": "taylor", "launch_ratio": 35, "launch_layers": MIDDLE, "launch_save_model": True},
    ),
    "compare": (
        "Compare methods",
        "Four criteria, the same cut: random, L1, L2 and Taylor, each against the dense model.",
        {
            "launch_several_methods": True,
            "launch_methods": ["random", "l1", "l2", "taylor"],
            "launch_ratio": 35,
            "launch_layers": MIDDLE,
            "launch_save_model": False,
        },
    ),
    "answer": (
        "See it answer",
        "A light cut, a quick check, then Chat: the pruned model beside the original.",
        {
            "launch_method": "taylor",
            "launch_ratio": 20,
            "launch_layers": MIDDLE,
            "launch_tasks": [],
            "launch_speed": False,
            "launch_save_model": True,
        },
    ),
}


def start(service: Service) -> None:
    """Give every key its value: what this visitor left, or the default. Widgets that are hidden keep theirs so."""
    if KEPT not in st.session_state:
        on_cpu = service.preview(Experiment()).device.startswith("cpu")
        st.session_state[KEPT] = {**DEFAULTS, "launch_limit": 100 if on_cpu else None}
    for key, value in st.session_state[KEPT].items():
        if key not in st.session_state:
            st.session_state[key] = value


def keep() -> Mapping[str, Any]:
    """Remember every value for the next page visit, and return them."""
    kept: dict[str, Any] = st.session_state[KEPT]
    for key in DEFAULTS:
        if key in st.session_state:
            kept[key] = st.session_state[key]
    return kept


def open_door(name: str, last_layer: int) -> None:
    """Fill the form with a door's values, everything else with its default; the model stays as it is chosen."""
    kept = st.session_state[KEPT]
    staying = ("launch_model", "launch_trust", "launch_dtype", "launch_device", "launch_limit")
    values = {**DEFAULTS, **{key: kept[key] for key in staying}, **DOORS[name][2]}
    values["launch_layers"] = middle(last_layer)
    for key, value in values.items():
        st.session_state[key] = value
        kept[key] = value


def middle(last_layer: int) -> tuple[int, int]:
    """The same share of another model's layers."""
    first, last = MIDDLE
    return (first, last) if last_layer == 29 else (round(first * last_layer / 29), round(last * last_layer / 29))


def model_known(last_layer: int) -> None:
    """A model with another number of layers starts at its own middle."""
    kept = st.session_state[KEPT]
    if kept.get("launch_last_layer", 29) != last_layer:
        st.session_state["launch_layers"] = middle(last_layer)
    kept["launch_last_layer"] = last_layer


def method_changed(kinds: Mapping[str, str]) -> None:
    """A method of another kind starts at a ratio that is usual for it."""
    kind = kinds.get(st.session_state["launch_method"])
    if kind and kind != kinds.get(st.session_state[KEPT]["launch_method"]):
        st.session_state["launch_ratio"] = START_RATIO[kind]
