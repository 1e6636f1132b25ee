"""The token lens on the page's side: an answer's tokens, scored by the worker, and how strongly each is coloured."""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Literal

from core.chat.protocol import Failed, Finished, Loading, Message, Score, Scored, Source, TokenScore, Waiting
from core.errors import Cancelled, InputError, RunError

if TYPE_CHECKING:
    from core.chat.client import ChatClient

Measure = Literal["surprise", "divergence"]
FULL: dict[Measure, float] = {"surprise": 4.0, "divergence": 2.0}
"""Nats at which the colour is full: a token e⁴ ≈ 55 times less likely for the dense model; a KL of 2."""


def measure(
    client: "ChatClient",
    source: Source,
    dense: Source,
    messages: Sequence[Message],
    ids: Sequence[int],
    *,
    owner: str = "",
    said: Callable[[str], None] = lambda _: None,
) -> tuple[TokenScore, ...]:
    """Score the tokens `ids` that `source` answered to `messages` by `dense`; `said` hears what is waited for.

    InputError or RunError with the worker's reason.
    """
    request = client.request(
        lambda i: Score(id=i, source=source, dense=dense, messages=tuple(messages), ids=tuple(ids), owner=owner)
    )
    with closing(request) as events:
        for event in events:
            if isinstance(event, Scored):
                return event.tokens
            if isinstance(event, Failed):
                raise (RunError if event.worker else InputError)(event.message, event.advice)
            if isinstance(event, Finished):
                raise Cancelled
            if isinstance(event, Loading):
                said(f"loading {event.title}")
            elif isinstance(event, Waiting) and event.reason:
                said(event.reason)
    raise RunError("The token lens ended without a result.")


def surprise(token: TokenScore) -> float:
    """ln p(speaker) − ln p(dense): above 0 the dense model would have said it less readily."""
    return token.log_probability - token.dense_log_probability


def strength(token: TokenScore, by: Measure) -> float:
    """Colour from −1 (the dense model would have said it more readily) to 1; a divergence is never below 0."""
    value = surprise(token) if by == "surprise" else token.divergence
    return max(-1.0, min(value / FULL[by], 1.0))


def within(tokens: Sequence[TokenScore], text: str) -> list[TokenScore]:
    """The tokens that make up `text`: those behind a stop, which were chosen but not shown, are left out."""
    found, length = [], 0
    for token in tokens:
        if length >= len(text) and token.text:
            break
        found.append(token)
        length += len(token.text)
    return found


def mean_divergence(tokens: Sequence[TokenScore]) -> float:
    """Mean KL a token, in nats; 0 for none."""
    return sum(token.divergence for token in tokens) / len(tokens) if tokens else 0.0
