"""Launch filled in with what a run was: a copy to edit. What the form cannot hold is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.errors import EspalierError
from core.experiment import Experiment
from core.service import Service
from pages._parts.launch_build import experiments
from pages._parts.launch_scan import LAYERS
from pages._parts.launch_state import DEFAULTS, DENSE, FILE, KEPT, NONE, fill, from_pruning, from_recovery, keep
from pages._parts.theme import note

WANTED = "launch_copy"  # the run's id, set by whoever sends people here
_SAID = "launch_copy_said"
_NOT_WHAT = ("name", "save_model")


def take(service: Service) -> None:
    """Fill the form, if a run was sent here; say, as long as the form holds a copy, whose it is."""
    run_id, chosen = st.session_state.pop(WANTED, None), st.session_state.pop(LAYERS, None)
    if run_id is not None:
        try:
            experiment = service.experiment_to_run(run_id)
            scanned = experiment.scan is not None
            if scanned:
                experiment = service.anatomy.run_of(experiment, chosen)
            layers = service.architecture(experiment.model.name, experiment.model.trust_remote_code).n_layers
        except EspalierError as error:
            st.session_state[_SAID] = ("error", str(error))
        else:
            kinds = {method.name: method.kind for method in service.methods()}
            given = from_experiment(experiment, kinds, layers - 1)
            if scanned:
                given["launch_limit"] = st.session_state[KEPT]["launch_limit"]
            fill({**{key: value for key, value in DEFAULTS.items() if key != "launch_keep"}, **given})
            st.session_state[KEPT]["launch_last_layer"] = layers - 1
            st.session_state[_SAID] = _of_scan(chosen) if scanned else _said(service, experiment, layers)
    if _SAID in st.session_state:
        level, text = st.session_state[_SAID]
        with st.container(horizontal=True, vertical_alignment="center", key="launch_copied"):
            st.html(note(text, level=level))
            st.button("Dismiss", key="launch_copied_away", type="tertiary", on_click=_dismiss)


def _of_scan(chosen: tuple[int, int] | None) -> tuple[str, str]:
    """Where the range comes from."""
    which = f"layers {chosen[0]}–{chosen[1]}" if chosen else "all layers"
    return "info", f"From the scan: its method and ratio, {which}. Check the rest, then queue it."


def _dismiss() -> None:
    st.session_state.pop(_SAID, None)


def from_experiment(experiment: Experiment, kinds: Mapping[str, str], last_layer: int) -> dict[str, Any]:
    """What the form holds for an experiment."""
    data = experiment.to_dict()
    model, pruning, evaluation = data["model"], data.get("pruning"), data["evaluation"]
    quantised = model.get("quantised")
    found: dict[str, Any] = {
        "launch_model": model["name"],
        "launch_trust": model["trust_remote_code"],
        "launch_dtype": model["dtype"],
        "launch_name": data.get("name") or "",
        "launch_seed": data["seed"],
        "launch_device": data["device"],
        "launch_save_model": data["save_model"],
        "launch_baseline": False,
        **from_recovery(data.get("recovery")),
    }
    if pruning is None:
        found |= {"launch_kind": NONE, "launch_method": DENSE, "launch_quantised": [quantised] if quantised else []}
    else:
        found |= {"launch_kind": kinds[pruning["method"]], **from_pruning(pruning, last_layer)}
    texts = evaluation["perplexity"]
    found["launch_perplexity"] = [FILE if text.get("path") else text["corpus"] for text in texts]
    for text in texts[:1]:
        found |= {f"launch_perplexity_{name}": text.get(name) for name in ("window", "max_tokens", "bos")}
    found["launch_perplexity_path"] = next((text["path"] for text in texts if text.get("path")), "")
    for name in ("tasks", "limit", "shots", "chat_template", "fidelity", "speed"):
        found[f"launch_{name}"] = evaluation[name]
    found["launch_perplexity"] = list(dict.fromkeys(found["launch_perplexity"]))
    return found


def _said(service: Service, experiment: Experiment, layers: int) -> tuple[str, str]:
    """Whose copy it is; as a warning where the form says something else than the run."""
    methods = {method.name: method for method in service.methods()}
    try:
        (made,) = experiments(keep(), methods, layers)
    except (EspalierError, ValueError) as error:
        return "warning", f"The form cannot hold all of {experiment.name or 'this run'}: {error}"
    lost = lost_fields(experiment, made)
    name = experiment.name or "the run"
    if lost:
        return "warning", f"A copy of {name}. The form cannot hold all of it, look at: {', '.join(lost[:6])}."
    return "info", f"A copy of {name}: change what should differ, then queue it."


def lost_fields(experiment: Experiment, made: Experiment) -> list[str]:
    """Dotted fields in which the form's experiment does something else; the dense model has no fidelity to itself."""
    fields = _differing(experiment.to_dict(), made.to_dict())
    return [field for field in fields if not (made.dense and field == "evaluation.fidelity")]


def _differing(mine: Any, other: Any, place: str = "") -> list[str]:
    """Dotted fields in which two experiments differ in what they do."""
    if isinstance(mine, Mapping) and isinstance(other, Mapping):
        names = [name for name in {**mine, **other} if place or name not in _NOT_WHAT]
        inside = [_differing(mine.get(name), other.get(name), f"{place}.{name}".strip(".")) for name in names]
        return [field for fields in inside for field in fields]
    same = (
        list(mine) == list(other)
        if isinstance(mine, list | tuple) and isinstance(other, list | tuple)
        else mine == other
    )
    return [] if same else [place]
