"""Worker processes: starting them so that they outlive the app, knowing them again, ending them with their children."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from core import settings
from core.jobs.rundir import RunDirectory

_SAME_PROCESS_S = 1.0  # the clock of process creation has a resolution of 10 ms and may be shifted by NTP a little


def start_worker(directory: RunDirectory, home: Path) -> "subprocess.Popen[bytes]":
    """Start the worker of a run in a session of its own; its output goes to log.txt.

    Never a pipe: a worker whose pipe nobody empties would freeze when the app goes.
    """
    command = [sys.executable, "-m", "core.jobs.worker", str(directory.path)]
    environment = settings.child_environment() | {"ESPALIER_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    with directory.log_file.open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=settings.REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def identity(pid: int | None = None) -> dict[str, Any]:
    """`pid` and `pid_created` (seconds since the epoch): what tells a process from a later one with its pid."""
    process = psutil.Process(pid)
    return {"pid": process.pid, "pid_created": process.create_time()}


def find(pid: int | None, created: float | None) -> psutil.Process | None:
    """The living process that had this identity, or None."""
    if pid is None or created is None:
        return None
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < _SAME_PROCESS_S
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def ask_to_stop(process: psutil.Process) -> None:
    """SIGTERM to the worker alone: it ends its children itself."""
    with suppress(psutil.Error):
        process.terminate()


def kill_group(process: psutil.Process) -> None:
    """SIGKILL to the worker and everything that it started.

    A worker started by the supervisor leads its own process group, which is killed whole. One started from a terminal
    shares its group with others, so there only it and its descendants are killed.
    """
    with suppress(psutil.Error):
        family = [*process.children(recursive=True), process]
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == process.pid == os.getsid(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        for member in family:
            with suppress(psutil.Error):
                member.kill()


def describe_end(code: int | None) -> tuple[str, str]:
    """Reason and advice for a worker that ended without a result; `code` is its exit code if it is known."""
    if code == -signal.SIGKILL:
        reason = "The worker was killed by the system or by somebody (SIGKILL)."
        return reason, "Often memory had run out: choose fewer or shorter windows, a smaller batch, or a smaller model."
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"The worker was ended by {name}.", "See the end of its log."
    if code is not None:
        return f"The worker ended without a result (exit code {code}).", "See the end of its log."
    return "The worker ended without a result.", "The machine may have been restarted; see the end of its log."
