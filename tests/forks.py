"""Forks of a process that has loaded everything once, in place of fresh ones that load it for seven seconds each.

`python -m tests.forks FOLDER` listens on two sockets in the folder until its standard input is closed. Who asks at
`full` is forked from a process that has loaded what a worker loads; at `bare`, from one that has loaded torch and
transformers and nothing of ours, as the process that verifies a saved model has. Both have one thread: a fork of a
process with more may wait for ever for a lock that another thread held. So apps and workers, which have threads, ask
here, too.

A question is one connection, one JSON object a line: {"call": "module:function", "arguments": [...], "environment",
"folder", "log"} is answered by the fork's process id; the function's number is its exit code. {"ended": process id} is
answered by the exit code, minus the signal, or null while it lives; {"end": …} ends them all.
"""

import faulthandler
import importlib
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
BARE = ("peft", "torch", "transformers", "safetensors.torch")
FULL = (
    "core.jobs.pipeline", "core.jobs.judging", "core.jobs.worker", "core.service", "core.evaluation.perplexity",
    "core.evaluation.tasks", "core.models.loading", "core.models.saving", "core.pruning.prune", "core.recovery.recover",
)  # fmt: skip
SOCKETS = "ESPALIER_TEST_FORKS"
"""The environment's name for the folder of the sockets: forks ask for forks of their own there."""
MOST_HANDLES = 4096
_codes: dict[int, int | None] = {}
"""Of a server: its forks, and how they ended."""
_server: "list[subprocess.Popen[str]]" = []


# ------------------------------------------------------------------------------------------------------------- asking


def ask(who: str, **question: Any) -> Any:
    """The answer of `bare` or `full`; the first question starts them."""
    if SOCKETS not in os.environ:
        start()
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(f"{os.environ[SOCKETS]}/{who}")
        end.sendall((json.dumps(question) + "\n").encode())
        with end.makefile("r") as lines:
            return json.loads(lines.readline())


