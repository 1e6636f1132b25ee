"""What one side said to one prompt, filled while it streams; and the turn that holds all sides."""

import threading
import time
from dataclasses import dataclass, field
from typing import Literal

from core.chat.protocol import (
    PAUSED,
    Event,
    Failed,
    Finished,
    Loading,
    Piece,
    Sampling,
    Source,
    Started,
    Stats,
    TokenScore,
    Waiting,
)
from core.errors import EspalierError

State = Literal["waiting", "streaming", "done", "stopped", "failed"]
REDRAW = 0.08
"""Seconds between two looks at a streaming answer: faster than eyes, slower than tokens on a GPU."""
PLACES = "ABCD"
TIE, BAD = "tie", "bad"


def verdicts(sides: int) -> list[str]:
    """What can be voted: a place, a tie, all bad."""
    return [*PLACES[:sides], TIE, BAD]


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
    ids: tuple[int, ...] = ()
    began: float = field(default_factory=time.monotonic)
    first_token_seconds: float | None = None
    """From the prompt to the first text, as the reader waits for it, loading included."""
    scores: tuple[TokenScore, ...] | None = None
    """The token lens, once it was asked for."""
    scores_problem: str = ""
    """Why there is no token lens of this answer, or ''."""
    started: bool = False
    stopping: bool = False
    identity: str = ""
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def live(self) -> bool:
        """Whether more may come."""
        return self.started and not self.ended.is_set()

    def hear(self, event: Event) -> None:
        """Take in one event of the worker."""
        if isinstance(event, Piece):
            if self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.began
            self.text, self.tokens = self.text + event.text, event.tokens
            self.state = "streaming"
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

    def fail(self, error: EspalierError) -> None:
        """It could not even be asked for."""
        self.state, self.notice = "failed", str(error)

    def settle(self) -> None:
        """Nothing more comes: what has not ended in words was stopped."""
        if self.state in ("waiting", "streaming"):
            self.state, self.reason = "stopped", "cancelled"

    def _finish(self, event: Finished) -> None:
        self.state = "stopped" if event.reason == "cancelled" else "done"
        self.reason = event.reason
        self.stats, self.ids = event.stats, event.ids
        if event.stats is not None:
            self.tokens = event.stats.tokens
            self.tokens_per_second = event.stats.tokens_per_second


def _amount(event: Loading) -> str:
    return f": {event.done / event.total:.0%}" if event.total > 0 else ""


@dataclass
class Turn:
    """A prompt and each side's answer to it. `order` are the sides by the place in which they are shown."""

    number: int
    prompt: str
    answers: list[Answer]
    order: list[int]
    blind: bool = False
    attempt: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    vote: str | None = None

    @property
    def hidden(self) -> bool:
        """Whether nobody may know yet which side is which."""
        return self.blind and self.vote is None

    @property
    def winner(self) -> int | None:
        """The side that the vote chose."""
        place = PLACES.find(self.vote) if self.vote and len(self.vote) == 1 else -1
        return self.order[place] if place >= 0 else None
