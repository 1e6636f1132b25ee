"""Conversations on disk.

Chat/<id>.jsonl, one line a prompt and one an answer, appended as they end. Nothing is rewritten.
"""

import json
import secrets
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def new_id(now: datetime | None = None) -> str:
    """`YYYYMMDD-HHMMSS-<rand4>`, UTC."""
    return f"{(now or datetime.now(UTC)):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Transcript:
    """One conversation's file, made with its first line. Several threads may append."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.path = folder / f"{identity}.jsonl"
        self._lock = threading.Lock()

    def append(self, kind: str, **fields: Any) -> None:
        """One line: version, kind, time (ISO, UTC) and the fields."""
        record = {"v": 1, "kind": kind, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        text = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a transcript; a torn last line is skipped."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            if text.endswith("\n"):
                yield json.loads(text)
