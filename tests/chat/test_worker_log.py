"""What a worker said before it died is still there when the next one runs, and does not grow without end."""

from pathlib import Path

import pytest

from core.chat.client import ChatClient


def test_a_worker_s_last_words_outlive_its_restart_and_old_ones_are_cut(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.chat.client.LOG_BYTES", 1000)
    path = home / "chat" / "worker.log"
    path.parent.mkdir()
    path.write_bytes(b"oldest\n" + b"x" * 600 + b"\n" + b"y" * 600 + b"\nFatal: last words\n")
    client = ChatClient(home, device="cpu")
    try:
        with client._lock:  # nothing is asked of it: only that it starts
            client._ensure()
        first = path.read_bytes()
        assert first.startswith(b"y" * 600 + b"\nFatal: last words\n--- ")
        assert first.endswith(b"UTC: a worker starts on cpu\n")
        client.close()
        with client._lock:
            client._ensure()
        again = path.read_bytes()
    finally:
        client.close()
    assert again.startswith(first)
    assert again.count(b": a worker starts on cpu\n") == 2
