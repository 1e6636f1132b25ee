"""A process that loads everything once and then forks children, each of which may die at a moment that is asked for.

A moment is one thing that a child does to a file under the home or the cache: it opens one for writing, renames,
removes, makes a folder, or writes a line. At the n-th the child is killed by SIGKILL, before the thing is done; with
`torn`, after half of a line was written; with `full`, it lives on and from then on the disk has no room. The children
run what a worker or an app runs. Only imports are saved, which are not what is tested: the fresh process that verifies
a model, and the workers that an app starts, are forks, too.

One JSON object a line on stdin: {"do": "worker" | "app", "arguments": [...], "log": path, "die_at": n, or "die_on":
[pattern, which of those that fit], "torn": bool, "full": bool, "background": bool}; one on stdout: {"code": exit code
or minus the signal, "moments": names of those gone by}, or at once {"pid": process} for one in the background.
"""

import errno
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LOADED = (
    "peft", "torch", "transformers", "core.jobs.pipeline", "core.jobs.judging", "core.jobs.worker", "core.service",
    "core.evaluation.perplexity", "core.models.loading", "core.models.saving", "core.models.verify_process",
    "core.pruning.prune", "core.recovery.recover",
)  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")
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


def verify_here(arguments: list[str], scratch: Path, _progress: Any) -> dict[str, Any]:
    """What `core.models.verification._ask` does, by a fork of this process in place of a fresh one."""
    from core.models import verify_process

    said = scratch / "said.txt"
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = said.open("w")
            verify_process.main(*arguments)
            sys.stdout.flush()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    found: dict[str, Any] = json.loads(said.read_text().splitlines()[-1])
    return found


def child(request: dict[str, Any], tell: int) -> None:
    """What a fork does: the work that was asked for, with its output in `log`."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    roots = [os.environ["ESPALIER_HOME"], os.environ["ESPALIER_CACHE"]]
    moments = Moments(roots, request)
    tell_all = lambda: moments._write(tell, json.dumps(moments.seen).encode())  # noqa: E731
    code = 1
    try:
        if request["do"] == "worker":
            from core.jobs import worker

            moments.install()
            code = worker.main(request["arguments"])
        else:
            app(request["arguments"], moments)
            code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - a fork must not fall through into its parent's loop
        import traceback

        traceback.print_exc()
    finally:
        moments.on = False
        with suppress(OSError):  # nobody listens to one in the background
            sys.stdout.flush()
            sys.stderr.flush()
            tell_all()
        os._exit(code)


class Fork:
    """A worker that is a fork of its app; to the supervisor what `subprocess.Popen` is."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it lives."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code


def worker_of(moments: Moments) -> Callable[..., Fork]:
    """`processes.start_worker` by a fork, in a session of its own, which keeps nothing of the app's open."""

    def begin(directory: Any, *_: Any, **__: Any) -> Fork:
        with directory.log_file.open("ab") as log:
            pid = os.fork()
            if pid:
                return Fork(pid)
            code = 1
            try:
                moments.on = False
                os.setsid()
                os.dup2(log.fileno(), 1)
                os.dup2(1, 2)
                os.closerange(3, 4096)
                from core.jobs import worker

                code = worker.main([str(directory.path)])
            except BaseException:  # noqa: BLE001 - as above
                import traceback

                traceback.print_exc()
            finally:
                with suppress(OSError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)

    return begin


def app(arguments: list[str], moments: Moments) -> None:
    """What an app does: it owns the store, queues these experiments, and sees the queue to its end."""
    from core.experiment import Experiment
    from core.jobs import places, processes
    from core.service import Service

    processes.start_worker = worker_of(moments)  # type: ignore[assignment]
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
    from core.models import verification

    verification._ask = verify_here
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
            text = said.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(json.dumps({"code": code, "moments": json.loads(text or b"null")}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
