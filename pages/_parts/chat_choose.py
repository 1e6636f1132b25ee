"""Chat's choices: the model of each column, and the conversation that belongs to them."""

from typing import TYPE_CHECKING, Literal

import pandas as pd
import streamlit as st

from core.errors import EspalierError
from core.espalier import Branch, branches_of_rows, dense_branches
from core.service import ChatModel, Service
from pages._parts import theme
from pages._parts.chat_settings import Settings

if TYPE_CHECKING:
    from core.chat.conversation import Conversation

SIDES = ("chat_left", "chat_right", "chat_third", "chat_fourth")
COUNT = "chat_count"
KEPT = "chat_conversation"
_NAMES = ("Left", "Right", "Third", "Fourth")


def sides(service: Service, *, compact: bool, bare: bool = False) -> list[tuple[str, str]]:
    """Draw the columns' heads; the chosen models as (key, title), left first.

    Compact: the choice folds away, its names beside it; bare: without these.
    """
    models = {model.key: model for model in service.chat_models()}
    labels = _labels(models)
    _link(models)
    places = SIDES[: st.session_state.setdefault(COUNT, 2)]
    _defaults(places, models)
    if compact:
        width: Literal["content", "stretch"] = "content" if bare else "stretch"
        with st.container(key="chat_models", horizontal=True, vertical_alignment="center", width=width):
            with st.popover(f"{len(places)} models", icon=":material/view_column:", key="chat_choice"):
                picked = [_pick(place, labels) for place in places]
                _more(len(places))
            names = " · ".join(labels.get(key, key) for key in picked if key)
            if not bare:
                st.html(f'<p class="esp-fact esp-chat-names">{theme.html(names)}</p>')
        found = [_checked(service, models.get(key), key, labels) for key in picked if key]
        return [each for each in found if each is not None]
    chosen = []
    for place, column in zip(places, st.columns(len(places), gap="large"), strict=True):
        with column:
            key = _pick(place, labels)
            if key is None:
                _nothing(place)
            elif (title := _head(service, models.get(key), key, place)) is not None:
                chosen.append((key, labels.get(key, title)))
    _more(len(places))
    return chosen


def _link(models: dict[str, ChatModel]) -> None:
    wanted = st.query_params.get("model")  # a link from a run
    if wanted is not None:
        dense = wanted in models and models[wanted].run_id is None
        st.session_state[SIDES[0] if dense else SIDES[1]] = wanted
        del st.query_params["model"]


def _labels(models: dict[str, ChatModel]) -> dict[str, str]:
    """A name for each key; runs that share theirs are told apart by their ids."""
    titles = [model.title for model in models.values()]
    return {k: m.title if titles.count(m.title) == 1 else f"{m.title} ({m.run_id or k})" for k, m in models.items()}


def _defaults(places: tuple[str, ...], models: dict[str, ChatModel]) -> None:
    """The dense model first, then saved runs, newest first, none of them twice."""
    dense = [key for key, model in models.items() if model.run_id is None]
    saved = [key for key, model in models.items() if model.run_id is not None]
    for place in places:
        if place not in st.session_state:
            taken = {st.session_state.get(other) for other in places}
            free = [key for key in (dense if place == SIDES[0] else saved) if key not in taken]
            if free:
                st.session_state[place] = free[0]


