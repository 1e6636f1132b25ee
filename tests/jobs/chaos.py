"""A process that loads everything once and then forks children, each of which may die at a moment that is asked for.

A moment is one thing that a child does to a file under the home or the cache: it opens one for writing, renames,
removes, makes a folder, or writes a line. At the n-th the child is killed by SIGKILL, before the thing is done; with
`torn`, after half of a line was written; with `full`, it lives on and from then on the disk has no room. The children
run what a worker or an app runs. Only imports are saved, which are not what is tested: the fresh process that verifies
a model, and the workers that an app starts, are forks, too.

One JSON object a line on stdin: {"do": "worker" | "app", "arguments": [...], "log": path, "die_at": n, or "die_on":
[pattern, which of those that fit], "torn": bool, "full": bool, "background": bool}; one on stdout: {"code": exit code
or minus the signal, "moments": names of those gone by, "stuck": bool}, or at once {"pid": process} for one in the
background. Who is stuck, took too long: it wrote to its log what it was at, and was killed.
"""

import errno
import faulthandler
import importlib
import json
import os
import re
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil

LOADED = (
    "peft", "torch", "transformers", "core.jobs.pipeline", "core.jobs.judging", "core.jobs.worker", "core.service",
    "core.evaluation.perplexity", "core.models.loading", "core.models.saving", "core.models.verify_process",
    "core.pruning.prune", "core.recovery.recover",
)  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")
MOST_HANDLES = 4096
STUCK_AFTER_S = 240
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Moments:
    """Counts what this process does to files below some folders, and ends it at the n-th."""

    def __init__(self, roots: list[str], request: dict[str, Any]) -> None:
        self.roots = tuple(os.path.realpath(root) for root in roots)
        self.die_at, self.torn, self.full = request.get("die_at"), bool(request.get("torn")), bool(request.get("full"))
        self.pattern, self.left = request.get("die_on") or ("", 0)
        self.seen: list[str] = []
        self.on = True
        self._write = os.write

    def install(self) -> None:
        """Watch from now on; it cannot be undone."""
        os.write = self._watched_write
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or not (event in CHANGES or event == "open"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        self._pass(event, arguments[0])

    def _watched_write(self, handle: int, data: bytes) -> int:
        half = data[: len(data) // 2] if self.torn else b""
        self._pass("write", f"/proc/self/fd/{handle}", lambda: self._write(handle, half))
        return self._write(handle, data)

    def _pass(self, event: str, path: Any, last: Callable[[], Any] = lambda: None) -> None:
        if not self.on or not isinstance(path, str | bytes | os.PathLike):
            return
        self.on = False  # what follows is ours
        place = os.path.realpath(os.fsdecode(path))
        root = next((root for root in self.roots if place.startswith(root + os.sep)), None)
        idle = place.endswith(".lock") or (event == "os.mkdir" and Path(place).exists())
        if root is not None and not idle:
            self.seen.append(f"{event} {os.path.relpath(place, root)}")
            if self.left and re.match(self.pattern, self.seen[-1]):
                self.left -= 1
                self.die_at = self.die_at if self.left else len(self.seen)
            if self.full and self.die_at is not None and len(self.seen) >= self.die_at and event in ("open", "write"):
                self.on = True
                raise OSError(errno.ENOSPC, "No space left on device")
            if len(self.seen) == self.die_at and not self.full:
                last()
                os.kill(os.getpid(), signal.SIGKILL)
        self.on = True


class Nursery:
    """A process of one thread that forks on behalf of one that has many, and tells how those forks ended.

    A fork of a process with threads may wait for ever for a lock that one of them held (of an import, say): apps and
    workers have threads. The nursery is made before them. It ends with the process that made it; its forks live on.
    """

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._said = self._ours.makefile("r")
        self._lock = threading.Lock()
        if os.fork() == 0:
            _nurse(theirs)
        theirs.close()

    def ask(self, *words: Any) -> int | None:
        """`("verify" | "work", argument, log)`: the fork; `("ended", fork)`: its exit code, None while it lives."""
        with self._lock:
            self._ours.sendall((json.dumps(words) + "\n").encode())
            answer: int | None = json.loads(self._said.readline())
        return answer


def _nurse(asked: socket.socket) -> NoReturn:
    """Answer until the other end is closed, then leave without a word."""
    try:
        os.setsid()
        os.closerange(3, asked.fileno())
        os.closerange(asked.fileno() + 1, MOST_HANDLES)
        with asked.makefile("r") as lines:
            for line in lines:
                do, *words = json.loads(line)
                answer = _ended(*words) if do == "ended" else _fork(do, *words)
                asked.sendall((json.dumps(answer) + "\n").encode())
    finally:
        os._exit(0)


def _ended(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _fork(do: str, argument: Any, log: str) -> int:
    """A worker at a run, or the process that verifies a model; what it prints goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.closerange(3, MOST_HANDLES)
        if do == "work":
            from core.jobs import worker

            _write_to(log, 1, 2)
            _verify_in(Nursery())
            code = worker.main([argument])
        else:
            from core.models import verify_process

            _write_to(log, 1)
            verify_process.main(*argument)
            code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - a fork must not fall through into its parent's loop
        traceback.print_exc()
    finally:
        _leave(code)


def _write_to(log: str, *outputs: int) -> None:
    """Let outputs go to a file. SIGUSR1 writes there what every thread is at."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in outputs:
        os.dup2(handle, number)
    os.close(handle)
    faulthandler.register(signal.SIGUSR1, file=2)


def _leave(code: int) -> NoReturn:
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _verify_in(nursery: Nursery) -> None:
    """Let `core.models.verification._ask` fork a nursery in place of starting a fresh process."""
    from core.models import verification

    def ask(arguments: list[str], scratch: Path, _progress: Any) -> dict[str, Any]:
        said = scratch / "said.txt"
        pid = nursery.ask("verify", arguments, str(said))
        assert pid is not None
        while (code := nursery.ask("ended", pid)) is None:
            time.sleep(0.01)
        assert code == 0, said.read_text()
        found: dict[str, Any] = json.loads(said.read_text().splitlines()[-1])
        return found

    verification._ask = ask


def child(request: dict[str, Any], tell: int) -> None:
    """What a fork does: the work that was asked for, with its output in `log`."""
    os.setsid()
    _write_to(request["log"], 1, 2)
    nursery = Nursery()  # while there is one thread
    roots = [os.environ["ESPALIER_HOME"], os.environ["ESPALIER_CACHE"]]
    moments = Moments(roots, request)
    tell_all = lambda: moments._write(tell, json.dumps(moments.seen).encode())  # noqa: E731
    code = 1
    try:
        if request["do"] == "worker":
            from core.jobs import worker

            _verify_in(nursery)
            moments.install()
            code = worker.main(request["arguments"])
        else:
            app(request["arguments"], moments, nursery)
            code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc()
    finally:
        moments.on = False
        with suppress(OSError):  # nobody listens to one in the background
            tell_all()
        _leave(code)


@dataclass
class Worker:
    """A worker that the app's nursery forked; to the supervisor what `subprocess.Popen` is."""

    nursery: Nursery
    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it lives."""
        if self.code is None:
            self.code = self.nursery.ask("ended", self.pid)
        return self.code


def worker_of(nursery: Nursery) -> Callable[..., Worker]:
    """`processes.start_worker` by a fork, in a session of its own, which keeps nothing of the app's open."""

    def begin(directory: Any, *_: Any, **__: Any) -> Worker:
        pid = nursery.ask("work", str(directory.path), str(directory.log_file))
        assert pid is not None
        return Worker(nursery, pid)

    return begin


def app(arguments: list[str], moments: Moments, nursery: Nursery) -> None:
    """What an app does: it owns the store, queues these experiments, and sees the queue to its end."""
    from core.experiment import Experiment
    from core.jobs import places, processes
    from core.service import Service

    processes.start_worker = worker_of(nursery)  # type: ignore[assignment]
    if "ESPALIER_TEST_DISK" in os.environ:
        places.DISK_KEPT_FREE = int(os.environ["ESPALIER_TEST_DISK"])
    moments.install()
    service = Service()
    service.submit([Experiment.from_yaml(text) for text in arguments])
    while service.run_list()["state"].isin(("RUNNING", "WAITING", "INTERRUPTED")).any():
        time.sleep(0.05)
    service.close()


def reap(background: set[int]) -> None:
    """Take note of the ends of those that nobody waits for."""
    for pid in list(background):
        if os.waitpid(pid, os.WNOHANG)[0]:
            background.discard(pid)


def serve() -> None:
    """Answer requests until stdin ends."""
    from core.jobs.worker import prepare_environment

    prepare_environment()
    for name in LOADED:
        importlib.import_module(name)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    background: set[int] = set()
    for line in sys.stdin:
        reap(background)
        request = json.loads(line)
        os.environ.update(request.get("environment", {}))
        ear, mouth = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ear)
            child(request, mouth)
        os.close(mouth)
        if request.get("background"):
            background.add(pid)
            os.close(ear)
            sys.stdout.write(json.dumps({"pid": pid}) + "\n")
            sys.stdout.flush()
            continue
        with os.fdopen(ear, "rb") as said:
            stuck = not select.select([said], [], [], STUCK_AFTER_S)[0]
            if stuck:
                end_stuck(pid)
            text = said.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer = {"code": code, "moments": json.loads(text or b"null"), "stuck": stuck}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def end_stuck(pid: int) -> None:
    """Let a child and all it started say in their logs what they are at, and kill them."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for number in (signal.SIGUSR1, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        time.sleep(1)


if __name__ == "__main__":
    serve()
