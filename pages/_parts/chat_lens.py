"""Reading answers closer: tokens coloured by the dense model's surprise, words that another side has not."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts.theme import html, note

if TYPE_CHECKING:
    from core.chat.answers import Answer, Turn
    from core.chat.conversation import Conversation
    from core.chat.lens import Measure
    from core.chat.protocol import TokenScore

TEXT, LENS, DIFF = "Text", "Token lens", "Word diff"
SURPRISE, DIVERGENCE = "Surprise", "Divergence"
_HELP = (
    "Token lens: how surprised the dense model is by each token; point at one for what it would have said. "
    "Word diff: words that the other side has not."
)


@dataclass(frozen=True)
class Reading:
    """How answers are shown."""

    lens: bool = False
    differ: bool = False
    by: "Measure" = "surprise"


def choose(conversation: "Conversation") -> Reading:
    """The picker, once there is something to read."""
    with st.container(key="chat_reading", horizontal=True, vertical_alignment="center"):
        if not any(answer.text for turn in conversation.turns for answer in turn.answers):
            return Reading()  # its place is kept, so that what streams beneath it does not move
        kind = st.segmented_control(
            "Read as", [TEXT, LENS, DIFF], default=TEXT, required=True, key="chat_read", help=_HELP,
            label_visibility="collapsed", persist_state="session",
        )  # fmt: skip
        by = SURPRISE
        if kind == LENS:
            by = st.segmented_control(
                "Coloured by", [SURPRISE, DIVERGENCE], default=SURPRISE, required=True, key="chat_lens_by",
                label_visibility="collapsed", persist_state="session",
                help="Surprise: ln p of who said it less ln p of the dense model. Divergence: KL of the two whole "
                "distributions in that place, in nats.",
            )  # fmt: skip
            st.html(_legend(str(by)))
    return Reading(kind == LENS, kind == DIFF, "surprise" if by == SURPRISE else "divergence")


def _legend(by: str) -> str:
    if by == DIVERGENCE:
        steps = "".join(f'<i class="esp-tok" style="--s:{s}">{n}</i>' for s, n in ((0, "0"), (0.5, "1"), (1, "2 nats")))
        return f'<p class="esp-fact esp-legend">the two distributions differ by {steps}</p>'
    more = '<i class="esp-tok" style="--s:1">dense would rarely say it</i>'
    less = '<i class="esp-tok esp-less" style="--s:1">dense would say it sooner</i>'
    return f'<p class="esp-fact esp-legend">{more} {less}</p>'


def said(service: Service, turn: "Turn", side: int, reading: Reading) -> str | None:
    """HTML of one answer as it is to be read; None for its plain text."""
    answer = turn.answers[side]
    if turn.hidden or answer.live or not answer.text:
        return None
    if reading.lens and answer.scores:
        return _tokens(service, answer, reading.by)
    if reading.differ and (other := _other(turn, side)) is not None and other.text:
        return _words(service, answer.text, other.text)
    return None


def _other(turn: "Turn", side: int) -> "Answer | None":
    """What an answer is read against: the first place; for the first, the second."""
    if len(turn.order) < 2:
        return None
    return turn.answers[turn.order[0] if side != turn.order[0] else turn.order[1]]


def _words(service: Service, text: str, other: str) -> str:
    at = service.talks.parting(text, other).at
    parts, length = [], 0
    for run in service.talks.difference(text, other):
        for piece, cut in _cut(run.text, None if at is None else at - length):
            mark = '<span class="esp-part" title="Here the two part."></span>' if cut else ""
            parts.append(mark + (html(piece) if run.shared or not piece.strip() else f"<mark>{html(piece)}</mark>"))
        length += len(run.text)
    end = '<span class="esp-part" title="Here this one ends."></span>' if at is not None and at >= length else ""
    return "".join(parts) + end


def _cut(text: str, at: int | None) -> list[tuple[str, bool]]:
    """A stretch, cut where the answers part; True for the piece that begins there."""
    if at is None or not 0 <= at < len(text):
        return [(text, False)]
    return [*([(text[:at], False)] if at else []), (text[at:], True)]


def parting(service: Service, turn: "Turn") -> None:
    """A line that says how far the sides are alike, against the first place."""
    first = turn.answers[turn.order[0]]
    lines = []
    for side in turn.order[1:]:
        answer = turn.answers[side]
        if answer.live or first.live or not (answer.text and first.text):
            continue
        mine, theirs = service.talks.parting(answer.text, first.text), service.talks.parting(first.text, answer.text)
        alike = f"alike for {mine.words} word{'s' if mine.words != 1 else ''}"
        if mine.at is None or theirs.at is None:
            lines.append(f"{answer.source.title}: equal to {first.source.title}, word for word")
            continue
        here = service.talks.next_words(answer.text, mine.at) or "the end"
        there = service.talks.next_words(first.text, theirs.at) or "the end"
        lines.append(f"{answer.source.title}: {alike}, then “{here}” against “{there}”")
    if lines:
        st.html(f'<p class="esp-fact esp-parting">{html("; ".join(lines))}</p>')


def _tokens(service: Service, answer: "Answer", by: "Measure") -> str:
    parts = []
    for token in service.talks.shown_scores(answer):
        strength = service.talks.strength(token, by)
        kind = "esp-tok esp-less" if strength < 0 else "esp-tok"
        parts.append(
            f'<span class="{kind}" style="--s:{abs(strength):.2f}" tabindex="-1">{html(token.text)}{_tip(token)}</span>'
        )
    return "".join(parts)


def _tip(token: "TokenScore") -> str:
    """What appears when a token is pointed at."""
    here, dense = (_percent(value) for value in _probabilities(token))
    rows = "".join(
        f"<span><b>{html(_visible(guess.text))}</b><i>{_percent(guess.probability)}</i></span>"
        for guess in token.guesses
    )
    return (
        f'<span class="esp-tip"><span><b>{html(_visible(token.text))}</b><i>here {here}, dense {dense}</i></span>'
        f"<span>KL <i>{token.divergence:.2f} nats</i></span><em>dense would say</em>{rows}</span>"
    )


def _probabilities(token: "TokenScore") -> tuple[float, float]:
    from math import exp

    return exp(token.log_probability), exp(token.dense_log_probability)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"


def _visible(text: str) -> str:
    """A token's text with what cannot be seen made visible."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return shown.replace(" ", "·") if not shown.strip() or shown != shown.strip() else shown


