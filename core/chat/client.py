"""The app's end of the inference worker. No torch here: models, and their memory, are the worker's.

The worker's output is always drained, by a thread, whether anybody still listens or not. A worker that dies is said to
everyone who waits for it and started anew; its models come back with the next prompt.
"""

import atexit
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import IO, Self

from core import settings
from core.chat import sources
from core.chat.conversation import Conversation
from core.chat.protocol import (
    ENDS,
    Ask,
    Cancel,
    Event,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Message,
    ModelInfo,
    Ready,
    Report,
    Request,
    Sampling,
    Score,
    Source,
    Unload,
    Waiting,
    conversation,
    line,
    read_event,
)
from core.errors import InputError, RunError
from core.jobs.failures import full_disk_told

log = logging.getLogger("espalier.chat")
POLL = 0.2
"""Seconds between two events of a stream where the worker says nothing: how long a listener is kept without a word."""
LOG_BYTES = 1 << 20
"""How much of worker.log is kept when a worker starts; what that one says is added."""
SPIN = "10000"
"""GOMP_SPINCOUNT of the worker: how often a thread with nothing to do looks again before it sleeps.

The default looks far longer and, on cores that others use too, keeps the thread it waits for from running: measured
on two busy cores, a prompt of 64 tokens took 11 s instead of 1.6 s."""


STARTING = "starting the inference worker"
ENDED = "Somebody else ended all answers, to free memory or to compute elsewhere."


@dataclass(frozen=True)
class Listener:
    """Who hears the events of one request. `owner` waits for an answer or a model; None: nobody is kept waiting."""

    events: "queue.SimpleQueue[Event]"
    owner: str | None


@dataclass(frozen=True)
class Status:
    """What the inference worker is doing. `report` is None while it is not running or too busy to answer."""

    running: bool
    pid: int | None
    report: Report | None
    last_crash: str


