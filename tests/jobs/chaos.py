"""A process that loads everything once and then forks children, each of which may die at a moment that is asked for.

A moment is one thing that a child does to a file under the home or the cache: it opens one for writing, renames,
removes, makes a folder, or writes a line. At the n-th the child is killed by SIGKILL, before the thing is done; with
`torn`, after half of a line was written. The children run what a worker or an app runs. Only two things are saved,
which are not what is tested: imports, and the start of the fresh process that verifies a model.

One JSON object a line on stdin: {"do": "worker" | "script", "arguments": [...], "log": path, "die_at": n or null,
"torn": bool}; one on stdout: {"code": exit code or minus the signal, "moments": names of those gone through}.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
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

    def __init__(self, roots: list[str], die_at: int | None, torn: bool) -> None:
        self.roots, self.die_at, self.torn = tuple(os.path.realpath(root) for root in roots), die_at, torn
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
        if not isinstance(path, str | bytes | os.PathLike):
            return
        self.on = False  # what follows is ours
        place = os.path.realpath(os.fsdecode(path))
        root = next((root for root in self.roots if place.startswith(root + os.sep)), None)
        idle = place.endswith(".lock") or (event == "os.mkdir" and Path(place).exists())
        if root is not None and not idle:
            self.seen.append(f"{event} {os.path.relpath(place, root)}")
            if len(self.seen) == self.die_at:
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
    moments = Moments(roots, request.get("die_at"), bool(request.get("torn")))
    tell_all = lambda: moments._write(tell, json.dumps(moments.seen).encode())  # noqa: E731
    code = 1
    try:
        if request["do"] == "worker":
            from core.jobs import worker

            moments.install()
            code = worker.main(request["arguments"])
        else:
            source, *sys.argv[1:] = request["arguments"]
            program = compile(source, "<script>", "exec")
            moments.install()
            exec(program, {"__name__": "__main__"})
            code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - a fork must not fall through into its parent's loop
        import traceback

        traceback.print_exc()
    finally:
        moments.on = False
        sys.stdout.flush()
        sys.stderr.flush()
        tell_all()
        os._exit(code)


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
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.update(request.get("environment", {}))
        ear, mouth = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ear)
            child(request, mouth)
        os.close(mouth)
        with os.fdopen(ear, "rb") as said:
            text = said.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(json.dumps({"code": code, "moments": json.loads(text or b"null")}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
