"""A saved conversation, told again at the speed at which it was recorded. No model answers: pages label it a replay."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import count

from core.chat.conversation import Conversation
from core.chat.protocol import Event, Failed, Finished, Message, Piece, Sampling, Source, Stats, Waiting
from core.chat.transcripts import Saved, SavedAnswer
from core.errors import InputError

LONGEST_WAIT = 3.0
"""Seconds before a first word at most: loading is not told again."""
USUAL = 20.0
"""Tokens per second of an answer whose speed was not recorded."""
_WORDS = re.compile(r"\s*\S+\s*$|\s*\S+")


class Replay:
    """Answers as the client does, from a file. `next_prompt` asks what was asked; histories are not looked at."""

    def __init__(self, saved: Saved) -> None:
        if not saved.turns:
            raise InputError(f"The transcript {saved.id} holds no prompt.", "Choose another one.")
        self.saved = saved
        self._stopped: set[str] = set()
        self._numbers = count(1)
        self._lock = threading.Lock()

    def conversation(self) -> Conversation:
        """An empty conversation that `play` fills; nothing is written."""
        sources = [Source(key=key, title=title) for key, title in self.saved.turns[0].models]
        label = f"Replay of {self.saved.created[:16].replace('T', ' ')} UTC"
        return Conversation(self, sources, None, None, label)

    def next_prompt(self, conversation: Conversation) -> str | None:
        """What was asked next, or None at the end."""
        place = len(conversation.turns)
        return self.saved.turns[place].prompt if place < len(self.saved.turns) else None

    def play(self, conversation: Conversation) -> None:
        """Ask what was asked next; its answers come as they came."""
        prompt = self.next_prompt(conversation)
        if prompt is None:
            raise InputError("The transcript is at its end.")
        recorded = self.saved.turns[len(conversation.turns)]
        conversation.sources = [Source(key=key, title=title) for key, title in recorded.models]
        conversation.sampling = _sampling(recorded.sampling)
        conversation.start(conversation.ask(prompt))

    def generate(
        self,
        key: Source,
        messages: Sequence[Message],
        sampling: Sampling | None = None,  # noqa: ARG002 - it is told as it was
        owner: str = "",  # noqa: ARG002
    ) -> "Told":
        """The recorded answer of this model to the last prompt of `messages`."""
        asked = sum(message.role == "user" for message in messages)
        turn = next((t for t in self.saved.turns[asked - 1 :] if t.prompt == messages[-1].content), None)
        answers = list(turn.answers.values()) if turn else []
        identity = f"replay {next(self._numbers)}"
        answer = next((each for each in answers if each.key == key.key), None)
        return Told(identity, answer, self._stopped)

    def cancel(self, identity: str) -> None:
        """Stop telling one answer."""
        with self._lock:
            self._stopped.add(identity)


class Told:
    """One recorded answer as it comes again."""

    def __init__(self, identity: str, answer: SavedAnswer | None, stopped: set[str]) -> None:
        self.id = identity
        self._stopped = stopped
        self._events = self._tell(answer)

    def __iter__(self) -> "Told":
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Nothing more is told."""
        self._stopped.add(self.id)

    def _tell(self, answer: SavedAnswer | None) -> Iterator[Event]:
        if answer is None or answer.state == "failed":
            notice = answer.notice if answer else "This side has no answer in the transcript."
            yield Failed(id=self.id, message=notice)
            return
        words = _WORDS.findall(answer.text)
        speed = answer.tokens_per_second or USUAL
        tokens = answer.tokens or len(words)
        first = time.monotonic() + min(answer.first_token_seconds or 0.0, LONGEST_WAIT)
        for place, word in enumerate(words):
            due = first + place * max(tokens - 1, 0) / speed / len(words)
            while (left := due - time.monotonic()) > 0:
                if self.id in self._stopped:
                    break
                time.sleep(min(left, 0.05))
                if left > 0.2:
                    yield Waiting(id=self.id, reason="")
            if self.id in self._stopped:
                yield Finished(id=self.id, reason="cancelled", stats=None)
                return
            done = max(1, round(tokens * (place + 1) / len(words)))
            yield Piece(id=self.id, text=word, tokens=done, seconds=(done - 1) / speed)
        yield self._end(answer, tokens, speed)

    def _end(self, answer: SavedAnswer, tokens: int, speed: float) -> Finished:
        seconds = max(tokens - 1, 0) / speed
        stats = Stats(
            prompt_tokens=0,
            reused_tokens=0,
            tokens=tokens,
            load_seconds=0.0,
            first_token_seconds=answer.first_token_seconds or 0.0,
            seconds=seconds,
            own_seconds=seconds,
            memory_bytes=answer.memory_bytes or 0,
        )
        reasons = {"stop": "stop", "length": "length", "context": "context"}
        reason = reasons.get(answer.reason, "cancelled" if answer.state == "stopped" else "stop")
        return Finished(id=self.id, reason=reason, stats=stats)


def _sampling(recorded: dict[str, object]) -> Sampling:
    try:
        return Sampling.model_validate(recorded)
    except ValueError:  # of another version: only shown
        return Sampling()
