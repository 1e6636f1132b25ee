"""The inference worker's heart: several answers share one device, step by step, so that none waits for another.

Who is next, and whether answers take turns or compute at the same time, says core.chat.sharing. Between any two steps
an answer can be stopped, and a run that measures speed gets the device.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from core.chat.decoding import Answer, encode
from core.chat.manners import Manners
from core.chat.models import Held
from core.chat.protocol import PAUSED, Event, Failed, Finished, Generate, Piece, Score, Scored, Started, Stats, Waiting
from core.chat.scoring import Scoring
from core.chat.sharing import MOST, Shares, Ways
from core.chat.shelf import Item, Shelf
from core.chat.threads import Threads
from core.device_use import POLL_S
from core.errors import EspalierError

SAY_PAUSED_S = 0.25
SLICE_S = 0.05
"""Where answers compute together: after so long they meet, and it is seen who stops, who comes, who measures."""
Reason = Literal["stop", "length", "context", "cancelled"]


@dataclass(eq=False)
class Job:
    """An answer, or its scores, under way. Times in seconds of time.monotonic; `used` is device time."""

    request: Generate | Score
    items: tuple[Item, ...]
    ready: float
    load_seconds: float = 0.0
    used: float = 0.0
    decode: float = 0.0
    first: float = 0.0
    last: float = 0.0
    answer: Answer | None = None
    scoring: Scoring | None = None
    steps: Iterator[str | None] | None = None
    stream: Any = None
    over: bool = False

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def owner(self) -> str:
        return self.request.owner

    @property
    def tokens(self) -> int:
        return self.answer.tokens if self.answer else 0

    @property
    def decoding(self) -> bool:
        """Whether it is past its prompt: one token a step."""
        return self.first > 0


class Engine:
    """Runs in the worker's main thread; `add`, `cancel` and `active` may be called from any."""

    def __init__(
        self,
        shelf: Shelf,
        send: Callable[[Event], None],
        threads: Threads | None = None,
        manners: Manners | None = None,
        ways: Ways | None = None,
        device: str = "cpu",
    ) -> None:
        self._shelf, self._send, self._threads = shelf, send, threads
        self._manners, self.ways, self._device = manners or Manners([]), ways or Ways(device), device
        self._said_paused = 0.0
        self._jobs: list[Job] = []
        self._shares = Shares()
        self._cancelled: set[str] = set()
        self._wake = threading.Condition()
        self._pool = ThreadPoolExecutor(MOST, thread_name_prefix="answer")

    def add(self, request: Generate | Score, items: Sequence[Item], load_seconds: float) -> None:
        """Queue an answer, or scores of one; `items` are in use until it ends."""
        with self._wake:
            # A newcomer starts level with who had least: it neither waits for the others nor makes them wait.
            used = min((job.used for job in self._jobs if job.owner == request.owner), default=0.0)
            self._shares.enter(request.owner)
            self._jobs.append(Job(request, tuple(items), time.monotonic(), load_seconds, used=used))
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
        """Round by round; sleeps while there is nothing to do, and while a run measures speed on this machine."""
        with torch.inference_mode():
            while True:
                stopped, chosen = self._next()
                for job in stopped:
                    self._end(job, "cancelled")
                if not chosen:
                    continue
                if not self._manners.enter():
                    self._pause()
                    continue
                if self._threads is not None:
                    self._threads.adapt()
                self._round(chosen)
                self._manners.leave()

    def _next(self) -> tuple[list[Job], list[Job]]:
        """Jobs to stop, and those of the next round; waits for one."""
        with self._wake:
            while not self._jobs:
                self._wake.wait()
            stopped = [job for job in self._jobs if job.id in self._cancelled]
            going = [job for job in self._jobs if job.id not in self._cancelled]
            many = len(going) > 1 and all(job.decoding for job in going) and self.ways.at_once(_models(going))
            return stopped, self._shares.choose(going, MOST if many else 1, SLICE_S)

    def _pause(self) -> None:
        now = time.monotonic()
        if now - self._said_paused >= SAY_PAUSED_S:
            self._said_paused = now
            for identity in self.active():
                self._send(Waiting(id=identity, reason=PAUSED))
        time.sleep(POLL_S)

    def _round(self, chosen: list[Job]) -> None:
        """One step of one job, or a slice of time of several at once."""
        with self._wake:
            others = [job for job in self._jobs if job.id not in self._cancelled]
        compared = len(others) > 1 and all(job.decoding for job in others)
        models, before, start = _models(others), sum(job.tokens for job in chosen), time.monotonic()
        if len(chosen) == 1:
            self._advance(chosen[0])
        else:
            wait([self._pool.submit(self._slice, job, start + SLICE_S) for job in chosen])
        if compared:
            made = sum(job.tokens for job in chosen) - before
            self.ways.note(models, made, time.monotonic() - start, together=len(chosen) > 1)

    def _slice(self, job: Job, until: float) -> None:
        """In a thread and on a stream of its own. Each token is waited for: a job's steps never overlap."""
        if job.stream is None and self._device != "cpu":
            job.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(job.stream) if job.stream is not None else nullcontext():
            while time.monotonic() < until and not job.over and job.id not in self._cancelled:
                self._advance(job)

    def _advance(self, job: Job) -> None:
        start = time.monotonic()
        try:
            self._step(job)
        except StopIteration:
            self._end(job, job.answer.reason if job.answer else "stop")
        except Exception as error:  # noqa: BLE001 - one answer failing must not stop the others
            self._fail(job, error)
        finally:
            spent = time.monotonic() - start
            job.used += spent
            with self._wake:
                self._shares.charge(job.owner, spent)

    def _step(self, job: Job) -> None:
        if job.steps is None:
            self._begin(job)
            return
        start = time.monotonic()
        before = job.tokens
        text = next(job.steps)
        now = time.monotonic()
        if job.tokens > before:
            if job.first:
                job.decode += now - start
            job.first = job.first or now
            job.last = now
        if text:
            self._send(Piece(id=job.id, text=text, tokens=job.tokens, seconds=job.last - job.first))

    def _begin(self, job: Job) -> None:
        held: Held = job.items[0].model
        if isinstance(job.request, Score):
            dense: Held = job.items[-1].model
            job.scoring = Scoring(held, dense, job.request.messages, job.request.ids)
            job.steps = job.scoring.steps()
            return
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
        stats = _stats(job)
        self._close(job)
        if job.scoring is not None and reason != "cancelled":
            self._send(Scored(id=job.id, tokens=tuple(job.scoring.tokens), seconds=time.monotonic() - job.ready))
            return
        ids = tuple(job.answer.ids) if job.answer else ()
        self._send(Finished(id=job.id, reason=reason, stats=stats, ids=ids))

    def _fail(self, job: Job, error: Exception) -> None:
        failed = failure(job.id, error)
        error.__traceback__ = None  # its frames hold tensors
        self._close(job)
        self._send(failed)

    def _close(self, job: Job) -> None:
        close: Any = getattr(job.steps, "close", None)
        if close is not None:
            close()
        job.steps, job.over = None, True
        with self._wake:
            self._jobs.remove(job)
            self._cancelled.discard(job.id)
            if all(other.owner != job.owner for other in self._jobs):
                self._shares.leave(job.owner)
        for item in job.items:
            self._shelf.give_back(item)


def _models(jobs: Sequence[Job]) -> frozenset[str]:
    """What was measured for one set of models holds for it alone; the same model twice is another set."""
    return frozenset(f"{place} {key}" for place, key in enumerate(sorted(job.items[0].key for job in jobs)))


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
        memory_bytes=job.items[0].size + job.answer.cache_bytes(),
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
