"""Who computes next: several answers share one device by time, so that none waits for another and a faster model stays
faster.

Each step goes to the answer that has used the least device time so far. Equal shares of time, not of tokens: a pruned
model beside the dense one shows its speed.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from core.chat.decoding import Answer, encode
from core.chat.models import Held
from core.chat.protocol import PAUSED, Event, Failed, Finished, Generate, Piece, Started, Stats, Waiting
from core.chat.shelf import Item, Shelf
from core.chat.threads import Threads
from core.device_use import POLL_S, Use
from core.errors import EspalierError

SAY_PAUSED_S = 0.25
Reason = Literal["stop", "length", "context", "cancelled"]


@dataclass
class Job:
    """An answer under way. Times in seconds of time.monotonic; `used` is device time, which decides who is next."""

    request: Generate
    item: Item
    ready: float
    load_seconds: float = 0.0
    used: float = 0.0
    decode: float = 0.0
    first: float = 0.0
    last: float = 0.0
    answer: Answer | None = None
    steps: Iterator[str | None] | None = None

    @property
    def id(self) -> str:
        return self.request.id


class Engine:
    """Runs in the worker's main thread; `add`, `cancel` and `active` may be called from any."""

    def __init__(
        self, shelf: Shelf, send: Callable[[Event], None], threads: Threads | None = None, use: Use | None = None
    ) -> None:
        self._shelf, self._send, self._threads, self._use = shelf, send, threads, use or Use(None)
        self._said_paused = 0.0
        self._jobs: list[Job] = []
        self._cancelled: set[str] = set()
        self._wake = threading.Condition()

    def add(self, request: Generate, item: Item, load_seconds: float) -> None:
        """Queue an answer; `item` is in use until it ends."""
        with self._wake:
            # A newcomer starts level with who had least: it neither waits for the others nor makes them wait.
            used = min((job.used for job in self._jobs), default=0.0)
            self._jobs.append(Job(request, item, time.monotonic(), load_seconds, used=used))
            self._wake.notify()

    def cancel(self, request: str) -> None:
        """Stop an answer before its next step, also one that is only going to be added."""
        with self._wake:
            self._cancelled.add(request)

    def cancelled(self, request: str) -> bool:
        """Whether somebody asked for it to stop."""
        return request in self._cancelled

    def active(self) -> tuple[str, ...]:
        """Ids of the answers under way."""
        with self._wake:
            return tuple(job.id for job in self._jobs)

    def forget(self, request: str) -> None:
        """Drop the note that a request was cancelled, once it has ended."""
        with self._wake:
            self._cancelled.discard(request)

    def run_forever(self) -> None:
        """Step by step; sleeps while there is nothing to do, and while a run measures speed on this device."""
        with torch.inference_mode():
            while True:
                with self._wake:
                    while not self._jobs:
                        self._wake.wait()
                    job = min(self._jobs, key=lambda job: (job.id not in self._cancelled, job.used))
                if job.id not in self._cancelled and not self._use.enter():
                    self._pause()
                    continue
                if self._threads is not None:
                    self._threads.adapt()
                self._advance(job)
                self._use.leave()

    def _pause(self) -> None:
        now = time.monotonic()
        if now - self._said_paused >= SAY_PAUSED_S:
            self._said_paused = now
            for identity in self.active():
                self._send(Waiting(id=identity, reason=PAUSED))
        time.sleep(POLL_S)

    def _advance(self, job: Job) -> None:
        if job.id in self._cancelled:
            self._end(job, "cancelled")
            return
        start = time.monotonic()
        try:
            self._step(job)
        except StopIteration:
            assert job.answer is not None
            self._end(job, job.answer.reason)
        except Exception as error:  # noqa: BLE001 - one answer failing must not stop the others
            self._fail(job, error)
        finally:
            spent = time.monotonic() - start
            job.used += spent

    def _step(self, job: Job) -> None:
        if job.steps is None or job.answer is None:
            self._begin(job)
            return
        start = time.monotonic()
        before = job.answer.tokens
        text = next(job.steps)
        now = time.monotonic()
        if job.answer.tokens > before:
            if job.first:
                job.decode += now - start
            job.first = job.first or now
            job.last = now
        if text:
            self._send(Piece(id=job.id, text=text, tokens=job.answer.tokens, seconds=job.last - job.first))

    def _begin(self, job: Job) -> None:
        held: Held = job.item.model
        ids = encode(held.tokenizer, job.request.messages)
        job.answer = Answer(held.model, held.tokenizer, ids, job.request.sampling, held.kept, held.info.context)
        job.steps = job.answer.steps()
        note = "" if held.info.chat_template else "No chat template in this model: it continues the text."
        self._send(
            Started(
                id=job.id, prompt_tokens=job.answer.prompt_tokens, reused_tokens=job.answer.reused_tokens, note=note
            )
        )

    def _end(self, job: Job, reason: Reason) -> None:
        self._close(job)
        self._send(Finished(id=job.id, reason=reason, stats=_stats(job)))

    def _fail(self, job: Job, error: Exception) -> None:
        failed = failure(job.id, error)
        error.__traceback__ = None  # its frames hold tensors
        self._close(job)
        self._send(failed)

    def _close(self, job: Job) -> None:
        close: Any = getattr(job.steps, "close", None)
        if close is not None:
            close()
        job.steps = None
        with self._wake:
            self._jobs.remove(job)
            self._cancelled.discard(job.id)
        self._shelf.give_back(job.item)


def _stats(job: Job) -> Stats | None:
    if job.answer is None:
        return None
    return Stats(
        prompt_tokens=job.answer.prompt_tokens,
        reused_tokens=job.answer.reused_tokens,
        tokens=job.answer.tokens,
        load_seconds=job.load_seconds,
        first_token_seconds=max(job.first - job.ready, 0.0),
        seconds=job.last - job.first,
        own_seconds=job.decode,
    )


def failure(request: str, error: Exception) -> Failed:
    """An exception as a sentence for people and what to do."""
    if isinstance(error, EspalierError):
        return Failed(id=request, message=error.message, advice=error.advice)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return Failed(
            id=request,
            message="Memory ran out while this model was working.",
            advice="Start a new conversation, ask for a shorter answer, or choose a smaller model.",
        )
    return Failed(
        id=request,
        message=f"{type(error).__name__}: {error}",
        advice="The inference worker's log (chat/worker.log) has the details.",
    )
