"""The left side of Launch: four short steps. Every widget's help is the description of its field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from core.errors import InputError, Problem
from core.experiment import describe
from core.service import Service
from pages._parts import launch_more, launch_state
from pages._parts.launch_build import short_title
from pages._parts.launch_says import Says
from pages._parts.launch_state import DENSE, FILE, LIMITS, method_changed
from pages._parts.theme import count, html

DOES = {"mask": "sets weights to zero", "width": "removes heads and channels", "depth": "removes layers"}
NO_METHOD = "No pruning: judge the dense model"


@dataclass(frozen=True)
class Form:
    """What the drawn form found out: the model's architecture (None if it cannot be had), and places for remarks."""

    architecture: Any | None
    methods: Mapping[str, Any]
    says: Says
    problems: list[Problem]


def show(service: Service) -> Form:
    """Draw the four steps."""
    says, methods = Says(), {method.name: method for method in service.methods()}
    architecture, problems = _model(service, says)
    _prune(service, methods, architecture, says)
    _recover(says)
    _evaluate(service, says)
    launch_more.run(says)
    return Form(architecture, methods, says, problems)


def step(number: int, title: str) -> None:
    """A step's heading."""
    st.html(f'<h2 class="esp-step"><i>{number}</i>{html(title)}</h2>')


def _model(service: Service, says: Says) -> tuple[Any | None, list[Problem]]:
    step(1, "Model")
    entries = {entry.name: entry for entry in service.catalogue()}
    chosen = st.session_state["launch_model"]
    options = list(dict.fromkeys([*entries, *([chosen] if chosen else [])]))
    name = st.selectbox(
        "Model",
        options,
        format_func=lambda key: entries[key].title if key in entries else str(key),
        accept_new_options=True,
        help=describe("model.name") + " Type a name that is not in the list.",
        key="launch_model",
        persist_state="session",
        label_visibility="collapsed",
        placeholder="Hub id (organisation/name) or the path of a folder",
    )
    architecture, problems = None, []
    try:
        if not name:
            raise InputError("No model is chosen.", "Choose one, or type a hub id or a folder.")
        architecture = service.architecture(name, trust=st.session_state["launch_trust"])
    except InputError as error:
        problems.append(Problem("model.name", error.message, error.advice))
    else:
        entry = entries.get(name)
        st.html(f'<p class="esp-fact">{_facts(architecture)}{f" · {html(entry.license)}" if entry else ""}</p>')
    says.place("model.name", "model")
    if name and name not in entries:
        st.checkbox(
            "Allow this model's own code",
            key="launch_trust",
            persist_state="session",
            help=describe("model.trust_remote_code"),
        )
        says.place("model.trust_remote_code")
    return architecture, problems


def _facts(architecture: Any) -> str:
    first = architecture.layers[0]
    sizes = f"{first.heads} heads in {first.kv_heads} KV groups · {first.mlp:,} channels"
    if not architecture.uniform:
        sizes = "sizes differ per layer"
    return f"{architecture.n_layers} layers · {sizes} · <b>{count(architecture.params)} parameters</b>"


def _prune(service: Service, methods: Mapping[str, Any], architecture: Any | None, says: Says) -> None:
    step(2, "Prune")
    chosen = _methods(methods)
    says.place("pruning.method", "pruning.options")
    if not any(chosen):
        return
    kinds = {method.kind for method in chosen if method}
    if "mask" in kinds:
        st.segmented_control(
            "Where zeros may stand",
            ["unstructured", "2:4", "4:8"],
            key="launch_pattern",
            persist_state="session",
            required=True,
            help=describe("pruning.pattern"),
        )
        says.place("pruning.pattern")
    _ratio(kinds)
    says.place("pruning.ratio")
    last = architecture.n_layers - 1 if architecture else 0
    if last > 0:
        launch_state.model_known(last)
        st.slider(
            "Layers, both ends included",
            0,
            last,
            key="launch_layers",
            persist_state="session",
            help=describe("pruning.layers"),
        )
    says.place("pruning.layers")
    launch_more.cut(service, chosen, kinds, says)


