"""Conversations on disk: chat/<id>.jsonl, a line a prompt, an answer and a vote, appended as they end; nothing is
rewritten. A prompt asked again has the same turn and a higher attempt, and drops what was said to it and after it.
"""

import json
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SUFFIX = ".jsonl"


def new_id(now: datetime | None = None) -> str:
    """`YYYYMMDD-HHMMSS-<rand4>`, UTC."""
    return f"{(now or datetime.now(UTC)):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Transcript:
    """One conversation's file, made with its first line. Several threads may append."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.path = folder / f"{identity}{SUFFIX}"
        self._lock = threading.Lock()

    def append(self, kind: str, **fields: Any) -> None:
        """One line: version, kind, time (ISO, UTC) and the fields. One that a full disk tore spoils no other."""
        record = {"v": 1, "kind": kind, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        text = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
                torn = file.read(1) not in (b"", b"\n")
                file.write((b"\n" if torn else b"") + text.encode())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a transcript. A torn last line, and any that is no JSON object, is skipped."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            try:
                record = json.loads(text) if text.endswith("\n") else None
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


@dataclass(frozen=True)
class SavedAnswer:
    """One side's answer as its line has it; times in seconds, memory in bytes."""

    side: int
    key: str
    title: str
    text: str
    state: str
    reason: str = ""
    notice: str = ""
    tokens: int = 0
    tokens_per_second: float | None = None
    first_token_seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class SavedVote:
    """A vote: `order` are the models' keys by place, `winner` one of them or None."""

    verdict: str
    order: tuple[str, ...]
    titles: tuple[str, ...]
    winner: str | None
    time: str
    blind: bool
    streaming: bool


@dataclass
class SavedTurn:
    """A prompt, the answers to it and the vote on them. `models` are (key, title) by side."""

    number: int
    attempt: int
    prompt: str
    time: str
    models: tuple[tuple[str, str], ...]
    sampling: dict[str, Any]
    system: str = ""
    blind: bool = False
    answers: dict[int, SavedAnswer] = field(default_factory=dict)
    vote: SavedVote | None = None


@dataclass(frozen=True)
class Saved:
    """A conversation as it was left: what was asked again or edited counts in its last form.

    `votes` are all that were cast, as (turn, vote), also those on attempts that were dropped later.
    """

    id: str
    turns: tuple[SavedTurn, ...]
    votes: tuple[tuple[int, SavedVote], ...] = ()

    @property
    def created(self) -> str:
        """ISO time of the first prompt that is left, or ''."""
        return self.turns[0].time if self.turns else ""

    @property
    def titles(self) -> tuple[str, ...]:
        """Names of the sides."""
        return tuple(title for _, title in self.turns[-1].models) if self.turns else ()


def load(path: Path) -> Saved:
    """A transcript's file. Lines of other shapes than ours are skipped, so that a damaged file still shows the rest."""
    turns: dict[int, SavedTurn] = {}
    votes: dict[tuple[int, int], SavedVote] = {}
    for record in read(path):
        try:
            _take(turns, votes, record)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    cast = tuple((number, vote) for (number, _), vote in votes.items())
    return Saved(path.stem, tuple(turns[number] for number in sorted(turns)), cast)


def _take(turns: dict[int, SavedTurn], votes: dict[tuple[int, int], SavedVote], record: Mapping[str, Any]) -> None:
    """One line into the turns as they are left and the votes, by turn and attempt, as they were cast."""
    kind, number, attempt = record["kind"], int(record["turn"]), int(record.get("attempt", 1))
    if kind == "prompt":
        for later in [known for known in turns if known >= number]:
            del turns[later]
        turns[number] = SavedTurn(
            number,
            attempt,
            str(record["text"]),
            str(record["time"]),
            tuple((str(model["key"]), str(model["title"])) for model in record["models"]),
            dict(record.get("sampling") or {}),
            str(record.get("system", "")),
            bool(record.get("blind", False)),
        )
        return
    turn = turns.get(number)
    if turn is None or turn.attempt != attempt:
        return  # of an attempt that was dropped
    if kind == "answer":
        turn.answers[int(record["side"])] = _answer(record)
    elif kind == "vote":
        turn.vote = votes[number, attempt] = _vote(record)


def _answer(record: Mapping[str, Any]) -> SavedAnswer:
    stats = record.get("stats") or {}
    memory = stats.get("memory_bytes")
    speed, first = record.get("tokens_per_second"), record.get("first_token_seconds")
    return SavedAnswer(
        int(record["side"]),
        str(record["model"]),
        str(record["title"]),
        str(record["text"]),
        str(record["state"]),
        str(record.get("reason", "")),
        str(record.get("notice", "")),
        int(record.get("tokens") or 0),
        None if speed is None else float(speed),
        None if first is None else float(first),
        int(memory) if memory else None,
    )


def _vote(record: Mapping[str, Any]) -> SavedVote:
    winner = record["winner"]
    return SavedVote(
        str(record["verdict"]),
        tuple(map(str, record["order"])),
        tuple(map(str, record["titles"])),
        None if winner is None else str(winner),
        str(record["time"]),
        bool(record["blind"]),
        bool(record["streaming"]),
    )
