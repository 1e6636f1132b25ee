"""Conversations and votes in results.duckdb, read from chat/*.jsonl and from nowhere else."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.chat.transcripts import SUFFIX, Saved, load

if TYPE_CHECKING:
    import duckdb

COLUMNS: dict[str, dict[str, str]] = {
    "chats": {
        "conversation": "VARCHAR",
        "created": "TIMESTAMP",
        "prompts": "INTEGER",
        "first_prompt": "VARCHAR",
        "titles": "VARCHAR",
    },
    "chat_answers": {
        "conversation": "VARCHAR",
        "turn": "INTEGER",
        "side": "INTEGER",
        "model": "VARCHAR",
        "title": "VARCHAR",
        "prompt": "VARCHAR",
        "text": "VARCHAR",
        "state": "VARCHAR",
        "tokens": "INTEGER",
        "tokens_per_second": "DOUBLE",
        "first_token_seconds": "DOUBLE",
        "memory_bytes": "BIGINT",
    },
    "chat_votes": {
        "conversation": "VARCHAR",
        "turn": "INTEGER",
        "time": "TIMESTAMP",
        "verdict": "VARCHAR",
        "winner": "VARCHAR",
        "blind": "BOOLEAN",
        "streaming": "BOOLEAN",
        "models": "VARCHAR",
        "titles": "VARCHAR",
    },
}
"""`titles` and `models` are JSON lists: by side, and for votes by the place in which they were shown."""
TABLES = (*COLUMNS, "chat_sources")
"""`chat_sources`: which file, of which size and time, the rows came from."""

READER = 2
"""Part of every file's mark: higher once rows are read differently, so that what older versions read is read anew."""

Rows = dict[str, list[Sequence[Any]]]


def files(home: Path) -> dict[str, tuple[Path, str]]:
    """Transcripts of a home by conversation, with a mark that changes when they do. Links are left out."""
    try:
        with os.scandir(home / "chat") as entries:
            found = [each for each in entries if each.name.endswith(SUFFIX) and each.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return {}
    marks = {}
    for entry in found:
        stat = entry.stat(follow_symlinks=False)
        marks[entry.name.removesuffix(SUFFIX)] = (Path(entry.path), f"{READER}:{stat.st_size}:{stat.st_mtime_ns}")
    return marks


def stale(known: Mapping[str, str], present: Mapping[str, tuple[Path, str]]) -> tuple[list[str], list[str]]:
    """Conversations to read anew, and those whose file is gone."""
    changed = [name for name, (_, mark) in present.items() if known.get(name) != mark]
    return changed, [name for name in known if name not in present]


def replace(
    cursor: "duckdb.DuckDBPyConnection", present: Mapping[str, tuple[Path, str]], changed: list[str], gone: list[str]
) -> None:
    """Rows of changed files instead of what was known of them; none of files that are gone."""
    for table in TABLES:
        cursor.execute(f"DELETE FROM {table} WHERE list_contains(?::VARCHAR[], conversation)", [[*changed, *gone]])
    rows: Rows = {table: [] for table in COLUMNS}
    for name in changed:
        try:
            saved = load(present[name][0])
        except OSError:  # removed in between: the next look forgets it
            continue
        for table, found in rows_of(saved).items():
            rows[table] += found
        cursor.execute("INSERT INTO chat_sources VALUES (?, ?)", [name, present[name][1]])
    for table, values in rows.items():
        if values:
            columns = COLUMNS[table]
            parts = ", ".join(f"unnest(?::{kind}[])" for kind in columns.values())
            lists = [list(column) for column in zip(*values, strict=True)]
            cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {parts}", lists)


def rows_of(saved: Saved) -> Rows:
    """A conversation as rows, in the order of `COLUMNS`."""
    answers: list[Sequence[Any]] = []
    votes: list[Sequence[Any]] = [
        (saved.id, turn, _utc(v.time), v.verdict, v.winner, v.blind, v.streaming, _list(v.order), _list(v.titles))
        for turn, v in saved.votes
    ]
    for turn in saved.turns:
        for side, a in sorted(turn.answers.items()):
            answers.append(
                (saved.id, turn.number, side, a.key, a.title, turn.prompt, a.text, a.state, a.tokens,
                 a.tokens_per_second, a.first_token_seconds, a.memory_bytes)
            )  # fmt: skip
    if not saved.turns:
        return {"chats": [], "chat_answers": [], "chat_votes": []}
    first = saved.turns[0]
    chat = (saved.id, _utc(first.time), len(saved.turns), first.prompt, _list(saved.titles))
    return {"chats": [chat], "chat_answers": answers, "chat_votes": votes}


def _list(texts: Sequence[str]) -> str:
    return json.dumps(list(texts), ensure_ascii=False)


def _utc(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
