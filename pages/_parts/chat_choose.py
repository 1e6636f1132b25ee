"""Chat's choices: the model of each column, how answers are made, and the conversation that belongs to them."""

from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from core.errors import EspalierError
from core.espalier import Branch, branches_of_rows, dense_branches
from core.service import ChatModel, Service
from pages._parts import theme

if TYPE_CHECKING:
    from core.chat.conversation import Conversation

SIDES = ("chat_left", "chat_right")
KEPT = "chat_conversation"


def settings() -> dict[str, Any]:
    """How answers are made, as fields of the protocol's Sampling."""
    with st.popover("Answers", icon=":material/tune:"):
        length = st.number_input(
            "Longest answer, in tokens", 1, 4096, 256, step=64, key="chat_max_tokens", persist_state="session"
        )
        temperature = st.slider(
            "Temperature",
            0.0,
            2.0,
            0.0,
            0.1,
            key="chat_temperature",
            persist_state="session",
            help="0: always the likeliest token, so that the same prompt gets the same answer. Above: drawn by chance, "
            "with the same random numbers on both sides.",
        )
    return {"max_tokens": int(length), "temperature": float(temperature)}


def sides(service: Service) -> list[tuple[str, str]]:
    """Draw both columns' heads; the chosen models as (key, title), left first."""
    models = {model.key: model for model in service.chat_models()}
    labels = _labels(models)
    dense = [key for key, model in models.items() if model.run_id is None]
    saved = [key for key, model in models.items() if model.run_id is not None]
    wanted = st.query_params.get("model")  # a link from a run
    if wanted is not None:
        st.session_state[SIDES[1]] = wanted
        del st.query_params["model"]
    chosen = []
    for place, column, defaults in zip(SIDES, st.columns(2, gap="large"), (dense, saved), strict=True):
        with column:
            key = _pick(place, labels, defaults)
            if key is None:
                _nothing()
            elif (title := _head(service, models.get(key), key, place)) is not None:
                chosen.append((key, labels.get(key, title)))
    return chosen


def _labels(models: dict[str, ChatModel]) -> dict[str, str]:
    """A name for each key; runs that share theirs are told apart by their ids."""
    titles = [model.title for model in models.values()]
    return {k: m.title if titles.count(m.title) == 1 else f"{m.title} ({m.run_id or k})" for k, m in models.items()}


def _pick(place: str, labels: dict[str, str], defaults: list[str]) -> str | None:
    if defaults:
        st.session_state.setdefault(place, defaults[0])
    held = st.session_state.get(place)
    options = list(labels) if held is None or held in labels else [*labels, held]
    picked = st.selectbox(
        "Left" if place == SIDES[0] else "Right",
        options,
        index=None,
        format_func=lambda key: labels.get(key, key),
        key=place,
        persist_state="session",
        accept_new_options=True,
        placeholder="Choose a model, or type a folder",
        label_visibility="collapsed",
    )
    return str(picked).strip() if picked else None


def _nothing() -> None:
    st.html('<p class="esp-fact esp-chat-fact">No pruned model is saved yet.</p>')
    st.page_link("launch.py", label="Prune a model", icon=":material/content_cut:")


def _head(service: Service, model: ChatModel | None, key: str, place: str) -> str | None:
    """Size and figure of one side; its title, or None with the reason shown where it cannot be had."""
    try:
        branches, params = _branches(service, model, key)
        title = model.title if model else service.chat_client().source(key).title
    except EspalierError as error:
        st.html(theme.note(str(error), level="error"))
        return None
    size = f" · {theme.size(model.bytes)}" if model else ""
    with st.container(key=f"chat_head_{place}", horizontal=True, vertical_alignment="center"):
        if branches:
            theme.figure(branches, scale="small")
        st.html(f'<p class="esp-fact esp-chat-fact"><b>{theme.count(params)}</b> parameters{size}</p>')
    return title


def _branches(service: Service, model: ChatModel | None, key: str) -> tuple[list[Branch], int]:
    if model is not None and model.run_id is not None:
        layers: pd.DataFrame = service.layers([model.run_id])
        return branches_of_rows(layers.to_dict("records")), model.params  # type: ignore[arg-type]
    name = model.choice.name if model is not None and model.choice is not None else key
    architecture = service.architecture(name)
    sizes = [(layer.heads, layer.kv_heads, layer.mlp) for layer in architecture.layers]
    return dense_branches(sizes), architecture.params


def conversation(service: Service, chosen: list[tuple[str, str]], sampling: dict[str, Any]) -> "Conversation":
    """This session's conversation with the chosen models; other models begin another."""
    held: Conversation | None = st.session_state.get(KEPT)
    if held is None or [source.key for source in held.sources] != [key for key, _ in chosen]:
        held = st.session_state[KEPT] = service.chat_client().conversation(chosen)
    held.sampling = held.sampling.model_copy(update=sampling)
    return held


def forget() -> None:
    """Begin a new conversation."""
    st.session_state.pop(KEPT, None)
