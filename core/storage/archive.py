"""One Parquet file that holds a study's runs without their weights: written and read by DuckDB, one row a thing.

| kind | what the row holds |
|---|---|
| archive | text: JSON of where the file comes from; name: a sum over all other rows, by which damage shows |
| study | text: the study's YAML |
| run | run, name, text: the Experiment's YAML |
| state | run, text: JSON of its state and times |
| results | run, text: JSON of results.json without the numbers |
| metric | run, stage, task, metric, value, stderr, n; text: JSON of the rest, the protocol too |
| curve | run, text: the curve of its training, one JSON object a line |
| document | run and what became of one document (core/evaluation/outcomes.py) |

So the file answers questions by itself: `SELECT * FROM 'mine.parquet' WHERE kind = 'metric'`. Whoever made it is not
trusted: it is measured before anything of it is kept in memory, and DuckDB reads it with a limit on memory.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from core.errors import InputError

COLUMNS = {
    "kind": "VARCHAR", "run": "VARCHAR", "name": "VARCHAR", "text": "VARCHAR",
    "stage": "VARCHAR", "task": "VARCHAR", "metric": "VARCHAR",
    "value": "DOUBLE", "stderr": "DOUBLE", "n": "BIGINT",
    "doc": "BIGINT", "doc_hash": "VARCHAR", "target": "VARCHAR", "choice": "INTEGER", "choice_norm": "INTEGER",
    "correct": "BOOLEAN", "correct_norm": "BOOLEAN", "loglikelihoods": "FLOAT[]", "response": "VARCHAR",
    "score": "DOUBLE",
}  # fmt: skip
THINGS = tuple(COLUMNS)[:10]
"""Columns of every row that is no document."""
DOCUMENT = ("stage", *tuple(COLUMNS)[10:])
KINDS = ("archive", "study", "run", "state", "results", "metric", "curve", "document")
DETAILS = ("none", "outcomes", "full")
"""How much of each document goes along: nothing; whether it was right, the choice and the score; all of it."""
MAX_FILE_BYTES = 256 << 20
MAX_TEXT_BYTES = 32 << 20
MAX_TEXTS_BYTES = 256 << 20
MAX_THINGS = 500_000
MAX_ROWS = 30_000_000
_MEMORY = "1GB"
_SCRATCH = "8GB"
_ADVICE = "Pack the study again, or ask whoever made the file."


@dataclass(frozen=True)
class Contents:
    """What an archive holds besides documents: rows of `THINGS`, and how many documents there are of which run."""

    things: Sequence[Mapping[str, Any]]
    documents: Mapping[str, int]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Rows of one kind, in the file's order."""
        return [row for row in self.things if row["kind"] == kind]


