"""The real app in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120  # seconds, for a busy machine


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """Starts the app with these variables and options; its port once it answers."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(*options: str, **variables: str) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        folder = tmp_path_factory.mktemp("app")
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port), *options]
        environment = {**os.environ, "ESPALIER_HOME": str(folder), **variables}
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        started.append(server)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert server.poll() is None, (folder / "server.log").read_text()
            with socket.socket() as visitor, suppress(TimeoutError):  # it listens before it answers
                visitor.settimeout(2)
                if visitor.connect_ex(("127.0.0.1", port)) == 0:
                    visitor.sendall(b"GET /_stcore/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    if visitor.recv(8).startswith(b"HTTP"):
                        return port
            time.sleep(0.2)
        raise AssertionError(f"the app did not answer within {PATIENCE} s")

    yield begin
    for server in started:
        server.terminate()
        server.wait(60)