def _pick(place: str, labels: dict[str, str]) -> str | None:
    held = st.session_state.get(place)
    options = list(labels) if held is None or held in labels else [*labels, held]
    picked = st.selectbox(
        _NAMES[SIDES.index(place)],
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


def _more(count: int) -> None:
    """Up to four sides."""
    with st.container(key="chat_more", horizontal=True):
        st.button(
            "Add a model", key="chat_add", icon=":material/add:", type="tertiary", disabled=count == len(SIDES),
            on_click=resize, args=(count + 1,),
        )  # fmt: skip
        if count > 2:
            st.button(
                "Remove the last", key="chat_remove", icon=":material/remove:", type="tertiary", on_click=resize,
                args=(count - 1,),
            )  # fmt: skip


def resize(count: int) -> None:
    """So many sides from now on."""
    st.session_state[COUNT] = count


def put(keys: list[str]) -> None:
    """These models, left first, from now on; takes effect with the next run of the page."""
    resize(max(len(keys), 2))
    for place, key in zip(SIDES, keys, strict=False):
        st.session_state[place] = key


def _nothing(place: str) -> None:
    if place == SIDES[1]:
        st.html('<p class="esp-fact esp-chat-fact">No pruned model is saved yet.</p>')
        st.page_link("launch.py", label="Prune a model", icon=":material/content_cut:")
    else:
        st.html('<p class="esp-fact esp-chat-fact">No model is chosen.</p>')


def _checked(service: Service, model: ChatModel | None, key: str, labels: dict[str, str]) -> tuple[str, str] | None:
    """A chosen model without its head; None, with the reason shown, where it cannot be had."""
    if model is not None:
        return key, labels[key]
    try:
        service.architecture(key)
        return key, service.chat_client().source(key).title
    except EspalierError as error:
        st.html(theme.note(str(error), level="error"))
        return None


def _head(service: Service, model: ChatModel | None, key: str, place: str) -> str | None:
    """Size and figure of one side; its title, or None with the reason shown where it cannot be had."""
    try:
        branches, params = _branches(service, model, key)
        title = model.title if model else service.chat_client().source(key).title
    except EspalierError as error:
        st.html(theme.note(str(error), level="error"))
        return None
    stored = model.bytes if model else service.talks.file_bytes(key)
    rounded = _rounded(model)
    size = f"{theme.size(stored)}{' on disk' if rounded else ''}" if stored else "size of its files not known"
    with st.container(key=f"chat_head_{place}", horizontal=True, vertical_alignment="center"):
        if branches:
            theme.figure(branches, scale="small")
        st.html(f'<p class="esp-fact esp-chat-fact"><b>{theme.count(params)}</b> parameters{rounded} · {size}</p>')
    return title


def facts(service: Service) -> dict[str, str]:
    """Parameters and file size of each known model, in words, by key."""
    return {
        model.key: f"{theme.count(model.params)}{_rounded(model)} · {theme.size(model.bytes)}"
        for model in service.chat_models()
    }


def _rounded(model: ChatModel | None) -> str:
    """That a model's weights are rounded, and to what; '' for all others."""
    to = model.choice.quantised if model is not None and model.choice is not None else None
    return f", rounded to {to.upper()}" if to else ""


def _branches(service: Service, model: ChatModel | None, key: str) -> tuple[list[Branch], int]:
    if model is not None and model.choice is None and model.run_id is not None:
        layers: pd.DataFrame = service.layers([model.run_id])
        return branches_of_rows(layers.to_dict("records")), model.params  # type: ignore[arg-type]
    name = model.choice.name if model is not None and model.choice is not None else key
    architecture = service.architecture(name)
    shapes = [(layer.heads, layer.kv_heads, layer.mlp) for layer in architecture.layers]
    return dense_branches(shapes), architecture.params


def conversation(service: Service, chosen: list[tuple[str, str]], settings: Settings) -> "Conversation":
    """This session's conversation with the chosen models; other models begin another."""
    held: Conversation | None = st.session_state.get(KEPT)
    if held is None or [source.key for source in held.sources] != [key for key, _ in chosen]:
        if held is not None:
            held.stop()
        held = st.session_state[KEPT] = service.chat_client().conversation(chosen)
    held.sampling = held.sampling.model_copy(update=settings.sampling)
    held.system = settings.system
    return held


def forget() -> None:
    """Begin a new conversation."""
    held: Conversation | None = st.session_state.pop(KEPT, None)
    if held is not None:
        held.stop()