@dataclass
class Fork:
    """What `subprocess.Popen` is to those who wait for a process; what it prints is in `log`."""

    who: str
    pid: int
    log: Path
    returncode: int | None = None
    stdout: None = None

    @classmethod
    def call(
        cls,
        function: str,
        *arguments: Any,
        log: Path,
        who: str = "full",
        environment: dict[str, str] | None = None,
        folder: Path = ROOT,
    ) -> "Fork":
        """Fork, and let the fork call "module:function"."""
        if SOCKETS not in os.environ:
            start()
        values = {**(os.environ if environment is None else environment), SOCKETS: os.environ[SOCKETS]}
        how = {"environment": values, "folder": str(folder), "log": str(log)}
        return cls(who, ask(who, call=function, arguments=arguments, **how), log)

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it lives."""
        if self.returncode is None:
            self.returncode = ask(self.who, ended=self.pid)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        """Until it ends. `subprocess.TimeoutExpired` if that takes longer; where it stands is in its log, then."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.send_signal(signal.SIGUSR1)
                raise subprocess.TimeoutExpired(f"the fork that writes to {self.log}", timeout)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = 240) -> tuple[str, None]:
        """Until it ends: what it printed."""
        self.wait(timeout)
        return self.log.read_text(), None

    def send_signal(self, number: int) -> None:
        """To the process, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def end_stuck(self) -> None:
        """Let every fork that lives (a stuck app waits for its workers) write to its log what it is at; kill them."""
        ask(self.who, end="stuck")


def popen(command: Sequence[str], **how: Any) -> Any:
    """`subprocess.Popen`, where a worker and the process that verifies a model are forks. They print to `stdout`."""
    known = {"core.jobs.worker": ("full", "work"), "verify_process.py": ("bare", "verify")}
    who, function = known.get(Path(command[2]).name if len(command) > 2 else "", ("", ""))
    if not who:
        return subprocess.Popen(command, **how)
    log, folder = Path(how["stdout"].name), Path(how.get("cwd") or ROOT)
    environment = how.get("env")
    return Fork.call(f"tests.forks:{function}", *command[3:], who=who, log=log, environment=environment, folder=folder)


class Subprocess:
    """In the place of the module `subprocess` where worker and verification are started."""

    Popen = staticmethod(popen)
    DEVNULL, STDOUT, PIPE = subprocess.DEVNULL, subprocess.STDOUT, subprocess.PIPE


# --------------------------------------------------------------------------------------------------- what forks are for


def work(directory: str) -> int:
    """A worker at a run."""
    from core.jobs import worker

    fork_verification()
    return worker.main([directory])


def verify(*arguments: str) -> int:
    """The stranger who loads a saved model; its code files lie where the caller wants them."""
    import transformers.dynamic_module_utils as dynamic

    dynamic.HF_MODULES_CACHE = os.environ["HF_MODULES_CACHE"]
    sys.modules["core"] = None  # type: ignore[assignment]
    path = ROOT / "core" / "models" / "verify_process.py"
    spec = importlib.util.spec_from_file_location("verify_process", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(script := importlib.util.module_from_spec(spec))
    script.main(*arguments)
    return 0


def fork_verification() -> None:
    """From now on this process verifies models by a fork."""
    from core.models import verification

    verification.subprocess = Subprocess  # type: ignore[assignment]


# ------------------------------------------------------------------------------------------------------------- serving


def serve(ear: socket.socket) -> NoReturn:
    """Answer until standard input is closed; what still lives then is killed."""
    names = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
    more = [name for name in names if name != "jemalloc_bg_thd"]  # jemalloc itself sees to forks
    assert len(more) == 1, f"a fork of a process with threads may wait for ever: {names}"
    try:
        while True:
            ready, _, _ = select.select([ear, 0], [], [])
            if 0 in ready and not os.read(0, 1):
                break
            if ear in ready:
                _answer(ear.accept()[0])
        _end_all(signal.SIGKILL)
    except BaseException:  # noqa: BLE001 - told, since nothing follows
        traceback.print_exc()
    finally:
        os._exit(0)


def _answer(end: socket.socket) -> None:
    """One question; who asks may be killed at any moment of it."""
    end.settimeout(10)
    try:
        with end, end.makefile("r") as lines:
            line = lines.readline()
            if line.endswith("\n"):
                question = json.loads(line)
                if "end" in question:
                    _end_all(signal.SIGUSR1)
                    time.sleep(1)
                    answer = _end_all(signal.SIGKILL)
                else:
                    answer = _ended(question["ended"]) if "ended" in question else _fork(question)
                end.sendall((json.dumps(answer) + "\n").encode())
    except OSError:
        traceback.print_exc()


def _end_all(number: int) -> None:
    for pid in _codes:
        if _ended(pid) is None:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)


def _ended(pid: int) -> int | None:
    if _codes.get(pid) is None:
        found, status = os.waitpid(pid, os.WNOHANG)
        _codes[pid] = os.waitstatus_to_exitcode(status) if found else None
    return _codes[pid]


def _fork(question: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        _codes[pid] = None
        return pid
    code = 1
    try:
        os.setsid()
        os.closerange(3, MOST_HANDLES)
        os.environ.clear()
        os.environ.update(question["environment"])
        os.chdir(question["folder"])
        for handle, place, flags in ((0, os.devnull, os.O_RDONLY), (1, question["log"], os.O_WRONLY)):
            opened = os.open(place, flags | (os.O_CREAT | os.O_APPEND if handle else 0), 0o644)
            os.dup2(opened, handle)
            os.close(opened)
        os.dup2(1, 2)
        faulthandler.register(signal.SIGUSR1, file=2)
        module, _, function = question["call"].partition(":")
        code = getattr(importlib.import_module(module), function)(*question["arguments"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - a fork must not fall through into its parent's loop
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _listen(place: Path) -> socket.socket:
    ear = socket.socket(socket.AF_UNIX)
    ear.bind(str(place))
    ear.listen(64)
    return ear


def main(folder: str) -> None:
    """Load, fork the bare one, load more, say that both are there."""
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}.items():
        os.environ.setdefault(name, value)
    for name in BARE:
        importlib.import_module(name)
    bare = _listen(Path(folder) / "bare")
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        serve(bare)
    bare.close()
    from core.jobs.worker import prepare_environment

    prepare_environment()
    for name in FULL:
        importlib.import_module(name)
    full = _listen(Path(folder) / "full")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    serve(full)


def start() -> None:
    """Start both, and wait until they answer."""
    folder = tempfile.mkdtemp(prefix="forks-")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.forks", folder]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    _server.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.environ[SOCKETS] = folder


def stop() -> None:
    """End what `start` started, if it did."""
    for process in _server:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
        shutil.rmtree(os.environ.pop(SOCKETS, ""), ignore_errors=True)
    _server.clear()


if __name__ == "__main__":
    main(sys.argv[1])
