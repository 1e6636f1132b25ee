"""A conversation with several models side by side: one prompt, an answer from each, every side with its own history.

Answers are filled by threads of their own, whether a page looks or not: a page draws what is here and decides nothing.
So a vote, or a click on one side, disturbs no other side, and whatever ends an answer leaves what was said so far.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from core.chat.answers import REDRAW, Answer, Turn, verdicts
from core.chat.protocol import Event, Message, Sampling, Source
from core.chat.transcripts import Transcript, new_id
from core.errors import EspalierError, InputError, RunError
from core.jobs.failures import full_disk_told

if TYPE_CHECKING:
    from core.chat.client import ChatClient

__all__ = ["Answer", "Conversation", "Turn"]

log = logging.getLogger("espalier.chat")

PATIENCE = 5.0
"""Seconds that a stopped answer may take to end in an orderly way, with its figures."""
UNSEEN = 60.0
"""Seconds after which an answer stops that a page showed once and shows no more: its tab is gone."""
LOOK = 0.2
"""Seconds between two looks at what an answer waits for before it is asked for."""


class Talker(Protocol):
    """Whoever answers: the inference worker's client, or a replay."""

    def generate(
        self, key: Source, messages: Sequence[Message], sampling: Sampling | None = None, owner: str = ""
    ) -> "Stream": ...

    def cancel(self, identity: str) -> None: ...


class Stream(Protocol):
    """One answer as it comes."""

    id: str

    def __iter__(self) -> "Stream": ...

    def __next__(self) -> Event: ...

    def close(self) -> None: ...


