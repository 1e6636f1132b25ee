"""Chat's conversation on the page. What people and models say is text: escaped, and inert."""

from contextlib import closing
from typing import TYPE_CHECKING

import streamlit as st

from pages._parts.theme import html

if TYPE_CHECKING:
    from core.chat.conversation import Answer, Conversation, Turn


def history(conversation: "Conversation") -> None:
    """All turns so far."""
    for turn in conversation.turns:
        _prompt(turn)
        for column, answer in zip(_columns(conversation), turn.answers, strict=True):
            column.html(answer_html(answer))


def answer(conversation: "Conversation", prompt: str) -> None:
    """Ask, and stream all sides at once. Stopping keeps what was said so far."""
    turn = conversation.ask(prompt)
    _prompt(turn)
    for side, column in enumerate(_columns(conversation)):
        with column:
            _stream(conversation, turn, side)


@st.fragment(parallel=True)
def _stream(conversation: "Conversation", turn: "Turn", side: int) -> None:
    box = st.empty()
    with closing(conversation.stream(turn, side)) as snapshots:  # closing it, however that comes, stops the model
        for snapshot in snapshots:
            box.html(answer_html(snapshot))


def empty(models: int) -> None:
    """Before the first prompt."""
    who = "Both models get the same prompt and answer at the same time." if models == 2 else "The model answers here."
    st.html(f'<p class="esp-chat-empty">{who} Each keeps its own side of the conversation.</p>')


def _columns(conversation: "Conversation") -> list["st.delta_generator.DeltaGenerator"]:
    return list(st.columns(max(len(conversation.sources), 2), gap="large"))[: len(conversation.sources)]


def _prompt(turn: "Turn") -> None:
    st.html(f'<div class="esp-prompt" dir="auto"><span class="esp-hidden">You: </span>{html(turn.prompt)}</div>')


def answer_html(answer: "Answer") -> str:
    """One answer: whose it is, what it says, how fast."""
    said = html(answer.text)
    if not answer.text:
        said = {"waiting": "", "failed": "", "stopped": "Stopped before the first word."}.get(
            answer.state, "" if answer.state == "streaming" else "The model ended at once, without a word."
        )
        said = f'<span class="esp-chat-quiet">{said}</span>' if said else ""
    return (
        f'<article class="esp-answer esp-answer-{answer.state}">'
        f'<p class="esp-chat-who">{html(answer.source.title)}</p>'
        f'<div class="esp-said" dir="auto">{said}</div>{_trouble(answer)}'
        f'<p class="esp-chat-foot">{html(footer(answer))}</p></article>'
    )


def _trouble(answer: "Answer") -> str:
    if answer.state != "failed":
        return ""
    return f'<p class="esp-note esp-error" role="alert"><span aria-hidden="true">×</span>{html(answer.notice)}</p>'


def footer(answer: "Answer") -> str:
    """The line beneath an answer: speed first, then what else was measured."""
    if answer.state == "waiting":
        return answer.notice or "reading the prompt"
    parts = []
    if answer.tokens_per_second is not None:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.tokens:
        parts.append(f"{answer.tokens} token{'s' if answer.tokens != 1 else ''}")
    if answer.first_token_seconds is not None:
        loaded = ", loading included" if answer.stats and answer.stats.load_seconds > 0.1 else ""
        parts.append(f"first after {answer.first_token_seconds:.2f} s{loaded}")
    own = answer.stats.own_tokens_per_second if answer.stats else None
    if own is not None and answer.tokens_per_second and own > 1.2 * answer.tokens_per_second:
        parts.append(f"{own:.1f} tokens/s of its own time")
    ends = {"length": "cut at the longest answer", "context": "the context is full", "cancelled": "stopped"}
    if answer.reason in ends:
        parts.append(ends[answer.reason])
    if answer.notice and answer.state != "failed":
        parts.append(answer.notice)
    return " · ".join(parts)
