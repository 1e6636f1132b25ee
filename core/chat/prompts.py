"""Prompts to start from: some that show what pruning costs, and the user's own, kept in chat/prompts.json."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError
from core.files import write_atomic
from core.jobs.failures import full_disk_told

FILE = "prompts.json"
MOST, LONGEST = 50, 20_000

OFFERED = (
    "What is the capital of France?",
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a gardener who prunes an old apple tree.",
    "List five fruits and one sentence about each.",
    "If I have 3 apples, eat one and buy four more, how many do I have? Think step by step.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Translate into French: The tree against the wall bears fruit every year.",
)


@dataclass(frozen=True)
class OwnPrompts:
    """The prompts that the user saved, oldest first. `folder` is the home's chat folder."""

    folder: Path
    _lock = threading.Lock()

    def read(self) -> list[str]:
        """What is saved; a file that cannot be read counts as none, and is kept until the next save."""
        try:
            found = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        texts = found.get("prompts") if isinstance(found, dict) else None
        return [text for text in texts if isinstance(text, str) and text.strip()] if isinstance(texts, list) else []

    def add(self, text: str) -> None:
        """Save one; one that is there, or is offered anyway, is not saved twice.

        InputError if it is empty, DiskFullError where there is no room for it.
        """
        text = text.strip()
        if not text or len(text) > LONGEST:
            raise InputError(f"A prompt of {len(text):,} characters cannot be saved.", f"1 to {LONGEST:,} can.")
        with self._lock:
            known = self.read()
            if text in known or text in OFFERED:
                return
            if len(known) >= MOST:
                raise InputError(f"{MOST} prompts are saved already.", "Remove one first.")
            self._write([*known, text])

    def remove(self, text: str) -> None:
        """Forget one; nothing happens where it is not there."""
        with self._lock:
            self._write([known for known in self.read() if known != text])

    @full_disk_told()
    def _write(self, texts: list[str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / FILE, json.dumps({"v": 1, "prompts": texts}, ensure_ascii=False, indent=1) + "\n")
