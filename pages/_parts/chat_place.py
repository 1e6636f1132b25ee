"""Where answers are computed, where that is shared: a run on the chat's GPU, the CPU instead, or waiting."""

from collections.abc import Callable, Sequence

import streamlit as st

from core.service import ChatModel, Service
from pages._parts import theme


def says(service: Service, chosen: Sequence[tuple[str, str]]) -> Callable[[], str]:
    """Say who else uses the device, and offer the CPU; returns who is asked why answers must not begin yet.

    It is asked when an answer begins, and says what is then: a run may begin, or the chat move, after this was drawn.
    """
    talks = service.talks

    def wait() -> str:
        now = talks.at_work()
        return f"waiting until {now} has ended" if now else ""

    if service.chat_client().device == "cpu":
        with st.container(key="chat_place", horizontal=True, vertical_alignment="center"):
            st.html('<p class="esp-fact">Answers are computed on the CPU.</p>')
            st.button("Back to the GPU", key="chat_to_gpu", type="tertiary", on_click=talks.move, args=("auto",))
    elif (run := talks.at_work()) is not None:
        known = {model.key: model for model in service.chat_models()}
        _offer_cpu(service, run, [known[key] for key, _ in chosen if key in known])
    return wait


def _offer_cpu(service: Service, run: str, models: Sequence[ChatModel]) -> None:
    room = service.talks.room(models, "cpu")
    with st.container(key="chat_place", horizontal=True, vertical_alignment="center"):
        st.html(theme.note(f"{run} works on this GPU: prompts wait until it has ended."))
        st.button(
            "Answer on the CPU",
            key="chat_to_cpu",
            disabled=not room.enough,
            on_click=service.talks.move,
            args=("cpu",),
            help=f"Needs {theme.size(room.need)} of the host's memory; {theme.size(max(room.free, 0))} are free.",
        )
