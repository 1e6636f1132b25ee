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
from core.device import visible_name
from core.jobs import places
from core.jobs.rundir import RunDirectory
from core.jobs.silence import Effort

DISK_FULL = 75
"""Exit code of a worker whose disk had no room for its last word (EX_TEMPFAIL of sysexits.h)."""
_SAME_PROCESS_S = 1.0  # the clock of process creation has a resolution of 10 ms and may be shifted by NTP a little


def start_worker(
    directory: RunDirectory, home: Path, device: str = "", chosen: bool = False
) -> "subprocess.Popen[bytes]":
    """Start the worker of a run in a session of its own; its output goes to log.txt.

    `device` is where it will work, and `chosen` says that we chose it, not the experiment: then it sees that GPU alone.
    Never a pipe: a worker whose pipe nobody empties would freeze when the app goes.
    """
    command = [sys.executable, "-m", "core.jobs.worker", str(directory.path)]
    environment = settings.child_environment() | {"ESPALIER_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    environment |= {"ESPALIER_PLACE": device} if device else {}
    if device.startswith("cuda") and chosen:
        environment |= {"CUDA_VISIBLE_DEVICES": visible_name(device), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    elif device == "cpu" and (at_once := places.cpu_runs(settings.cpu_runs())) > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, places.cores() // at_once)))
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


def ask_for_stacks(process: psutil.Process) -> None:
    """Let a worker write to its log what every thread is at; it needs no working interpreter for that."""
    with suppress(psutil.Error):
        process.send_signal(signal.SIGUSR1)


def effort(process: psutil.Process | None) -> Effort | None:
    """What a process and its children have done so far; None where it cannot be asked.

    `written` is 0 where the system does not count it.
    """
    if process is None:
        return None
    seconds = written = 0.0
    try:
        for each in (process, *process.children(recursive=True)):
            times = each.cpu_times()
            seconds += times.user + times.system
            with suppress(AttributeError, psutil.AccessDenied):
                written += each.io_counters().write_chars
    except psutil.Error:
        return None
    return Effort(seconds, written)


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
    if code == DISK_FULL:
        return "The disk is full: not even that could be written.", "Free some space, or delete runs; it then goes on."
    if code == -signal.SIGKILL:
        reason = "The worker was killed by the system or by somebody (SIGKILL)."
        return reason, "Often memory had run out: choose fewer or shorter windows, a smaller batch, or a smaller model."
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"The worker was ended by {name}.", "See the end of its log."
    if code is not None:
        return f"The worker ended without a result (exit code {code}).", "See the end of its log."
    return "The worker ended without a result.", "The machine may have been restarted; see the end of its log."


def cause_of_end(code: int | None) -> str:
    """The same in one word (core/jobs/failures.py); '' where nothing is offered for it."""
    return {-signal.SIGKILL: "killed", DISK_FULL: "disk"}.get(code, "") if code is not None else ""


def out_of_memory_kills() -> int:
    """How many processes this system has ended for want of memory since it started; 0 where it does not count."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def ended_for_memory(held: int) -> tuple[str, str]:
    """Reason and advice for a worker that the system ended for want of memory; `held`: bytes it last said it held."""
    total = psutil.virtual_memory().total
    words = f" (it held {held / 1e9:.1f} of {total / 1e9:.1f} GB)" if held else ""
    return f"The system ended the worker because memory had run out{words}.", describe_end(-signal.SIGKILL)[1]