class Generation:
    """One answer as it comes: an iterator of events that ends after Finished or Failed. Closing it stops the answer."""

    def __init__(self, client: "ChatClient", identity: str, events: "queue.SimpleQueue[Event]") -> None:
        self.id = identity
        self._client, self._events = client, events
        self._ended = False

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event; a Waiting where there is none within POLL seconds."""
        if self._ended:
            raise StopIteration
        try:
            event = self._events.get(timeout=POLL)
        except queue.Empty:
            return Waiting(id=self.id, reason=self._client.starting)
        if isinstance(event, ENDS):
            self._ended = True
            self._client.forget(self.id)
        return event

    def close(self) -> None:
        """Stop the answer if it still runs; nothing more is heard of it."""
        if not self._ended:
            self._ended = True
            self._client.cancel(self.id)
            self._client.forget(self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ChatClient:
    """One inference worker, started when it is first needed. Safe to call from many threads."""

    def __init__(
        self, home: Path, *, device: str = "auto", memory_limit: int | None = None, decoding: str = "auto"
    ) -> None:
        self._home, self._device, self._limit, self._decoding = home, device, memory_limit, decoding
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._trouble: Failed | None = None  # why the worker could not start, in its own words
        self._last_crash = ""
        self._starting = STARTING
        self._listeners: dict[str, Listener] = {}
        self._numbers = count(1)

    # --- models -----------------------------------------------------------------------------------------------

    def source(self, key: str, title: str = "") -> Source:
        """Where the model `key` comes from (core.chat.sources). ModelError if nowhere."""
        return sources.source(self._home, key, title)

    def load(self, key: str, title: str = "", said: Callable[[str], None] = lambda _: None) -> ModelInfo:
        """Load a model now, so that the first prompt need not wait; `said` hears what is waited for.

        Raises InputError or RunError with the worker's reason.
        """
        for event in self.request(lambda i: Load(id=i, source=self.source(key, title))):
            if isinstance(event, Loaded):
                return event.info
            if isinstance(event, Waiting) and event.reason:
                said(event.reason)
            if isinstance(event, Failed):
                raise (RunError if event.worker else InputError)(event.message, event.advice)
        raise RunError(f"Loading {title or key} was cancelled.")

    def unload(self, key: str) -> None:
        """Let one model go, as soon as its last answer has ended."""
        if self._process is not None:
            identity, _ = self._send(lambda i: Unload(id=i, key=key))
            self.forget(identity)

    # --- answers ----------------------------------------------------------------------------------------------

    def conversation(self, models: Sequence[tuple[str, str]], sampling: Sampling | None = None) -> Conversation:
        """A new conversation with `models`, given as (key, title), side by side."""
        return Conversation(self, [self.source(*model) for model in models], sampling, self._home / "chat")

    def generate(
        self,
        key: str | Source,
        messages: Sequence[Message] | Sequence[tuple[str, str]],
        sampling: Sampling | None = None,
        owner: str = "",
    ) -> Generation:
        """Answer `messages` (Message objects or (role, content) pairs); the model is loaded first where it is not.

        Those who ask under different `owner` names share the device equally.
        """
        source = key if isinstance(key, Source) else self.source(key)
        turns = tuple(m if isinstance(m, Message) else conversation([m])[0] for m in messages)
        wanted = sampling or Sampling()
        return self.request(lambda i: Generate(id=i, source=source, messages=turns, sampling=wanted, owner=owner))

    def request(self, make: Callable[[str], Request]) -> Generation:
        """Send any request, made with the id that it is given; its events, to its end."""
        return Generation(self, *self._send(make))

    def cancel(self, identity: str) -> None:
        """Stop an answer within a token; it ends with Finished(reason="cancelled"). Unknown ids are ignored."""
        with self._lock:
            listener = self._listeners.get(identity)
            if listener is not None and self._process is not None:
                self._write(Cancel(id=identity))
                if not self._ready:  # it reads that once it is up
                    listener.events.put(Finished(id=identity, reason="cancelled", stats=None))

    def forget(self, identity: str) -> None:
        """Nobody listens to this request any more."""
        with self._lock:
            self._listeners.pop(identity, None)

    # --- the worker -------------------------------------------------------------------------------------------

    @property
    def device(self) -> str:
        """Where the worker computes: `auto`, `cpu` or `cuda:<index>`, as asked for."""
        return self._device

    def others(self, owner: str) -> int:
        """How many answers and models are under way that others than `owner` wait for."""
        with self._lock:
            return sum(each.owner not in (None, owner) for each in self._listeners.values())

    def leave(self, owner: str, *, device: str | None = None, even_others: bool = False) -> int:
        """End the worker and free all its memory, to compute on `device` from now on if one is given.

        Nothing is done while others than `owner` are waited for: how many is the answer, 0 once it ended. With
        `even_others` theirs fails, with a sentence that says so, and what `owner` waits for is cancelled.
        """
        with self._lock:
            if device == self._device:
                return 0
            if not even_others and (others := self.others(owner)):
                return others
            process, listeners = self._detach()
            self._device = device or self._device
        self._end(process, listeners, owner)
        return 0

    @property
    def starting(self) -> str:
        """What all requests wait for while the worker runs but is not up yet; '' once it is."""
        return self._starting if self._process is not None and not self._ready else ""

    def status(self, timeout: float = 2.0) -> Status:
        """What the worker holds and does; asks it, but never starts it."""
        with self._lock:
            process = self._process
            if process is None or not self._ready:
                pid = process.pid if process else None
                return Status(process is not None, pid, None, self._last_crash)
            identity, events = self._send(lambda i: Ask(id=i))
        try:
            found = events.get(timeout=timeout)
        except queue.Empty:
            found = None
        self.forget(identity)
        return Status(True, process.pid, found if isinstance(found, Report) else None, self._last_crash)

    def close(self) -> None:
        """End the worker and free all its memory; the next request starts it again."""
        with self._lock:
            process, listeners = self._detach()
        self._end(process, listeners)

    def _detach(self) -> "tuple[subprocess.Popen[bytes] | None, dict[str, Listener]]":
        """Lock held. The worker is no longer ours: it, and who listened to it."""
        process, self._process = self._process, None
        self._ready = False
        listeners, self._listeners = self._listeners, {}
        return process, listeners

    def _end(
        self, process: "subprocess.Popen[bytes] | None", listeners: dict[str, Listener], owner: str | None = None
    ) -> None:
        """End a detached worker. What was under way is cancelled; if an `owner` wanted that, others hear of it."""
        if process is None:
            return
        for identity, each in listeners.items():
            if owner is None or each.owner in (None, owner):
                each.events.put(Finished(id=identity, reason="cancelled", stats=None))
            else:
                each.events.put(Failed(id=identity, message=ENDED, advice="Ask once more.", worker=True))
        assert process.stdin is not None
        try:
            process.stdin.close()  # the worker ends when its input does
            process.wait(timeout=2)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        atexit.unregister(self.close)

    def _send(self, make: Callable[[str], Request]) -> tuple[str, "queue.SimpleQueue[Event]"]:
        """Number a request, listen for its events, send it. The worker is started if it does not run."""
        identity = f"{os.getpid()}-{next(self._numbers)}"
        request = make(identity)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with self._lock:
            self._ensure()
            self._listeners[identity] = Listener(events, _owner(request))
            self._write(request)
        return identity, events

    def _write(self, request: Request) -> None:
        """Lock held. A worker that just died is noticed by the thread that drains it, which tells the listeners."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line(request))
            self._process.stdin.flush()
        except OSError:
            log.warning("the inference worker is gone; request %s was not sent", request.id)

    @full_disk_told()
    def _ensure(self) -> None:
        """Lock held. Start the worker if there is none. DiskFullError if its log cannot be begun."""
        if self._process is not None:
            return
        self._trouble, self._ready, self._starting = None, False, STARTING
        command = [sys.executable, "-m", "core.chat.worker", "--device", self._device, "--decoding", self._decoding]
        if self._limit is not None:
            command += ["--memory-limit", str(self._limit)]
        folder = self._home / "chat"
        folder.mkdir(parents=True, exist_ok=True)
        with _log(folder / "worker.log", self._device) as errors:
            self._process = subprocess.Popen(
                command,
                cwd=settings.REPOSITORY,
                env={"GOMP_SPINCOUNT": SPIN, **settings.child_environment(), "ESPALIER_HOME": str(self._home)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        drain = threading.Thread(
            target=self._drain, args=(self._process, self._process.stdout), name="chat-events", daemon=True
        )
        drain.start()
        atexit.register(self.close)

    def _drain(self, process: "subprocess.Popen[bytes]", output: IO[bytes]) -> None:
        """Read events until the worker's output ends; then say what happened and start it anew."""
        with output:
            for text in output:
                try:
                    self._hear(read_event(text))
                except ValueError:
                    log.exception("a line that is no event")
        code = process.wait()
        with self._lock:
            if process.stdin is not None:
                with suppress(OSError):  # a request that it never read
                    process.stdin.close()
            if self._process is not process:
                return  # closed on purpose
            was_ready, self._process, self._ready = self._ready, None, False
            listeners, self._listeners = self._listeners, {}
            failed = self._trouble or _crash(code, was_ready)
            self._last_crash = failed.message
            for identity, each in listeners.items():
                each.events.put(failed.model_copy(update={"id": identity}))
            if was_ready:  # one that never came up would only fail again
                self._ensure()

    def _hear(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Ready):
                self._ready = True
            elif isinstance(event, Failed) and event.worker:
                self._trouble = event
            elif isinstance(event, Waiting) and not event.id:
                self._starting = event.reason or STARTING
            elif event.id in self._listeners:
                self._listeners[event.id].events.put(event)


def _owner(request: Request) -> str | None:
    """Who waits for the end of a request: of a load nobody who asks can be the one, so each has an owner of its own."""
    if isinstance(request, Load):
        return f"load {request.id}"
    return request.owner if isinstance(request, Generate | Score) else None


def _log(path: Path, device: str) -> IO[bytes]:
    """The worker's log, to be appended to: what the last worker said before it died stays, LOG_BYTES of it at most."""
    with suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            with path.open("rb") as old:
                old.seek(-LOG_BYTES, os.SEEK_END)
                tail = old.read()
            path.write_bytes(tail.partition(b"\n")[2] or tail)
    log_file = path.open("ab", buffering=0)
    log_file.write(f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: a worker starts on {device}\n".encode())
    return log_file


def _crash(code: int, was_ready: bool) -> Failed:
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    why = ", most likely because memory ran out" if code == -signal.SIGKILL else ""
    advice = (
        "It is starting again: ask once more." if was_ready else "chat/worker.log in the home folder has the reason."
    )
    return Failed(id="", message=f"The inference worker {how}{why}.", advice=advice, worker=True)
