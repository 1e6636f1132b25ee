"""The app away from the desk: `make start | stop | status`, so that a dropped connection stops nothing.

The app runs in a session of its own with its output in ESPALIER_HOME/app.log; ESPALIER_HOME/app.json says which process
it is. Under SSH, the line that brings the page to one's own browser is printed.
"""

import argparse
import getpass
import http.client
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core import settings
from core.board import Line
from core.errors import EspalierError, InputError, QueueError
from core.guard import Rules, is_loopback
from core.jobs import ownership, processes
from core.jobs.rundir import list_runs, read_json, to_json, write_atomic

START_WAIT_S = 90.0
STOP_WAIT_S = 20.0
RUNNING, STOPPED, REFUSED = 0, 3, 2
_LOG_BYTES = 5_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m core.desk`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m core.desk", description="The app, detached from its terminal.")
    parser.add_argument("action", choices=("start", "stop", "status", "tunnel"))
    parser.add_argument("--port", type=int, default=8501)
    options = parser.parse_args(arguments)
    try:
        if options.action == "start":
            return start(options.port)
        if options.action == "tunnel":
            return _say(tunnel(options.port))
        return stop() if options.action == "stop" else status()
    except EspalierError as error:
        sys.stderr.write(f"espalier: {error}\n")
        return REFUSED


def start(port: int) -> int:
    """Start the app and return once it answers. QueueError if another one works on the folder."""
    known = _known()
    if known is not None:
        return _say(f"Espalier runs already: {known['address']} (process {known['pid']}).", tunnel(known["port"]))
    home = settings.home()
    owner = ownership.owner_of(home)
    if owner is not None:
        raise QueueError(f"Another Espalier ({owner}) works on {home}.", "Stop it where it was started.")
    Rules.from_environment()
    log = home / "app.log"
    process = _begin(port, log)
    host = _host()
    address = f"http://{host if is_loopback(host) else '127.0.0.1'}:{port}"
    word = {**processes.identity(process.pid), "port": port, "address": address}
    write_atomic(home / "app.json", to_json(word))
    end = time.monotonic() + START_WAIT_S
    while not _answers(host, port):
        if process.poll() is not None or time.monotonic() > end:
            _file().unlink(missing_ok=True)
            if process.poll() is None:
                process.kill()
            raise InputError(f"The app did not start: {_last_line(log)}", f"The log is {log}.")
        time.sleep(0.2)
    return _say(f"Espalier runs at {address} (process {process.pid}). Its log is {log}.", tunnel(port))


def stop() -> int:
    """End the app; what its queue waits for stays in the queue, and runs that work go on."""
    known = _known()
    if known is None:
        _file().unlink(missing_ok=True)
        owner = ownership.owner_of(settings.home())
        said = f"{str(owner).capitalize()} was not started by `make start`: end it where it runs." if owner else ""
        return _say("No Espalier runs here that `make start` started.", said)
    process = processes.find(known["pid"], known["pid_created"])
    if process is not None:
        processes.ask_to_stop(process)
        end = time.monotonic() + STOP_WAIT_S
        while processes.find(known["pid"], known["pid_created"]) is not None and time.monotonic() < end:
            time.sleep(0.1)
        if processes.find(known["pid"], known["pid_created"]) is not None:
            process.kill()
    _file().unlink(missing_ok=True)
    return _say("Espalier is stopped.", _runs())


def status() -> int:
    """Say whether the app runs, where, and what its queue does; exit code 0 if it runs, 3 if not."""
    known = _known()
    if known is not None:
        _say(f"Espalier runs at {known['address']} (process {known['pid']}).", _runs(), tunnel(known["port"]))
        return RUNNING
    owner = ownership.owner_of(settings.home())
    if owner is not None:
        _say(f"Espalier runs, started otherwise ({owner}).", _runs())
        return RUNNING
    _say("Espalier does not run.", _runs())
    return STOPPED


def tunnel(port: int) -> str:
    """Under SSH: the command that brings the page to the visitor's own machine; '' elsewhere."""
    parts = os.environ.get("SSH_CONNECTION", "").split()
    if len(parts) != 4 or not re.fullmatch(r"[0-9a-fA-F.:%\w]+", parts[2]) or not parts[3].isdigit():
        return ""
    to = "" if parts[3] == "22" else f" -p {parts[3]}"
    return (
        "On your own machine (in place of the address, the name you log in with):\n"
        f"  ssh -N -L {port}:127.0.0.1:{port}{to} {getpass.getuser()}@{parts[2]}\n"
        f"then open http://localhost:{port}"
    )


# --- inside


def _file() -> Path:
    return settings.home() / "app.json"


def _known() -> dict[str, Any] | None:
    """What app.json says, if that process still lives."""
    word = read_json(_file()) or {}
    pid, created, port = word.get("pid"), word.get("pid_created"), word.get("port")
    if not (isinstance(pid, int) and isinstance(created, int | float) and isinstance(port, int)):
        return None
    return word if processes.find(pid, created) is not None else None


def _begin(port: int, log: Path) -> "subprocess.Popen[bytes]":
    """The server in a session of its own: a terminal that hangs up does not reach it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".old.log"))
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=settings.REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _host() -> str:
    """Where the server can be asked whether it is there."""
    wanted = os.environ.get("STREAMLIT_SERVER_ADDRESS", "").strip() or "127.0.0.1"
    return "127.0.0.1" if wanted in ("0.0.0.0", "::", "localhost") else wanted


def _answers(host: str, port: int) -> bool:
    """Whether a web server answers there; what it says is the guard's business."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/_stcore/health", headers={"Host": f"localhost:{port}"})
        return connection.getresponse().status > 0
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing."


def _runs() -> str:
    """What works and waits, in a sentence."""
    home = settings.home()
    working = sum(not run.ended() and run.worker_lives() for run in list_runs(home / "runs"))
    line = Line.read(home)
    waiting = f"{len(line.waiting)} waiting" + (", paused" if line.paused else "")
    return f"{working} {'run works' if working == 1 else 'runs work'}, {waiting}."


def _say(*texts: str) -> int:
    sys.stdout.write("".join(f"{text}\n" for text in texts if text))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
