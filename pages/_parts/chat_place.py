"""Where answers are computed, where that is shared: a run on the chat's GPU, the CPU instead, or waiting."""

from collections.abc import Callable, Sequence

import streamlit as st

from core.service import ChatModel, Service
from pages._parts import theme


def says(service: Service, chosen: Sequence[tuple[str, str]]) -> Callable[[], str]:
    """Say who else uses the device, and offer the CPU; returns who is asked why answers must not begin yet."""
    talks = service.talks
    if service.chat_client().device == "cpu":
        with st.container(key="chat_place", horizontal=True, vertical_alignment="center"):
            st.html('<p class="esp-fact">Answers are computed on the CPU.</p>')
            st.button("Back to the GPU", key="chat_to_gpu", type="tertiary", on_click=talks.move, args=("auto",))
        return lambda: ""
    run = talks.at_work()
    if run is None:
        return lambda: ""
    known = {model.key: model for model in service.chat_models()}
    models = [known[key] for key, _ in chosen if key in known]
    _offer_cpu(service, run, models)

    def wait() -> str:
        now = talks.at_work()
        return f"waiting until {now} has ended" if now else ""

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
