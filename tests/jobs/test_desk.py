"""The app away from the desk: it outlives its terminal, its queue advances, and it is found and stopped again."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core import desk
from core.jobs import processes
from core.jobs.letters import Letters
from core.jobs.rundir import read_json
from core.jobs.states import State
from core.jobs.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(autouse=True)
def nothing_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The app of a test that failed half-way is ended, with its workers."""
    for name in ("ESPALIER_TOKEN", "SSH_CONNECTION", "STREAMLIT_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield
    word = read_json(home / "app.json") or {}
    process = processes.find(word.get("pid"), word.get("pid_created"))
    if process is not None:
        for one in [*process.children(recursive=True), process]:
            one.kill()


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "core.desk", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_terminal_that_hangs_up_stops_neither_the_app_nor_its_queue(
    home: Path, port: int, experiment: Any, run_of: Any, until: Any
) -> None:
    line = f"'{sys.executable}' -m core.desk start --port {port}; echo started; sleep 600"
    terminal = subprocess.Popen(
        ["bash", "-c", line],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # as in a terminal, whatever started the tests
    )
    assert terminal.stdout is not None
    said = terminal.stdout.readline()
    pid = int(re.search(r"process (\d+)", said)[1])  # type: ignore[index]
    created = psutil.Process(pid).create_time()
    while terminal.stdout.readline() != "started\n":
        pass
    os.killpg(terminal.pid, signal.SIGHUP)
    assert terminal.wait(60) == -signal.SIGHUP
    terminal.stdout.close()
    assert processes.find(pid, created) is not None

    run = run_of(experiment())
    Letters(home).enqueue(run.id)
    until(lambda: run.status().state is State.COMPLETE, 120)
    assert desk.status() == desk.RUNNING

    again = make("start", "--port", str(port))
    assert again.returncode == 0
    assert f"runs already: http://127.0.0.1:{port} (process {pid})" in again.stdout
    stopped = make("stop")
    assert "is stopped" in stopped.stdout
    assert processes.find(pid, created) is None
    assert desk.status() == desk.STOPPED


def test_an_app_that_cannot_start_says_why_and_leaves_nothing(home: Path, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        done = make("start", "--port", str(port))
    assert done.returncode == desk.REFUSED
    assert f"Port {port} is not available" in done.stderr
    assert not (home / "app.json").exists()


def test_a_folder_that_another_app_works_on_is_left_to_it(home: Path, port: int) -> None:
    boss = Supervisor()
    boss.claim()
    try:
        done = make("start", "--port", str(port))
        assert done.returncode == desk.REFUSED
        assert f"process {os.getpid()}" in done.stderr
        assert f"process {os.getpid()}" in make("status").stdout
        assert f"Process {os.getpid()} was not started by `make start`" in make("stop").stdout
    finally:
        boss.stop()


def test_a_later_process_with_the_pid_of_the_app_is_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in (f'{{"pid": {os.getpid()}, "pid_created": 1.0, "port": 8501}}', '{"pid": "x"}', "{"):
        (home / "app.json").write_text(word)
        assert desk.status() == desk.STOPPED
        assert desk.stop() == 0  # and we still live
        assert "No Espalier runs here" in capsys.readouterr().out
        assert not (home / "app.json").exists()


def test_under_ssh_the_tunnel_is_printed_and_elsewhere_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.tunnel(8501) == ""
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 50000 203.0.113.7 22")
    assert re.search(r"ssh -N -L 8501:127\.0\.0\.1:8501 \S+@203\.0\.113\.7$", desk.tunnel(8501), re.M)
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 50000 2001:db8::7 2222")
    assert "-L 9000:127.0.0.1:9000 -p 2222" in desk.tunnel(9000)
    for strange in ("x", "a b c d", "1 2 $(id) 22", "1 2 3 4 5"):
        monkeypatch.setenv("SSH_CONNECTION", strange)
        assert desk.tunnel(8501) == ""


def test_make_app_and_make_start_print_it() -> None:
    environment = {**os.environ, "SSH_CONNECTION": "10.0.0.1 50000 203.0.113.7 22"}
    for target in ("app", "start"):
        lines = subprocess.run(
            ["make", "-n", target, "PORT=8765"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        (line,) = [line for line in lines if "core.desk" in line]
        assert "--port 8765" in line


def test_the_token_is_asked_of_the_detached_app_too(
    home: Path, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESPALIER_TOKEN", "short")
    assert desk.main(["start", "--port", str(port)]) == desk.REFUSED
    assert "ESPALIER_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("ESPALIER_TOKEN", "long enough to be a token")
    assert make("start", "--port", str(port)).returncode == 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/")
    assert connection.getresponse().status == 401
    connection.close()
    assert make("stop").returncode == 0
