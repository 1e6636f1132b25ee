"""Blind mode's vote: which place answered better, also while answers stream; then the names are shown."""

from typing import TYPE_CHECKING

import streamlit as st

from core.errors import EspalierError
from pages._parts.theme import html, note

if TYPE_CHECKING:
    from core.chat.answers import Turn
    from core.chat.conversation import Conversation

PLACES = "ABCD"
PROBLEM = "chat_vote_problem"
"""In the session: why the last vote does not count, by the turn that it was cast on."""


def show(conversation: "Conversation", turn: "Turn") -> None:
    """The buttons of a turn that waits for its vote, or what was voted."""
    if not turn.blind:
        return
    if turn.vote is not None:
        st.html(f'<p class="esp-fact esp-voted" role="status">{html(_said(turn))}</p>')
        return
    count = len(turn.answers)
    with st.container(key=f"chat_vote_{turn.number}", horizontal=True, horizontal_alignment="center"):
        for verdict, label in _choices(count):
            st.button(
                label, key=f"chat_vote_{turn.number}_{turn.attempt}_{verdict}", on_click=_vote,
                args=(conversation, turn, verdict),
            )  # fmt: skip
    problem = st.session_state.get(PROBLEM, {}).get(_place(conversation, turn))
    if problem:
        st.html(note(problem, level="error"))


def _vote(conversation: "Conversation", turn: "Turn", verdict: str) -> None:
    """Why it could not be kept stays said until it could."""
    st.session_state.pop(PROBLEM, None)
    try:
        conversation.vote(turn, verdict)
    except EspalierError as error:
        st.session_state[PROBLEM] = {_place(conversation, turn): f"Not counted: {error}"}


def _place(conversation: "Conversation", turn: "Turn") -> tuple[str, int, int]:
    return conversation.id, turn.number, turn.attempt


def _choices(count: int) -> list[tuple[str, str]]:
    places = [(place, f"{place} is better" if count == 2 else f"{place} is best") for place in PLACES[:count]]
    return [*places, ("tie", "Tie"), ("bad", "Both bad" if count == 2 else "All bad")]


def _said(turn: "Turn") -> str:
    names = [f"{place} was {turn.answers[side].source.title}" for place, side in zip(PLACES, turn.order, strict=False)]
    if turn.winner is not None:
        verdict = f"You chose {turn.vote}"
    else:
        verdict = "You called it a tie" if turn.vote == "tie" else "You found none good"
    return f"{verdict}. {'; '.join(names)}."