def _methods(methods: Mapping[str, Any]) -> list[Any]:
    """The chosen methods; None stands for no pruning."""
    kinds = {name: method.kind for name, method in methods.items()}

    def title(name: str) -> str:
        return f"{methods[name].title} · {DOES[methods[name].kind]}" if name in methods else NO_METHOD

    if st.session_state["launch_several_methods"]:
        names = st.multiselect(
            "Methods",
            list(methods),
            format_func=lambda name: short_title(methods[name]),
            key="launch_methods",
            persist_state="session",
            help=describe("pruning.method"),
        )
    else:
        names = [
            st.selectbox(
                "Method",
                [*methods, DENSE],
                format_func=title,
                key="launch_method",
                persist_state="session",
                on_change=method_changed,
                args=(kinds,),
                help=describe("pruning.method"),
            )
        ]
    if len(names) == 1 and names[0] in methods:
        method = methods[names[0]]
        st.html(
            f'<p class="esp-fact">{html(method.summary)} '
            f'<a href="{html(method.url)}" target="_blank">{html(method.paper)}</a></p>'
        )
    launch_more.options([methods[name] for name in names if name in methods])
    return [methods.get(name) for name in names]


def _ratio(kinds: set[str]) -> None:
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
            "Removed from the layers below",
            list(range(5, 95, 5)),
            format_func=lambda ratio: f"{ratio} %",
            key="launch_ratios",
            persist_state="session",
            help=describe("pruning.ratio"),
        )
    else:
        st.slider(
            "Removed from the layers below",
            1,
            95,
            format="%d %%",
            key="launch_ratio",
            persist_state="session",
            help=describe("pruning.ratio"),
        )
    with st.container(horizontal=True, gap="medium"):
        st.checkbox("Several ratios", key="launch_several_ratios", persist_state="session", disabled=fixed)
        st.checkbox("Several methods", key="launch_several_methods", persist_state="session")


def _recover(says: Says) -> None:
    step(3, "Recover")
    st.segmented_control(
        "Training after the cut",
        ["None", "LoRA", "Distillation"],
        default="None",
        disabled=True,
        key="launch_recovery",
        persist_state="session",
        label_visibility="collapsed",
    )
    st.html('<p class="esp-fact">The cut model is judged as it is. LoRA and distillation come in a later version.</p>')
    says.place("recovery")


def _evaluate(service: Service, says: Says) -> None:
    step(4, "Evaluate")
    corpora = {corpus.name: corpus for corpus in service.corpora()}
    st.multiselect(
        "Perplexity on",
        [*corpora, FILE],
        format_func=lambda name: "a text file" if name == FILE else name,
        key="launch_perplexity",
        persist_state="session",
        help=describe("evaluation.perplexity"),
    )
    if FILE in st.session_state["launch_perplexity"]:
        st.text_input(
            "Path of the text",
            key="launch_perplexity_path",
            persist_state="session",
            help=describe("evaluation.perplexity.path"),
        )
    says.place("evaluation.perplexity")
    offline = [task.name for task in service.tasks() if task.offline]  # the others are thousands: typed, not listed
    st.multiselect(
        "Tasks",
        list(dict.fromkeys([*offline, *st.session_state["launch_tasks"]])),
        accept_new_options=True,
        key="launch_tasks",
        persist_state="session",
        help=describe("evaluation.tasks") + " Type the name of any other; its data comes from a hub.",
        wrap=True,
        placeholder="No tasks: perplexity alone",
    )
    says.place("evaluation.tasks")
    if st.session_state["launch_tasks"]:
        limit = st.select_slider(
            "Documents of each task",
            LIMITS,
            format_func=lambda n: "all" if n is None else f"{n:,}",
            key="launch_limit",
            persist_state="session",
            help=describe("evaluation.limit"),
        )
        st.html(f'<p class="esp-fact">{_certainty(limit)}</p>')
        says.place("evaluation.limit")
    launch_more.evaluation(says)


def _certainty(limit: int | None) -> str:
    if limit is None:
        return "Whole test sets: scores are good to about ±1 to ±4 points (95 %), by the size of the task."
    return f"{limit:,} documents: scores are good to about ±{196 * (0.25 / limit) ** 0.5:.0f} points (95 %)."
