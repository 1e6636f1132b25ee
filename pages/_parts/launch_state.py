"""What the Launch form holds: its keys, where they start, and what the doors fill in. No widgets here."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.experiment import ALLOCATIONS, BUILTIN_MODEL, SEVEN_TASKS, Experiment, Recovery
from core.service import Service

DENSE = ""  # the method that is none: judge the model as it is
NONE = "none"  # its kind
QUANTISED = ("q8_0", "q4_0")  # in place of a method: the dense model, its weights rounded to that format
FILE = "file"  # the corpus that is a path
KEPT = "launch_kept"
CUTS = ("width", "depth", "hidden", "mask")  # kinds of method, in the order in which they are offered
START_METHOD = {"width": "taylor", "depth": "block_influence", "hidden": "hidden", "mask": "wanda", NONE: DENSE}
START_RATIO = {"width": 35, "depth": 20, "hidden": 20, "mask": 50}
MIDDLE = (4, 25)  # of SmolLM2's 30 layers: first and last ones are the dearest to lose
LIMITS = (20, 50, 100, 200, 500, 1000, None)
KEEPS = (95, 90, 85, 80, 75, 70, 65, 60, 55, 50)  # per cent of the model, on the first door
OPTION = "launch_option_"  # keys of the methods' own options begin so
NO_RECOVERY = "none"
RECOVERY: dict[str, Any] = {  # fields of `recovery` that are numbers and choices, with their defaults; auto is empty
    name: None if info.default == "auto" else info.default
    for name, info in Recovery.model_fields.items()
    if name not in ("kind", "data")
}
RECOVERY |= {name: float(RECOVERY[name]) for name in ("alpha", "epochs")}
CALIBRATION = ("corpus", "path", "split", "samples", "length", "seed")

DEFAULTS: dict[str, Any] = {
    "launch_model": BUILTIN_MODEL,
    "launch_trust": False,
    "launch_dtype": "auto",
    "launch_keep": 80,
    "launch_stock": False,
    "launch_kind": "width",
    "launch_method": "taylor",
    "launch_methods_width": ["taylor", "random"],
    "launch_methods_depth": [],
    "launch_methods_hidden": [],
    "launch_methods_mask": [],
    "launch_quantised": [],
    "launch_several_methods": False,
    "launch_ratio": START_RATIO["width"],
    "launch_ratios": [20, 40, 60],
    "launch_several_ratios": False,
    "launch_target": "selected",
    "launch_layers": MIDDLE,
    "launch_parts": ["attention", "mlp"],
    "launch_heads": "kv_groups",
    "launch_round_to": 32,
    "launch_same_sizes": False,
    "launch_allocation_width": "uniform",
    "launch_allocation_mask": "uniform",
    "launch_reconstruct": False,
    "launch_pattern": "unstructured",
    "launch_options": {},
    "launch_calibration_corpus": "passages",
    "launch_calibration_path": "",
    "launch_calibration_split": "train",
    "launch_calibration_samples": 32,
    "launch_calibration_length": 512,
    "launch_calibration_seed": None,
    "launch_recovery": NO_RECOVERY,
    "launch_recovery_data": "passages",
    "launch_recovery_path": "",
    "launch_recovery_format": "text",
    "launch_recovery_max_samples": None,
    "launch_recovery_prompt_tokens": None,
    **{f"launch_recovery_{name}": value for name, value in RECOVERY.items()},
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

SMALLER = "smaller"
DOORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    SMALLER: (
        "Smaller and faster",
        "The best recipe for a model that is really smaller, at a size of your choice.",
        {},  # what core/presets.py says
    ),
    "compare": (
        "Compare methods",
        "Four criteria, the same cut: random, L1, L2 and Taylor, each against the dense model.",
        {
            "launch_several_methods": True,
            "launch_methods_width": ["random", "l1", "l2", "taylor"],
            "launch_ratio": 35,
            "launch_save_model": False,
        },
    ),
    "answer": (
        "See it answer",
        "A light cut, a quick check, then Chat: the pruned model beside the original.",
        {
            "launch_method": "taylor",
            "launch_ratio": 20,
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
    fill({"launch_layers": middle(last_layer), **DOORS[name][2]})


def open_smaller(service: Service, last_layer: int) -> None:
    """Fill the form with the best known recipe for the size that stands on the first door."""
    keep_share = st.session_state["launch_keep"] / 100
    recipe = service.smaller_and_faster(keep_share, st.session_state["launch_stock"])
    fill({**from_pruning(recipe, last_layer), "launch_save_model": True})


def fill(changes: Mapping[str, Any]) -> None:
    """Set the form: `changes`, and the default of everything else but the model, the device and the door's size."""
    kept = st.session_state[KEPT]
    staying = (
        "launch_model",
        "launch_trust",
        "launch_dtype",
        "launch_device",
        "launch_limit",
        "launch_keep",
        "launch_stock",
    )
    for key in [key for key in st.session_state if str(key).startswith(OPTION)]:
        del st.session_state[key]  # drawn anew from launch_options
    for key, value in {**DEFAULTS, **{key: kept[key] for key in staying if key in kept}, **changes}.items():
        if key in changes or key not in staying:
            st.session_state[key] = value
            kept[key] = value


