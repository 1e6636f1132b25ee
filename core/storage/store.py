"""results.duckdb: a view of the run directories and conversations for asking questions fast.

Lost or damaged, it is made again from them. One connection, a cursor of its own for every question, everything fetched
at once: safe from many threads. One writer at a time. While another process has the file open (DuckDB then refuses even
readers), the same view is built in memory and `read_only` is true.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd

from core import settings
from core.errors import StoreError
from core.storage import chats, migrations
from core.storage.listing import Listing, run_directories
from core.storage.reading import (
    LAYER_COLUMNS,
    METRIC_COLUMNS,
    RUN_COLUMNS,
    SCAN_COLUMNS,
    STAGE_COLUMNS,
    RunRows,
    read_run,
    signature,
)

CONTENT = ("runs", "metrics", "layers", "stages", "scans")
TABLES = (*CONTENT, "sources")
"""`sources` only remembers which files the rows came from."""
TIMES = ("created", "started", "finished")
FINISHED = ("COMPLETE", "FAILED", "CANCELLED")
IN_MEMORY = ":memory:"
_log = logging.getLogger(__name__)
_SOURCE_COLUMNS = {"run_id": "VARCHAR", "signature": "VARCHAR"}
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}


class Store:
    """The tables of one home. Open with `Store.open(home)`; `Store(':memory:')` is an empty one."""

    def __init__(self, path: Path | str = IN_MEMORY) -> None:
        self.path = str(path)
        self.read_only = False
        """True where another process owns the file, and this is a copy in memory."""
        self.notice = ""
        """What a person should know of how the store was opened, or ''."""
        self.behind = ""
        """Why the tables could not be brought level with the files when that was last tried, or ''."""
        self.version = 0
        """Grows with every change: whoever keeps an answer keeps it with the version it was given at."""
        self._write = threading.RLock()
        self._cursors = threading.Lock()
        self._last: dict[str, RunRows] = {}
        self._listing = Listing()
        self._known: dict[str, str] | None = None
        self._over: set[str] = set()
        self._connection = _connect(self.path)
        try:
            self.migrated = migrations.migrate(self._connection)
            self._probe()
        except BaseException:
            self._connection.close()
            raise

    @classmethod
    def open(cls, home: Path | None = None, *, owned: bool = True) -> "Store":
        """Open the store of `home` (default: the settings') and bring it level with the run directories.

        A damaged file is moved aside and the store made anew; a file that another process holds, or that cannot be
        written, gives a copy in memory. So does `owned=False`, for who knows that the home is another's: the file is
        not touched, even if its owner has not opened it yet.
        """
        home = settings.home() if home is None else home
        home.mkdir(parents=True, exist_ok=True)
        file = home / settings.database_file().name
        try:
            store = cls(file) if owned else _in_memory("Another process owns results.duckdb.")
        except (duckdb.Error, StoreError) as error:
            store = _instead_of(file, error)
        if store.migrated:
            store.reindex(home)
        else:
            store.sync(home, thorough=True)
        return store

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._write, self._cursors:
            self._connection.close()

    # ------------------------------------------------------------------------------------------------------ writing

    def ingest(self, directory: Path) -> bool:
        """Read one run directory and replace its rows; returns whether anything changed. Safe to repeat.

        Text that cannot be read becomes a row that says so, never an exception. StoreError if the database fails.
        """
        with self._write:
            return self._take([directory]) > 0

    def _take(self, directories: Iterable[Path]) -> int:
        """Read run directories and replace the rows of those that changed, all at once; returns how many did."""
        pairs: list[tuple[RunRows, str]] = []
        changed = 0
        for directory in directories:
            mark = signature(directory)
            rows = read_run(directory)
            if rows is None:
                changed += self._forget(directory.name)
            elif self._last.get(rows.run_id) == rows:
                self._marks()[rows.run_id] = mark  # other bytes, the same rows: not read again for them
            else:
                pairs.append((rows, mark))
        if pairs:
            with self._transaction() as cursor:
                _delete(cursor, [rows.run_id for rows, _ in pairs])
                _insert(cursor, pairs)
            self.version += 1
        for rows, mark in pairs:
            self._keep(rows, mark)
        return changed + len(pairs)

    def _keep(self, rows: RunRows, mark: str) -> None:
        self._marks()[rows.run_id] = mark
        if rows.run["state"] in FINISHED:
            self._over.add(rows.run_id)
            self._last.pop(rows.run_id, None)
        else:
            self._over.discard(rows.run_id)
            self._last[rows.run_id] = rows

    def _marks(self) -> dict[str, str]:
        """Signatures of the files that rows came from, by run; and `_over`: the runs that are over. Read once."""
        if self._known is None:
            self._known = dict(self._fetch("SELECT run_id, signature FROM sources"))
            found = self._fetch("SELECT id FROM runs WHERE list_contains(?::VARCHAR[], state)", [list(FINISHED)])
            self._over = {str(row[0]) for row in found}
        return self._known

    def sync(self, home: Path, thorough: bool = False) -> int:
        """Bring the tables level with the files of `home` by their sizes and times; returns how many runs changed.

        Finished runs never change, so they are only looked for, unless `thorough`. Where nothing can be written (a full
        disk), what was known stays, `behind` says so, and the next call tries again.
        """
        try:
            changed = self._level(home, thorough)
        except StoreError as error:
            _log.warning("The store stays behind: %s", error)
            self.behind = f"{error.message} What pages show may be behind the files."
            return 0
        self.behind = ""
        return changed

    def _level(self, home: Path, thorough: bool) -> int:
        with self._write:
            self._sync_chats(home)
            known, present = self._marks(), self._listing.names(home)
            changed = sum(self._forget(run_id) for run_id in known.keys() - present)
            runs = home / "runs"
            asked = sorted(present if thorough else present - self._over)
            return changed + self._take(
                path for path in (runs / run_id for run_id in asked) if known.get(path.name) != signature(path)
            )

    def _sync_chats(self, home: Path) -> None:
        present = chats.files(home)
        changed, gone = chats.stale(dict(self._fetch("SELECT conversation, signature FROM chat_sources")), present)
        if changed or gone:
            with self._transaction() as cursor:
                chats.replace(cursor, present, changed, gone)
            self.version += 1

    def reindex(self, home: Path) -> int:
        """Empty the tables and read every run directory and conversation of `home`; returns how many runs there are."""
        with self._write:
            pairs = []
            for path in run_directories(home):
                mark = signature(path)
                rows = read_run(path)
                if rows is not None:
                    pairs.append((rows, mark))
            with self._transaction() as cursor:
                for table in (*TABLES, *chats.TABLES):
                    cursor.execute(f"DELETE FROM {table}")
                _insert(cursor, pairs)
                present = chats.files(home)
                chats.replace(cursor, present, list(present), [])
            self._last.clear()
            self._known = None
            self.version += 1
            return len(pairs)

    def remove(self, run_id: str) -> None:
        """Forget a run whose directory is gone."""
        with self._write:
            self._forget(run_id)

    def _forget(self, run_id: str) -> bool:
        self._last.pop(run_id, None)
        self._marks().pop(run_id, None)
        self._over.discard(run_id)
        with self._transaction() as cursor:
            known = cursor.execute("SELECT 1 FROM sources WHERE run_id = ?", [run_id]).fetchall()
            _delete(cursor, [run_id])
        self.version += bool(known)
        return bool(known)

    # ------------------------------------------------------------------------------------------------------ asking

    def runs(
        self,
        where: str = "",
        parameters: Sequence[Any] = (),
        *,
        order: str = "created DESC NULLS LAST, id DESC",
        limit: int | None = None,
    ) -> pd.DataFrame:
        """One row a run, newest first; `where` is an SQL condition with ? for each parameter. Times are UTC."""
        condition = f"WHERE {where}" if where else ""
        most = "" if limit is None else f"LIMIT {int(limit)}"
        frame = self._frame(
            f"SELECT {', '.join(RUN_COLUMNS)} FROM runs {condition} ORDER BY {order} {most}",
            parameters,
        )
        for column in TIMES:
            frame[column] = pd.to_datetime(frame[column]).dt.tz_localize("UTC")
        return frame

    def metrics(self, run_ids: Iterable[str]) -> pd.DataFrame:
        """One row a measured number of these runs, in the order in which they were measured."""
        return self._of("metrics", METRIC_COLUMNS, run_ids, "run_id, rowid")

    def layers(self, run_ids: Iterable[str]) -> pd.DataFrame:
        """One row a decoder layer of these runs: sizes before and after, and the share of weights that are not zero."""
        return self._of("layers", LAYER_COLUMNS, run_ids, "run_id, layer")

    def stages(self, run_ids: Iterable[str]) -> pd.DataFrame:
        """One row a stage of these runs, in order, with its seconds."""
        return self._of("stages", STAGE_COLUMNS, run_ids, "run_id, position")

    def scans(self, run_ids: Iterable[str]) -> pd.DataFrame:
        """One row a layer (or a part of it) that these runs pruned by itself, in order, with its cost in nats."""
        return self._of("scans", SCAN_COLUMNS, run_ids, "run_id, rowid")

    def rows(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Answer of any SELECT over the tables, as tuples."""
        return self._fetch(query, parameters)

    def frame(self, query: str, parameters: Sequence[Any] = ()) -> pd.DataFrame:
        """Answer of any SELECT, over Parquet files too, as a table."""
        return self._frame(query, parameters)

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """The content of every table, sorted: two stores of the same files are equal by it."""
        tables = (*CONTENT, *chats.COLUMNS)
        return {table: sorted(self._fetch(f"SELECT * FROM {table}"), key=repr) for table in tables}

    def _of(self, table: str, columns: Iterable[str], run_ids: Iterable[str], order: str) -> pd.DataFrame:
        ids = list(dict.fromkeys(run_ids))
        query = f"SELECT {', '.join(columns)} FROM {table} WHERE list_contains(?::VARCHAR[], run_id) ORDER BY {order}"
        return self._frame(query, [ids])

    def _frame(self, query: str, parameters: Sequence[Any] = ()) -> pd.DataFrame:
        with self._cursor() as cursor:
            relation = cursor.sql(query, params=list(parameters)) if parameters else cursor.sql(query)
            frame: pd.DataFrame = relation.df()
            return frame

    def _fetch(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._cursor() as cursor:
            return cursor.execute(query, list(parameters)).fetchall()

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._cursors:
                cursor = self._connection.cursor()
            try:
                yield cursor
            finally:
                cursor.close()
        except duckdb.Error as error:
            raise StoreError(
                f"results.duckdb cannot answer ({type(error).__name__}: {_first_line(error)}).",
                "Start the app again: it makes the store anew from the run directories if the file is damaged.",
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                cursor.execute("ROLLBACK")
                raise

    def _probe(self) -> None:
        """Read every block once, so that damage shows when the file is opened and not under a page."""
        for table in (*TABLES, *chats.TABLES):
            self._connection.execute(f"SELECT count(*), bit_xor(hash(t)) FROM {table} t").fetchall()


def reindex(home: Path | None = None) -> int:
    """Make results.duckdb of `home` anew from its files; returns how many runs it holds.

    StoreError if another process has it open: that process keeps it level by itself.
    """
    home = settings.home() if home is None else home
    store = Store.open(home)
    try:
        if store.read_only:
            raise StoreError(
                store.notice, "The app keeps the store level with the files; stop it to make the store anew."
            )
        return store.reindex(home)
    finally:
        store.close()


def _connect(path: str) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(path, config=_CONFIG)


def _instead_of(file: Path, error: Exception) -> Store:
    """What to use for a file that does not open: a copy in memory if it is held or write-protected, else a new file."""
    held = isinstance(error, duckdb.IOException) and "lock" in str(error).lower()
    if held or not os.access(file if file.exists() else file.parent, os.R_OK | os.W_OK):
        return _in_memory("Another process has results.duckdb open." if held else f"{file.name} cannot be written.")
    aside = _move_aside(file)
    store = Store(file)
    store.notice = (
        f"{file.name} could not be read and was made anew from the runs; the old file is kept as {aside.name}."
    )
    return store


def _in_memory(why: str) -> Store:
    store = Store(IN_MEMORY)
    store.read_only, store.notice = True, why
    return store


def _move_aside(file: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    aside = file.with_name(f"{file.name}.damaged-{stamp}")
    for suffix in ("", ".wal"):
        part = file.with_name(file.name + suffix)
        if part.exists():
            os.replace(part, aside.with_name(aside.name + suffix))  # noqa: PTH105
    return aside


def _delete(cursor: duckdb.DuckDBPyConnection, run_ids: list[str]) -> None:
    for table in TABLES:
        column = "id" if table == "runs" else "run_id"
        cursor.execute(f"DELETE FROM {table} WHERE list_contains(?::VARCHAR[], {column})", [run_ids])


def _insert(cursor: duckdb.DuckDBPyConnection, pairs: list[tuple[RunRows, str]]) -> None:
    """Insert whole columns as lists: a hundred times faster than row by row."""
    batches: dict[str, tuple[Mapping[str, str], list[Sequence[Any]]]] = {
        "runs": (RUN_COLUMNS, [[rows.run[column] for column in RUN_COLUMNS] for rows, _ in pairs]),
        "metrics": (METRIC_COLUMNS, [row for rows, _ in pairs for row in rows.metrics]),
        "layers": (LAYER_COLUMNS, [row for rows, _ in pairs for row in rows.layers]),
        "stages": (STAGE_COLUMNS, [row for rows, _ in pairs for row in rows.stages]),
        "scans": (SCAN_COLUMNS, [row for rows, _ in pairs for row in rows.scans]),
        "sources": (_SOURCE_COLUMNS, [(rows.run_id, mark) for rows, mark in pairs]),
    }
    for table, (columns, values) in batches.items():
        if values:
            lists = [list(column) for column in zip(*values, strict=True)]
            parts = ", ".join(f"unnest(?::{kind}[])" for kind in columns.values())
            cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {parts}", lists)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