def fill(service: Service, conversation: "Conversation", boxes: list[Any]) -> None:
    """Score the answers that were not, one after the other; then the page is drawn anew.

    Nothing is scored, and that is said, while a run works on the same GPU.
    """
    models, runs = service.chat_models(), service.runs()
    missing = [
        box for box in boxes
        if box.answer.ids and box.answer.scores is None and not box.answer.scores_problem and not box.turn.hidden
    ]  # fmt: skip
    if not missing:
        problems = {box.answer.scores_problem for box in boxes if box.answer.scores_problem}
        for problem in sorted(problems):
            st.html(note(f"Token lens: {problem}"))
        return
    if (run := service.talks.at_work()) is not None:
        st.html(note(f"Token lens: {run} works on this GPU. Choose it again when the run has ended."))
        return
    with st.spinner(f"The dense model reads {len(missing)} answer{'s' if len(missing) != 1 else ''}"):
        place = st.empty()

        def say(text: str) -> None:
            place.html(f'<p class="esp-fact" role="status">{html(text)}</p>')

        for box in missing:
            dense = service.talks.dense_of(box.answer.source.key, models, runs)
            if dense is None:
                box.answer.scores_problem = f"the dense model of {box.answer.source.title} is not on this machine."
                continue
            try:
                service.talks.look_closer(conversation, box.turn, box.side, dense, say)
            except EspalierError as error:
                box.answer.scores_problem = str(error)
    st.rerun()