def write(file: Path, things: Sequence[Mapping[str, Any]], samples: Mapping[str, Path], detail: str) -> None:
    """Write an archive whole: `things` in their order, then the documents in each run's samples file."""
    full = detail == "full"
    columns = ", ".join(
        f"NULL::{COLUMNS[name]}" if name in ("loglikelihoods", "response") and not full else f"{name}::{COLUMNS[name]}"
        for name in DOCUMENT
    )
    with closing(_connect()) as connection:
        connection.execute(f"CREATE TABLE things (place BIGINT, {', '.join(f'{n} {COLUMNS[n]}' for n in THINGS)})")
        lists = [[row.get(name) for row in things] for name in THINGS]
        unnested = ", ".join(f"unnest(?::{COLUMNS[name]}[])" for name in THINGS)
        connection.execute(
            f"INSERT INTO things SELECT unnest(?::BIGINT[]), {unnested}", [list(range(len(things))), *lists]
        )
        documents = ", ".join(f"{name} {COLUMNS[name]}" for name in ("run", "task", *DOCUMENT))
        connection.execute(f"CREATE TABLE documents ({documents})")
        for run, path in samples.items() if detail != "none" else ():
            # Columns that a file has never held a value in have no type there, and old files have no stage.
            rows = "FROM read_parquet(?) UNION ALL BY NAME SELECT NULL::VARCHAR AS stage WHERE false"
            try:
                connection.execute(
                    f"INSERT INTO documents SELECT ?, task, {columns} FROM ({rows})", [run, _plain(path)]
                )
            except duckdb.Error as error:
                raise InputError(
                    f"What became of the documents of run {run} cannot be read: {path.name} is damaged.",
                    "Pack without documents: --documents none.",
                ) from error
        [(sum_,)] = connection.execute(f"SELECT {sum_of('documents')}").fetchall()
        mark = digest(things, sum_)
        connection.execute("UPDATE things SET name = ? WHERE kind = 'archive'", [mark])
        # By document and not by run: what all runs share then stands together, and takes next to no room.
        connection.execute(
            f"""COPY (
                SELECT {", ".join(COLUMNS)} FROM (
                    SELECT * FROM things UNION ALL BY NAME
                    SELECT {len(things)} AS place, 'document' AS kind, * FROM documents)
                ORDER BY place, task, stage, doc, doc_hash, run
            ) TO '{_quoted(file)}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 15)"""
        )


