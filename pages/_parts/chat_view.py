"""Chat's conversation on the page. What people and models say is text: escaped, and inert."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts import chat_choose, chat_lens, chat_vote
from pages._parts.theme import html, note, plain, size

if TYPE_CHECKING:
    from core.chat.answers import Answer, Turn
    from core.chat.conversation import Conversation

LOOK_S = 0.08
"""Seconds between two looks at answers that stream."""
STILL_S = 0.25
"""Longest time without drawing anything: a click is noticed when something is drawn."""
PLACES = "ABCD"
PROBLEM = "chat_problem"
"""In the session: why what was clicked last could not be done."""


@dataclass
class Box:
    """Where one answer is drawn, and what stands there."""

    turn: "Turn"
    side: int
    place: Any
    drawn: str = ""

    @property
    def answer(self) -> "Answer":
        return self.turn.answers[self.side]


def show(service: Service, conversation: "Conversation", *, fixed: bool = False) -> None:
    """All turns so far; those that stream are followed to their end. Fixed: nothing can be voted, asked or changed."""
    reading = chat_lens.Reading() if fixed else chat_lens.choose(conversation)
    facts = chat_choose.facts(service) if conversation.turns else {}  # looks at every saved run
    boxes: list[Box] = []
    for turn in conversation.turns:
        last = turn is conversation.turns[-1]
        _prompt(turn)
        if reading.differ and not turn.hidden:
            chat_lens.parting(service, turn)
        boxes += _answers(conversation, turn, fixed=fixed)
        if not fixed:
            chat_vote.show(conversation, turn)
        if last and not fixed:
            _actions(service, conversation, turn)
    for box in boxes:
        _draw(box, facts, chat_lens.said(service, box.turn, box.side, reading))
    if any(box.answer.live for box in boxes):
        conversation.look()
        _follow(conversation, boxes, facts)
        st.rerun()
    if reading.lens:
        chat_lens.fill(service, conversation, boxes)


def _answers(conversation: "Conversation", turn: "Turn", *, fixed: bool) -> list[Box]:
    """Reserve the columns of a turn, each with its own way to stop."""
    found = []
    for place, (side, column) in enumerate(zip(turn.order, _columns(len(turn.answers)), strict=True)):
        with column:
            box = Box(turn, side, st.empty())
            found.append(box)
            if box.answer.live and not fixed:
                st.button(
                    "Stop", key=f"chat_stop_{turn.number}_{turn.attempt}_{place}", icon=":material/stop:",
                    type="tertiary", on_click=conversation.stop, args=(turn, side),
                    help="Stops this side; what it said so far stays, and the others go on.",
                )  # fmt: skip
    return found


def _columns(count: int) -> list["st.delta_generator.DeltaGenerator"]:
    return list(st.columns(max(count, 2), gap="large"))[:count]


def _draw(box: Box, facts: dict[str, str], said: str | None = None) -> None:
    """Put what the answer is now into its place."""
    box.drawn = _text(box, facts, said)
    box.place.html(box.drawn)


def _text(box: Box, facts: dict[str, str], said: str | None = None) -> str:
    turn = box.turn
    return answer_html(
        box.answer,
        said=said,
        name=PLACES[turn.order.index(box.side)] if turn.hidden else None,
        chosen=turn.vote is not None and turn.winner == box.side,
        facts=facts.get(box.answer.source.key, ""),
        most=_pace(turn),
    )


def _pace(turn: "Turn") -> int | None:
    """In blind mode all are shown as far as the slowest has come, so that speed tells nothing."""
    live = [len(answer.text) for answer in turn.answers if answer.live]
    return min(live) if turn.hidden and live else None


def _follow(conversation: "Conversation", boxes: list[Box], facts: dict[str, str]) -> None:
    """Draw what streams until all has ended. A click elsewhere ends the drawing, not the answers."""
    streaming = [box for box in boxes if box.answer.live or box.turn.hidden]
    last = time.monotonic()
    while any(box.answer.live for box in streaming):
        conversation.look()
        for box in streaming:
            if _text(box, facts) != box.drawn or time.monotonic() - last > STILL_S:
                _draw(box, facts)
                last = time.monotonic()
        time.sleep(LOOK_S)


def _prompt(turn: "Turn") -> None:
    st.html(f'<div class="esp-prompt" dir="auto"><span class="esp-hidden">You: </span>{html(turn.prompt)}</div>')


def _actions(service: Service, conversation: "Conversation", turn: "Turn") -> None:
    """What can be done with the last prompt."""
    if (problem := st.session_state.pop(PROBLEM, "")) != "":
        st.html(note(problem, level="error"))
    with st.container(key="chat_actions", horizontal=True, vertical_alignment="center"):
        if any(answer.live for answer in turn.answers):
            st.button("Stop all", key="chat_stop_all", icon=":material/stop_circle:", on_click=conversation.stop)
            return
        st.button(
            "Regenerate", key="chat_again", icon=":material/refresh:", type="tertiary", on_click=_again,
            args=(conversation,), help="Asks the same prompt once more; above temperature 0 with the next seed.",
        )  # fmt: skip
        with st.popover("Edit the prompt", icon=":material/edit:", type="tertiary", key=f"chat_edit_{turn.number}"):
            key = f"chat_edited_{turn.number}_{turn.attempt}"
            st.text_area("Prompt", turn.prompt, key=key, max_chars=20_000, height=120, label_visibility="collapsed")
            st.button("Ask this instead", key="chat_ask_edited", on_click=_again, args=(conversation, key))
        if turn.prompt.strip() in service.talks.offered_prompts:
            return
        saved = turn.prompt.strip() in service.talks.prompts.read()
        st.button(
            "Prompt saved" if saved else "Save the prompt", key="chat_save_prompt", icon=":material/bookmark:",
            type="tertiary", disabled=saved, on_click=_save, args=(service, turn.prompt),
            help="Offered to start from, in every new conversation.",
        )  # fmt: skip


def _save(service: Service, prompt: str) -> None:
    try:
        service.talks.prompts.add(prompt)
    except EspalierError as error:
        st.toast(plain(str(error)), icon=":material/error:")


def _again(conversation: "Conversation", key: str | None = None) -> None:
    """Ask the last prompt again, or what the field `key` holds in its place."""
    prompt = None if key is None else str(st.session_state[key]).strip()
    if prompt == "":
        return
    try:
        conversation.start(conversation.again(prompt))
    except EspalierError as error:
        st.session_state[PROBLEM] = f"Not asked: {error}"


# --- one answer


def answer_html(
    answer: "Answer",
    *,
    said: str | None = None,
    name: str | None = None,
    chosen: bool = False,
    facts: str = "",
    most: int | None = None,
) -> str:
    """One answer: whose it is, what it says, how fast. `name`: of a place, while nobody may know whose it is.

    `said` is HTML in place of the text (token lens, word diff); `most` the characters that are shown.
    """
    state = answer.state  # before the text: another thread writes both, and what is drawn as ended must be whole
    text = answer.text if most is None else answer.text[:most]
    body = html(text) if said is None else said
    if not text:
        quiet = {"waiting": "", "failed": "", "stopped": "Stopped before the first word."}.get(
            state, "" if state == "streaming" or most is not None else
            "The model ended at once, without a word.",
        )  # fmt: skip
        body = f'<span class="esp-chat-quiet">{quiet}</span>' if quiet else ""
    who = html(name or answer.source.title)
    about = "" if name or not facts else f"<span>{html(facts)}</span>"
    mark = '<span class="esp-chosen">chosen</span>' if chosen else ""
    hidden = name is not None
    return (
        f'<article class="esp-answer esp-answer-{state}">'
        f'<p class="esp-chat-who"><b>{who}</b>{about}{mark}</p>'
        f'<div class="esp-said" dir="auto">{body}</div>{_trouble(answer, hidden=hidden)}'
        f'<p class="esp-chat-foot">{html(blind_footer(answer) if hidden else footer(answer))}</p></article>'
    )


def _trouble(answer: "Answer", *, hidden: bool) -> str:
    if answer.state != "failed":
        return ""
    why = "This side failed; the reason is shown after the vote." if hidden else answer.notice
    return f'<p class="esp-note esp-error" role="alert"><span aria-hidden="true">×</span>{html(why)}</p>'


def blind_footer(answer: "Answer") -> str:
    """What may be said of an answer before the vote: nothing that tells whose it is."""
    if answer.state == "waiting":
        return "waiting"
    return "stopped" if answer.state == "stopped" else ""


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
    if answer.stats and answer.stats.memory_bytes:
        parts.append(f"{size(answer.stats.memory_bytes)} of memory")
    ends = {"length": "cut at the longest answer", "context": "the context is full", "cancelled": "stopped"}
    if answer.reason in ends:
        parts.append(ends[answer.reason])
    if answer.notice and answer.state != "failed":
        parts.append(answer.notice)
    return " · ".join(parts)
