"""The inference worker: `python -m core.chat.worker`. Models live here and nowhere else; ending it frees all their
memory.

Three threads: this one computes (core.chat.engine), one reads requests (so that a cancel is never behind the work it
stops, and the end of the app is noticed at once), one loads models (so that an answer goes on while another model
loads).
"""

import argparse
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

from core.chat.protocol import (
    PAUSED,
    Ask,
    Cancel,
    Event,
    Evicted,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Loading,
    Ready,
    Report,
    Request,
    Score,
    Source,
    Unload,
    Waiting,
    line,
    read_request,
)
from core.errors import Cancelled, EspalierError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from core.chat.models import Held
    from core.chat.shelf import Item

log = logging.getLogger("espalier.chat")
TICK = 0.25  # seconds between two words about a load that goes on


class Wire:
    """The pipe to the app. Requests are read in a thread of their own; any thread may send."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader, self._writer = reader, writer
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """One event; the process ends if nobody is there to read it."""
        try:
            with self._lock:
                self._writer.write(line(event))
                self._writer.flush()
        except (BrokenPipeError, ValueError):
            os._exit(0)

    def requests(self) -> "queue.SimpleQueue[Request]":
        """Requests as they come. When the app closes the pipe, or dies, this process ends at once."""
        found: queue.SimpleQueue[Request] = queue.SimpleQueue()

        def read() -> None:
            for text in self._reader:
                try:
                    found.put(read_request(text))
                except ValueError:
                    log.exception("a line that is no request")
            os._exit(0)

        threading.Thread(target=read, name="requests", daemon=True).start()
        return found


class Worker:
    """Turns requests into work for the engine and the loader."""

    def __init__(self, wire: Wire, device: str, limit: int | None, decoding: str = "auto") -> None:
        from core.chat import models
        from core.chat.engine import Engine
        from core.chat.manners import Manners
        from core.chat.sharing import Ways
        from core.chat.shelf import Shelf
        from core.chat.threads import Threads

        self._wire, self._device = wire, device
        self._shelf: Shelf = Shelf(lambda: models.free_bytes(device), models.reclaim, self._gone, limit)
        threads = Threads() if device == "cpu" else None
        self._engine: Engine = Engine(
            self._shelf, wire.send, threads, Manners.of_machine(device), Ways(device, decoding), device
        )
        self._loading = Manners.of_machine(device)  # the loader's own: the engine's is for one thread alone
        self._loads: queue.SimpleQueue[Load | Generate | Score] = queue.SimpleQueue()

    def run(self, requests: "queue.SimpleQueue[Request]") -> None:
        """Never returns."""

        def dispatch() -> None:
            while True:
                self._handle(requests.get())

        def load() -> None:
            while True:
                self._load(self._loads.get())

        for target in (dispatch, load):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        self._engine.run_forever()

    def _handle(self, request: Request) -> None:
        if isinstance(request, Cancel):
            self._engine.cancel(request.id)
        elif isinstance(request, Unload):
            self._shelf.unload(request.key, request.id)
        elif isinstance(request, Ask):
            self._wire.send(self._report(request.id))
        elif isinstance(request, Generate) and (item := self._shelf.take(request.source.key)) is not None:
            self._engine.add(request, [item], 0.0)
        else:
            self._loads.put(request)

    def _load(self, request: Load | Generate | Score) -> None:
        from core.chat.engine import failure

        start = time.monotonic()
        sources = [request.source, *([request.dense] if isinstance(request, Score) else [])]
        items: list[Item] = []
        try:
            for source in sources:
                items.append(self._shelf.take(source.key) or self._bring(source, request.id, items))
        except Exception as error:
            for item in items:
                self._shelf.give_back(item)
            self._engine.forget(request.id)
            if isinstance(error, Cancelled):
                self._wire.send(Finished(id=request.id, reason="cancelled", stats=None))
                return
            log.exception("cannot load %s", request.source.key)
            self._wire.send(failure(request.id, error))
        else:
            if isinstance(request, Load):
                self._wire.send(Loaded(id=request.id, info=items[0].model.info))
                self._shelf.give_back(items[0])
            else:
                self._engine.add(request, items, time.monotonic() - start)

    def _bring(self, source: Source, identity: str, held: "list[Item]") -> "Item":
        """Make room, then load, while nobody measures speed. Cancelled if the request was; `held` it has already."""
        from core.chat import models

        said = 0.0

        def going_on(event: Event) -> bool:
            nonlocal said
            if time.monotonic() - said >= TICK:
                said = time.monotonic()
                self._wire.send(event)
            return not self._engine.cancelled(identity)

        def waiting(reason: str) -> bool:
            return going_on(Waiting(id=identity, reason=reason))

        def paused() -> None:
            if not waiting(PAUSED):
                raise Cancelled

        def progress(done: float, total: float, unit: str) -> None:
            self._loading.pass_by(paused)
            if not going_on(Loading(id=identity, title=source.title, done=done, total=total, unit=unit)):
                raise Cancelled

        try:
            progress(0, 0, "")
            need, mine = models.weight_bytes(source, self._device), frozenset(item.key for item in held)
            ready = False
            while not ready:  # whoever measured meanwhile may have taken the room
                self._loading.pass_by(paused)
                self._loading.leave()  # room may be that of answers which a measurement pauses: it must get its turn
                self._shelf.make_room(need, identity, waiting, mine)
                ready = self._loading.enter()
            loaded: Held = models.load(source, self._device, progress)
        finally:
            self._loading.leave()
        return self._shelf.put(source.key, source.title, loaded.info.memory_bytes, loaded)

    def _gone(self, request: str, item: "Item", reason: str) -> None:
        self._wire.send(Evicted(id=request, key=item.key, title=item.title, reason=reason))

    def _report(self, request: str) -> Report:
        import psutil

        return Report(
            id=request,
            pid=os.getpid(),
            device=self._device,
            models=tuple(item.model.info for item in self._shelf.items()),
            active=self._engine.active(),
            memory_bytes=psutil.Process().memory_info().rss,
            free_bytes=self._shelf.room(),
            together=self._engine.ways.together,
        )


@contextlib.contextmanager
def _undisturbing(wire: Wire, device: str) -> "Iterator[Callable[[], None]]":
    """The heavy imports, like loading, keep out of the way of a measurement of speed; yields what to call in between.

    Whoever waits for the worker hears why: a Waiting without an id, and one without a reason when it goes on.
    """
    from core.chat.manners import Manners

    manners = Manners.of_machine(device)
    said = False

    def say() -> None:
        nonlocal said
        if not said:
            wire.send(Waiting(id="", reason=PAUSED))
        said = True

    def pass_by() -> None:
        nonlocal said
        manners.pass_by(say)
        if said:
            wire.send(Waiting(id="", reason=""))
        said = False

    try:
        pass_by()
        yield pass_by
    finally:
        manners.leave()


def main(arguments: list[str] | None = None) -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--memory-limit", type=int, default=None, metavar="BYTES", help="the models' sizes together")
    parser.add_argument(
        "--decoding", default="auto", choices=["auto", "turns", "together"], help="several answers: in turn or at once"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Whatever a library prints goes to the log: the pipe carries events and nothing else.
    writer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    wire = Wire(sys.stdin.buffer, writer)
    requests = wire.requests()  # before the heavy imports: the app may end while they run

    from core import device as hardware

    try:
        device = hardware.resolve_device(options.device)
        with _undisturbing(wire, device) as pass_by:
            hardware.torch_device(device)  # imports torch
            pass_by()
            worker = Worker(wire, device, options.memory_limit, options.decoding)  # and transformers
    except EspalierError as error:
        wire.send(Failed(id="", message=error.message, advice=error.advice, worker=True))
        sys.exit(1)
    wire.send(Ready(pid=os.getpid(), device=device))
    with contextlib.suppress(KeyboardInterrupt):
        worker.run(requests)


if __name__ == "__main__":
    main()
