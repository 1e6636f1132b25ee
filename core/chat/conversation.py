"""A conversation with several models side by side: one prompt, an answer from each, every side with its own history.

A page draws what is here and decides nothing. An answer is filled while it streams, so that whatever ends the stream
(the stop button, another click, a closed tab) leaves what was said so far.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.chat.protocol import (
    PAUSED,
    Event,
    Failed,
    Finished,
    Loading,
    Message,
    Piece,
    Sampling,
    Source,
    Started,
    Stats,
    Waiting,
)
from core.chat.transcripts import Transcript, new_id

if TYPE_CHECKING:
    from core.chat.client import ChatClient

State = Literal["waiting", "streaming", "done", "stopped", "failed"]
REDRAW = 0.08
"""Seconds between two snapshots of a streaming answer: faster than eyes, slower than tokens on a GPU."""


@dataclass
class Answer:
    """What one side said to one prompt. `notice` is a sentence about how it stands, in words, or ''."""

    source: Source
    text: str = ""
    state: State = "waiting"
    notice: str = ""
    reason: str = ""
    tokens: int = 0
    tokens_per_second: float | None = None
    stats: Stats | None = None
    began: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    """From the prompt to the first text, as the reader waits for it, loading included."""

    def hear(self, event: Event) -> None:
        """Take in one event of the worker."""
        if isinstance(event, Piece):
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.began
            self.state, self.text, self.tokens = "streaming", self.text + event.text, event.tokens
            self.notice = "" if self.notice == PAUSED else self.notice
            self.tokens_per_second = (event.tokens - 1) / event.seconds if event.seconds > 0 else None
        elif isinstance(event, Started):
            self.notice = event.note
        elif isinstance(event, Loading):
            self.notice = f"loading {event.title}{_amount(event)}"
        elif isinstance(event, Waiting):
            if event.reason and (self.state == "waiting" or event.reason == PAUSED):
                self.notice = event.reason
        elif isinstance(event, Finished):
            self._finish(event)
        elif isinstance(event, Failed):
            self.state, self.notice = "failed", f"{event.message} {event.advice}".strip()

    def _finish(self, event: Finished) -> None:
        self.state = "stopped" if event.reason == "cancelled" else "done"
        self.reason = event.reason
        self.stats = event.stats
        if event.stats is not None:
            self.tokens = event.stats.tokens
            self.tokens_per_second = event.stats.tokens_per_second


def _amount(event: Loading) -> str:
    return f": {event.done / event.total:.0%}" if event.total > 0 else ""


@dataclass
class Turn:
    """A prompt and each side's answer to it."""

    number: int
    prompt: str
    answers: list[Answer]


class Conversation:
    """The turns so far. Made by `ChatClient.conversation`; belongs to one browser session."""

    def __init__(
        self, client: "ChatClient", sources: Sequence[Source], sampling: Sampling | None, folder: Path
    ) -> None:
        self.id = new_id()
        self.sources = list(sources)
        self.sampling = sampling or Sampling()
        self.turns: list[Turn] = []
        self._client = client
        self._transcript = Transcript(folder, self.id)

    @property
    def path(self) -> Path:
        """The transcript's file; it exists from the first prompt on."""
        return self._transcript.path

    def ask(self, prompt: str) -> Turn:
        """Open a turn; `stream` then answers it, side by side."""
        turn = Turn(len(self.turns) + 1, prompt, [Answer(source) for source in self.sources])
        self.turns.append(turn)
        self._transcript.append(
            "prompt",
            conversation=self.id,
            turn=turn.number,
            text=prompt,
            models=[source.model_dump(exclude_defaults=True) for source in self.sources],
            sampling=self.sampling.model_dump(),
        )
        return turn

    def messages(self, turn: Turn, side: int) -> list[Message]:
        """History of one side up to `turn`: its own answers; a prompt it never answered is left out."""
        found: list[Message] = []
        for earlier in self.turns[: turn.number - 1]:
            if earlier.answers[side].text:
                found.append(Message(role="user", content=earlier.prompt))
                found.append(Message(role="assistant", content=earlier.answers[side].text))
        return [*found, Message(role="user", content=turn.prompt)]

    def stream(self, turn: Turn, side: int) -> Generator[Answer, None, None]:
        """The answer of one side, again and again as it grows, at least every 0.2 s. Closing the iterator stops the
        answer.

        However it ends, `turn.answers[side]` holds what was said and the transcript gets its line.
        """
        answer = turn.answers[side]
        drawn = 0.0
        try:
            with closing(self._client.generate(answer.source, self.messages(turn, side), self.sampling)) as events:
                for event in events:
                    answer.hear(event)
                    if time.monotonic() - drawn >= REDRAW or not isinstance(event, Piece):
                        drawn = time.monotonic()
                        yield answer
        finally:
            if answer.state in ("waiting", "streaming"):
                answer.state, answer.reason = "stopped", "cancelled"
            self._write(turn, side)

    def _write(self, turn: Turn, side: int) -> None:
        answer = turn.answers[side]
        stats = answer.stats.model_dump() if answer.stats else None
        self._transcript.append(
            "answer",
            conversation=self.id,
            turn=turn.number,
            side=side,
            model=answer.source.key,
            title=answer.source.title,
            text=answer.text,
            state=answer.state,
            reason=answer.reason,
            notice=answer.notice if answer.state == "failed" else "",
            tokens=answer.tokens,
            tokens_per_second=answer.tokens_per_second,
            first_token_seconds=answer.first_token_seconds,
            stats=stats,
        )