def from_pruning(pruning: Mapping[str, Any], last_layer: int) -> dict[str, Any]:
    """What the form holds for a `pruning` section: the inverse of `launch_build`, for what the section says."""
    method, allocation = pruning["method"], pruning.get("allocation", "uniform")
    found: dict[str, Any] = {
        "launch_method": method,
        "launch_layers": tuple(pruning.get("layers") or (0, last_layer)),
        "launch_options": {method: dict(pruning.get("options", {}))},
        "launch_allocation_width": allocation if allocation in ALLOCATIONS["width"] else "uniform",
        "launch_allocation_mask": allocation if allocation in ALLOCATIONS["mask"] else "uniform",
    }
    if "ratio" in pruning:
        found["launch_ratio"] = round(100 * pruning["ratio"])
    for name in ("target", "parts", "heads", "round_to", "pattern", "same_sizes", "reconstruct"):
        if name in pruning:
            found[f"launch_{name}"] = list(pruning[name]) if name == "parts" else pruning[name]
    text = pruning.get("calibration", {})
    found |= {f"launch_calibration_{name}": text[name] for name in CALIBRATION if name in text}
    return found | ({"launch_calibration_corpus": FILE} if text.get("path") else {})


def from_recovery(recovery: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the form holds for a `recovery` section, or for None: the inverse of `launch_build.recovery`."""
    if recovery is None:
        return {"launch_recovery": NO_RECOVERY}
    data = recovery.get("data") or {}
    found: dict[str, Any] = {
        "launch_recovery": recovery["kind"],
        "launch_recovery_data": FILE if data.get("path") else data.get("corpus") or "passages",
        "launch_recovery_path": data.get("path") or "",
        "launch_recovery_format": data.get("format") or "text",
        "launch_recovery_max_samples": data.get("max_samples"),
        "launch_recovery_prompt_tokens": data.get("prompt_tokens"),
    }
    for name, default in RECOVERY.items():
        value = recovery.get(name, default)
        value = None if value == "auto" else value
        found[f"launch_recovery_{name}"] = float(value) if isinstance(default, float) and value is not None else value
    if found["launch_recovery_max_minutes"] is not None:
        found["launch_recovery_max_minutes"] = float(found["launch_recovery_max_minutes"])
    return found


def recovers(values: Mapping[Any, Any]) -> bool:
    """Whether anything is cut, so that there is something to recover from."""
    return any(name not in (DENSE, *QUANTISED) for name in chosen_names(values))


def recovery_changed(instructions: list[str]) -> None:
    """LoRA begins with instruction data where there are any on this machine; distillation with plain text."""
    wanted = st.session_state["launch_recovery"]
    if wanted == NO_RECOVERY or st.session_state["launch_recovery_data"] not in ("passages", *instructions):
        return
    with_answers = wanted == "lora" and instructions
    st.session_state["launch_recovery_data"] = instructions[0] if with_answers else "passages"
    st.session_state["launch_recovery_format"] = "instructions" if with_answers else "text"


def lesson_changed(formats: Mapping[str, str]) -> None:
    """Named data bring their format; those of a file or a hub set are instructions, until somebody says otherwise."""
    chosen = st.session_state["launch_recovery_data"] or "passages"
    st.session_state["launch_recovery_data"] = chosen
    st.session_state["launch_recovery_format"] = formats.get(chosen, "instructions")


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


def kind_changed(methods: Mapping[str, str]) -> None:
    """Another kind of cut begins with its usual method and ratio. `methods`: name → kind."""
    kind = st.session_state["launch_kind"]
    of_kind = [name for name, its in methods.items() if its == kind]
    usual = START_METHOD.get(kind, DENSE)
    st.session_state["launch_method"] = usual if usual in of_kind or not of_kind else of_kind[0]
    if kind in START_RATIO:
        st.session_state["launch_ratio"] = START_RATIO[kind]


def chosen_names(values: Mapping[str, Any]) -> list[str]:
    """Names of the chosen methods; DENSE stands for no pruning, and one of QUANTISED for that, rounded."""
    if values["launch_several_methods"]:
        return [*(name for kind in CUTS for name in values[f"launch_methods_{kind}"]), *values["launch_quantised"]]
    if values["launch_method"] == DENSE and values["launch_quantised"]:
        return list(values["launch_quantised"])
    return [values["launch_method"]]