class Conversation:
    """The turns so far. Made by `ChatClient.conversation`; belongs to one browser session.

    `system` stands before every history. `hold` says why no answer may begin yet, or ''. `label` names a replay.
    """

    def __init__(
        self,
        client: "ChatClient | Talker",
        sources: Sequence[Source],
        sampling: Sampling | None,
        folder: Path | None,
        label: str = "",
    ) -> None:
        self.id = new_id()
        self.sources = list(sources)
        self.sampling = sampling or Sampling()
        self.system = ""
        self.blind = False
        self.hold: Callable[[], str] = lambda: ""
        self.label = label
        self.turns: list[Turn] = []
        self._seen: float | None = None
        self._client = client
        self._transcript = Transcript(folder, self.id) if folder is not None else None

    @property
    def path(self) -> Path:
        """The transcript's file; it exists from the first prompt on."""
        assert self._transcript is not None
        return self._transcript.path

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return any(answer.live for turn in self.turns for answer in turn.answers)

    def look(self) -> None:
        """Somebody sees this conversation now. Who calls it once goes on calling it while answers stream."""
        self._seen = time.monotonic()

    # --- asking -----------------------------------------------------------------------------------------------

    @full_disk_told()
    def ask(self, prompt: str, attempt: int = 1) -> Turn:
        """Open a turn; `start` or `stream` then answers it. In blind mode its sides are shuffled.

        DiskFullError where the transcript has no room for it: then nothing was asked.
        """
        order = list(range(len(self.sources)))
        if self.blind:
            random.SystemRandom().shuffle(order)
        answers = [Answer(source) for source in self.sources]
        sampling = self.sampling
        if attempt > 1 and sampling.temperature > 0:  # another draw, the same on all sides
            sampling = sampling.model_copy(update={"seed": sampling.seed + attempt - 1})
        turn = Turn(len(self.turns) + 1, prompt, answers, order, self.blind, attempt, sampling)
        self._append(
            "prompt",
            turn,
            text=prompt,
            models=[source.model_dump(exclude_defaults=True) for source in self.sources],
            sampling=sampling.model_dump(),
            system=self.system,
            blind=self.blind,
        )
        self.turns.append(turn)
        return turn

    def again(self, prompt: str | None = None) -> Turn:
        """The last turn once more: the same prompt, or another in its place. What was said to it is dropped.

        DiskFullError as in `ask`: then the turn stays as it was.
        """
        self.stop()
        last = self.turns.pop()
        try:
            return self.ask(last.prompt if prompt is None else prompt, last.attempt + 1)
        except EspalierError:
            self.turns.append(last)
            raise

    def start(self, turn: Turn) -> None:
        """Let all sides answer at the same time, in the background."""
        for side in range(len(turn.answers)):
            self._start(turn, side)

    def stop(self, turn: Turn | None = None, side: int | None = None) -> None:
        """Stop one side, all of a turn, or all there are; what was said so far stays."""
        turns = self.turns if turn is None else [turn]
        for each in turns:
            for place, answer in enumerate(each.answers):
                if answer.live and side in (None, place):
                    answer.stopping = True
                    if answer.identity:
                        self._client.cancel(answer.identity)

    def messages(self, turn: Turn, side: int) -> list[Message]:
        """History of one side up to `turn`: its own answers; a prompt it never answered is left out."""
        found = [Message(role="system", content=self.system)] if self.system.strip() else []
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
        self._start(turn, side)
        try:
            while answer.live:
                yield answer
                answer.ended.wait(REDRAW)
            yield answer
        finally:
            if answer.live:
                self.stop(turn, side)
                answer.ended.wait(2 * PATIENCE)

    # --- judging ----------------------------------------------------------------------------------------------

    @full_disk_told()
    def vote(self, turn: Turn, verdict: str) -> None:
        """Who answered better: `A` … `D` by place, `tie` or `bad`; once a turn, also while it streams.

        InputError for anything else; DiskFullError where the transcript has no room for it: then nothing was voted.
        """
        if verdict not in verdicts(len(turn.answers)):
            raise InputError(f"{verdict!r} is no vote between {len(turn.answers)} answers.")
        if turn.vote is not None:
            raise InputError("This prompt was voted on already.")
        shown = [turn.answers[side].source for side in turn.order]
        place = "ABCD".find(verdict)
        self._append(
            "vote",
            turn,
            verdict=verdict,
            blind=turn.blind,
            streaming=any(answer.live for answer in turn.answers),
            order=[source.key for source in shown],
            titles=[source.title for source in shown],
            winner=shown[place].key if len(verdict) == 1 and place >= 0 else None,
        )
        turn.vote = verdict

    # --- inside -----------------------------------------------------------------------------------------------

    def _start(self, turn: Turn, side: int) -> None:
        answer = turn.answers[side]
        if answer.started:
            return
        answer.started, answer.began = True, time.monotonic()
        threading.Thread(target=self._fill, args=(turn, side), name=f"side {side}", daemon=True).start()

    def _fill(self, turn: Turn, side: int) -> None:
        answer = turn.answers[side]
        try:
            if self._may_begin(answer):
                self._listen(turn, side)
        except EspalierError as error:
            answer.fail(error)
        except OSError as error:
            log.exception("no inference worker")
            answer.fail(RunError(f"The inference worker cannot be started: {error.strerror or error}."))
        finally:
            answer.settle()
            try:
                self._keep(turn, side)
            finally:
                answer.ended.set()

    def _keep(self, turn: Turn, side: int) -> None:
        """Write the answer's line. A full disk is said beneath the answer and keeps nobody waiting for its end."""
        answer = turn.answers[side]
        try:
            self._write(turn, side)
        except OSError as error:
            log.warning("an answer of %s was not kept: %s", self.id, error)
            said = f"not kept in the conversation's file: {error.strerror or error}"
            answer.notice = f"{answer.notice} {said}".strip() if answer.state == "failed" else said

    def _may_begin(self, answer: Answer) -> bool:
        while not self._over(answer) and (reason := self.hold()):
            answer.notice = reason
            time.sleep(LOOK)
        return not answer.stopping

    def _listen(self, turn: Turn, side: int) -> None:
        answer = turn.answers[side]
        given_up = 0.0
        stream = self._client.generate(answer.source, self.messages(turn, side), turn.sampling, self.id)
        with closing(stream) as events:
            answer.identity = events.id
            if answer.stopping:  # asked for in between
                self._client.cancel(events.id)
            for event in events:
                answer.hear(event)
                if self._over(answer):
                    if not given_up:
                        self._client.cancel(events.id)
                    given_up = given_up or time.monotonic() + PATIENCE
                    if time.monotonic() > given_up:
                        break

    def _over(self, answer: Answer) -> bool:
        """Whether it was stopped, or nobody looks any more."""
        if self._seen is not None and time.monotonic() - self._seen > UNSEEN:
            answer.stopping = True
        return answer.stopping

    def _write(self, turn: Turn, side: int) -> None:
        answer = turn.answers[side]
        self._append(
            "answer",
            turn,
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
            stats=answer.stats.model_dump() if answer.stats else None,
            ids=list(answer.ids),
        )

    def _append(self, kind: str, turn: Turn, **fields: object) -> None:
        if self._transcript is not None:
            self._transcript.append(kind, conversation=self.id, turn=turn.number, attempt=turn.attempt, **fields)