class Archive:
    """An archive that was measured and found fit to be read. InputError says what is wrong with one that is not.

    scratch: a folder for what does not fit into the memory that reading may take.
    """

    def __init__(self, file: Path, scratch: Path) -> None:
        self.file = file
        try:
            size = file.stat().st_size
        except OSError as error:
            raise InputError(f"{file.name} cannot be read: {error.strerror or error}.", "Check the path.") from error
        if size > MAX_FILE_BYTES:
            raise InputError(f"{file.name} is too large for a packed study ({size:,} bytes).", _ADVICE)
        self._connection = _connect(memory=_MEMORY, scratch=scratch)
        self._path = _plain(file)
        try:
            self._measure()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back. May be called twice."""
        self._connection.close()

    def contents(self) -> Contents:
        """Everything but the documents."""
        rows = self._rows(
            f"SELECT {', '.join(THINGS)} FROM read_parquet(?, file_row_number = true) "
            "WHERE kind <> 'document' ORDER BY file_row_number"
        )
        counted = self._rows("SELECT run, count(*) FROM read_parquet(?) WHERE kind = 'document' GROUP BY run")
        things = [dict(zip(THINGS, row, strict=True)) for row in rows]
        documents = "(FROM read_parquet(?) WHERE kind = 'document')"
        [(sum_,)] = self._rows(f"SELECT {sum_of(documents)}")
        if [row["name"] for row in things if row["kind"] == "archive"] != [digest(things, sum_)]:
            raise InputError(f"{self.file.name} was changed or damaged after it was packed.", _ADVICE)
        return Contents(things, dict(counted))

    def write_samples(self, places: Mapping[str, Path]) -> None:
        """Write the documents of these runs to a samples file each."""
        try:
            columns = ", ".join(name for name in ("run", "task", *DOCUMENT))
            self._connection.execute(
                f"CREATE TEMP TABLE documents AS SELECT {columns} FROM read_parquet(?) "
                "WHERE kind = 'document' AND list_contains(?::VARCHAR[], run) ORDER BY run, task, stage, doc",
                [self._path, list(places)],
            )
            for run, path in places.items():
                self._connection.execute(
                    f"COPY (SELECT stage, task, {', '.join(DOCUMENT[1:])} FROM documents WHERE run = ?) "
                    f"TO '{_quoted(path)}' (FORMAT parquet, COMPRESSION zstd)",
                    [run],
                )
        except duckdb.Error as error:
            raise InputError(f"The documents of {self.file.name} cannot be read.", _ADVICE) from error

    def _measure(self) -> None:
        """Refuse what is not of this form, or larger than any study, before any of it is kept."""
        (rows,) = self._rows("SELECT coalesce(sum(num_rows), 0)::BIGINT FROM parquet_file_metadata(?)")[0]
        groups = self._rows(
            "SELECT coalesce(sum(n), 0)::BIGINT FROM "
            "(SELECT DISTINCT row_group_id, row_group_num_rows AS n FROM parquet_metadata(?))"
        )
        if max(rows, groups[0][0]) > MAX_ROWS:
            raise InputError(f"{self.file.name} has {rows:,} rows: more than any study.", _ADVICE)
        shape = {name: kind for name, kind, *_ in self._rows("DESCRIBE SELECT * FROM read_parquet(?)")}
        if shape != COLUMNS:
            wrong = sorted({*shape.items()} ^ {*COLUMNS.items()})[0][0]
            raise InputError(f"{self.file.name} is no packed study: its column {wrong!r} is another.", _ADVICE)
        texts = ("kind", "run", "name", "text", "stage", "task", "metric", "doc_hash", "target", "response")
        lengths = " + ".join(f"coalesce(strlen({name}), 0)" for name in texts)
        [(things, longest, whole, logs)] = self._rows(
            f"""SELECT count(*) FILTER (kind IS DISTINCT FROM 'document'), coalesce(max({lengths}), 0),
                coalesce(sum(CASE WHEN kind = 'document' THEN strlen(coalesce(response, '')) ELSE {lengths} END), 0)
                    ::BIGINT, coalesce(max(len(loglikelihoods)), 0)
            FROM read_parquet(?)"""
        )
        if things > MAX_THINGS or longest > MAX_TEXT_BYTES or whole > MAX_TEXTS_BYTES or logs > 10_000:
            raise InputError(f"{self.file.name} holds more text than any study.", _ADVICE)
        kinds = {kind for (kind,) in self._rows("SELECT DISTINCT kind FROM read_parquet(?)")}
        if not kinds <= set(KINDS):
            raise InputError(f"{self.file.name} holds what this Espalier does not know.", "Update Espalier.")

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, [self._path]).fetchall()
        except duckdb.Error as error:
            raise InputError(f"{self.file.name} is no packed study, or is damaged.", _ADVICE) from error


def sum_of(table: str) -> str:
    """SQL: what the documents of a table come to, whatever their order."""
    texts = ", ".join(f"coalesce({name}::VARCHAR, '-')" for name in ("run", "task", *DOCUMENT))
    return f"(SELECT coalesce(sum(md5_number_lower(concat_ws('|', {texts}))::HUGEINT), 0)::VARCHAR FROM {table})"


def digest(things: Sequence[Mapping[str, Any]], documents: str) -> str:
    """What everything but the row `archive` itself comes to, and that row's text."""
    found = hashlib.sha256(documents.encode())
    for row in things:
        own = row["kind"] == "archive"
        values = [row.get(name) for name in THINGS if not (own and name == "name")]
        found.update(json.dumps(values, ensure_ascii=True, separators=(",", ":")).encode())
    return found.hexdigest()


def copy_bounded(source: Path, target: Path) -> None:
    """Copy an archive to where it can be read under a name of ours. InputError if it is no file, or too large."""
    if not source.is_file():
        raise InputError(f"{source} is not there.", "Check the path.")
    if source.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{source.name} is too large for a packed study ({source.stat().st_size:,} bytes).", _ADVICE)
    shutil.copyfile(source, target)


def _connect(memory: str = "4GB", scratch: Path | None = None) -> "duckdb.DuckDBPyConnection":
    settings: dict[str, Any] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "memory_limit": memory,
        "temp_directory": "" if scratch is None else str(scratch / "spilled"),
        "max_temp_directory_size": _SCRATCH,
        "threads": "2",
    }
    return duckdb.connect(":memory:", config=settings)


def _plain(path: Path) -> str:
    """A path whose `*`, `?` and `[` mean themselves."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
