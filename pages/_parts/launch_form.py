"""The left side of Launch: four short steps. Every widget's help is the description of its field."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from core.errors import InputError, Problem
from core.experiment import describe
from core.service import Service
from pages._parts import launch_cut, launch_more, launch_recover, launch_tasks
from pages._parts.launch_says import Says
from pages._parts.launch_state import FILE, LIMITS
from pages._parts.theme import count, html


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
    step(2, "Prune")
    launch_cut.show(service, methods, architecture, says)
    step(3, "Recover")
    launch_recover.show(service, says)
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
    launch_tasks.show(service, says)
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
