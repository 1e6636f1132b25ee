"""Where answers are computed, where that is shared: a run on the chat's GPU, the CPU instead, or waiting."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.service import Service
from pages._parts import chat_choose, theme

if TYPE_CHECKING:
    from core.chat.conversation import Conversation


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
            ending(service, "chat_to_gpu", "Back to the GPU", _to("auto"), type="tertiary")
    elif (run := talks.at_work()) is not None:
        _offer_cpu(service, run, chosen)
    return wait


def _offer_cpu(service: Service, run: str, chosen: Sequence[tuple[str, str]]) -> None:
    room = service.talks.room(chosen, "cpu")
    more = f", and what {', '.join(room.unknown)} takes, which is not known" if room.unknown else ""
    needs = f"Needs {theme.size(room.need)}{more}; {theme.size(max(room.free, 0))} of the host's memory are free."
    with st.container(key="chat_place", horizontal=True, vertical_alignment="center"):
        st.html(theme.note(f"{run} works on this GPU: prompts wait until it has ended."))
        ending(
            service, "chat_to_cpu", "Answer on the CPU", _to("cpu"), disabled=not room.enough, help=theme.plain(needs)
        )


# --- what ends all answers


Act = Callable[[Service, str, bool], int]
"""Does it for a conversation, to others as well or not; how many others are being answered where it did not."""


def _to(device: str) -> Act:
    return lambda service, mine, even_others: service.talks.move(device, mine, even_others=even_others)


def free(service: Service, mine: str, even_others: bool) -> int:
    """End the process that holds the models."""
    return service.talks.free(mine, even_others=even_others)


def ending(service: Service, key: str, label: str, act: Act, **button: Any) -> None:
    """A button for what ends the worker, and with it all answers. Where others are being answered it asks first."""
    st.button(label, key=key, on_click=_try, args=(service, key, act), **button)
    if not st.session_state.get(f"{key}_asked"):
        return
    others = service.talks.others(_mine())
    if not others:
        del st.session_state[f"{key}_asked"]
        return
    count = "1 answer" if others == 1 else f"{others} answers"
    them = "it" if others == 1 else "them"
    st.html(theme.note(f"Somebody else is being answered: {count} would end. Wait and try again, or end {them}."))
    st.button(f"{label}, and end {count}", key=f"{key}_all", on_click=_try, args=(service, key, act, True))


def _try(service: Service, key: str, act: Act, even_others: bool = False) -> None:
    st.session_state[f"{key}_asked"] = bool(act(service, _mine(), even_others))


def _mine() -> str:
    """The owner of this session's answers."""
    held: Conversation | None = st.session_state.get(chat_choose.KEPT)
    return held.id if held is not None else ""
