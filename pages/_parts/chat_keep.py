"""What stays: kept conversations and their exports, and prompts to start from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts import chat_choose, chat_place, chat_stage, runs_text
from pages._parts.theme import html, note, plain

if TYPE_CHECKING:
    from core.chat.conversation import Conversation

TAKEN = "chat_taken"
"""In the session: a prompt that was clicked, to be asked in the next run of the page."""


def menu(service: Service) -> None:
    """New conversation, and the popover with what is kept."""
    st.button(
        "New conversation",
        key="chat_new",
        icon=":material/add_comment:",
        help="Starts over; this conversation stays in the chat folder.",
        on_click=chat_choose.forget,
    )
    with st.popover("Kept", icon=":material/inventory_2:", key="chat_kept"):
        _exports(service)
        _kept(service)
        chat_place.ending(
            service,
            "chat_free",
            "Free memory",
            chat_place.free,
            icon=":material/memory:",
            help="Ends the process that holds the models. The next prompt loads them again.",
        )


def _exports(service: Service) -> None:
    held: Conversation | None = st.session_state.get(chat_choose.KEPT)
    if held is None or not held.turns:
        st.html('<p class="esp-fact">This conversation is empty. Every prompt is kept from the first one on.</p>')
        return
    with st.container(horizontal=True):
        _downloads(service, held.id, "chat")


def _downloads(service: Service, identity: str, key: str) -> None:
    st.download_button(
        "JSON", lambda: service.talks.as_json(identity), f"{identity}.json", "application/json", key=f"{key}_json",
        icon=":material/download:", on_click="ignore",
    )  # fmt: skip
    st.download_button(
        "Markdown", lambda: service.talks.as_markdown(identity), f"{identity}.md", "text/markdown", key=f"{key}_md",
        icon=":material/download:", on_click="ignore",
    )  # fmt: skip


def _kept(service: Service) -> None:
    saved = service.talks.saved()
    if saved.empty:
        return
    times = runs_text.local_times(saved["created"], st.context.timezone)
    rows = zip(saved["conversation"], times, saved["first_prompt"], saved["titles"], strict=True)
    labels = {
        str(identity): f"{time:%d %b, %H:%M} · {str(prompt)[:40]} · {', '.join(titles)}"
        for identity, time, prompt, titles in rows
    }
    chosen = st.selectbox(
        "A kept conversation", list(labels), index=None, format_func=lambda key: labels[key], key="chat_saved",
        placeholder="Choose one to replay or to export",
    )  # fmt: skip
    if chosen is not None:
        with st.container(horizontal=True):
            st.button(
                "Replay", key="chat_replay_start", icon=":material/replay:", on_click=chat_stage.begin,
                args=(service, chosen), help="Tells it again at its speed, prompt by prompt; no model answers.",
            )  # fmt: skip
            _downloads(service, str(chosen), "chat_saved")


def taken() -> str | None:
    """The prompt that was clicked, once."""
    found = st.session_state.pop(TAKEN, None)
    return None if found is None else str(found)


def _take(text: str) -> None:
    st.session_state[TAKEN] = text


def ask(conversation: "Conversation", prompt: str) -> None:
    """Ask all sides; what cannot be asked is said, and offered to be asked again."""
    conversation.stop()
    try:
        conversation.start(conversation.ask(prompt))
    except EspalierError as error:
        st.html(note(f"Not asked: {error}", level="error"))
        st.button("Ask again", key="chat_retry", icon=":material/refresh:", on_click=_take, args=(prompt,))


def start(service: Service, chosen: Sequence[tuple[str, str]], *, stage: bool = False) -> None:
    """Before the first prompt: what happens, and prompts to start from."""
    if stage:
        said = " · ".join(title for _, title in chosen)
    elif len(chosen) == 1:
        said = "The model answers here. It keeps its own side of the conversation."
    else:
        who = "Both" if len(chosen) == 2 else "All"
        said = f"{who} models get the same prompt and answer at the same time. Each keeps its own side."
    st.html(f'<p class="esp-chat-empty">{html(said)}</p>')
    own = service.talks.prompts.read()
    texts = [*own, *service.talks.offered_prompts]
    with st.container(key="chat_starts", horizontal=True, horizontal_alignment="center"):
        for place, text in enumerate(texts[:ON_STAGE] if stage else texts):
            st.button(
                plain(_short(text)), key=f"chat_start_{place}", on_click=_take, args=(text,),
                help=plain(text) if len(text) > SHORT else None, icon=":material/bookmark:" if text in own else None,
            )  # fmt: skip
    if stage:
        return
    if own:
        with (
            st.container(key="chat_own", horizontal=True, horizontal_alignment="center"),
            st.popover("Saved prompts", type="tertiary", key="chat_own_prompts"),
        ):
            gone = st.selectbox("Saved prompt", own, key="chat_own_prompt", format_func=_short)
            st.button(
                "Remove this prompt", key="chat_own_remove", icon=":material/delete:",
                on_click=_remove, args=(service, gone),
            )  # fmt: skip


def _remove(service: Service, prompt: str) -> None:
    try:
        service.talks.prompts.remove(prompt)
    except EspalierError as error:
        st.toast(plain(str(error)), icon=":material/error:")


SHORT = 60
ON_STAGE = 4
"""Prompts offered on the stage: as many as fit."""


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[:SHORT].rstrip()} …"
