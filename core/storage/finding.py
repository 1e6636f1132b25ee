"""Runs by what is wanted of them, found, sorted and cut into pages in SQL, so that ten thousand stay quick.

Everything that a person typed goes in as a parameter; names of columns come from the tables here and nowhere else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from core.storage.reading import RUN_COLUMNS, SCAN
from core.storage.store import Store

DENSE = "dense"
"""The method of runs that prune nothing."""
SORTS: Mapping[str, str] = {
    "finished": "finished", "created": "created", "name": "lower(name)", "method": "method", "model": "lower(model)",
    "ratio": "ratio", "removed": "achieved_model_ratio", "layers": "layer_first, layer_last",
    "parameters": "params_after", "bytes": "bytes", "seconds": "seconds", "seed": "seed", "state": "state",
    "study": "lower(study)", "recovery": "recovery", "device": "device_name", "dtype": "dtype",
}  # fmt: skip
"""What runs can be sorted by: the name in URLs → SQL. A `Measure.key` can stand in its place."""
MEASURES = 40
"""Measures offered as columns at most: those that most runs have."""
_MODELS = f"kind IS DISTINCT FROM '{SCAN}'"  # a scan of layers is no model: Anatomy shows it
_SEARCHED = ("id", "name", "model", "method", "study", "recovery", "dtype", "device_name", "layout", "experiment")


@dataclass(frozen=True)
class Measure:
    """One number measured in one way, that runs can be listed and sorted by."""

    task: str
    metric: str
    protocol_key: str
    protocol: str = ""
    """JSON."""
    runs: int = 0
    """How many runs have it."""

    @property
    def key(self) -> str:
        """Its name in URLs, and as a column: the key of charts' qualities."""
        return f"{self.task}|{self.metric}|{self.protocol_key}"


@dataclass(frozen=True)
class Wanted:
    """Conditions that a run must meet; what is empty asks nothing."""

    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    """Registered names, a format of a quantised dense model, or `DENSE`."""
    ratio: tuple[float, float] | None = None
    """Lowest and highest ratio asked for, both included; dense runs have none and are left out."""
    layers: tuple[tuple[int, int], ...] = ()
    """Layer ranges, first and last, both included."""
    studies: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    text: str = ""
    """Words that must all occur: in the name, the id, or anything that the experiment's file says."""


@dataclass(frozen=True)
class Offered:
    """What the runs that are there can be filtered by, each with the number of runs."""

    models: Mapping[str, int]
    methods: Mapping[str, int]
    layers: Mapping[tuple[int, int], int]
    studies: Mapping[str, int]
    states: Mapping[str, int]
    ratio: tuple[float, float] | None
    """Lowest and highest ratio asked for."""
    measures: tuple[Measure, ...]
    runs: int


def find(
    store: Store,
    wanted: Wanted,
    *,
    sort: str = "finished",
    descending: bool = True,
    limit: int = 100,
    offset: int = 0,
    measures: Sequence[Measure] = (),
) -> pd.DataFrame:
    """The runs that meet the conditions, sorted, from `offset` on; `limit` at most.

    `sort`: a name in `SORTS` or the key of one of `measures`; anything else sorts by the time of finishing. Runs
    without the value come last, whichever way round. Columns of the store's runs without the experiment, then one a
    measure, named by its key (nan: not measured).
    """
    condition, parameters = _where(wanted)
    columns = [name for name in RUN_COLUMNS if name != "experiment"]
    names = {measure.key: f"m{place}" for place, measure in enumerate(measures)}
    joins, values = _joins(measures)
    order = names.get(sort) or SORTS.get(sort) or SORTS["finished"]
    way = "DESC" if descending else "ASC"
    by = ", ".join(f"{part.strip()} {way} NULLS LAST" for part in order.split(", "))
    shown = ", ".join([*(f"r.{name}" for name in columns), *names.values()])
    frame = store.frame(
        f"SELECT {shown} FROM runs r {joins} WHERE {condition} ORDER BY {by}, r.id DESC LIMIT ? OFFSET ?",
        [*values, *parameters, max(limit, 0), max(offset, 0)],
    )
    frame = frame.rename(columns={short: key for key, short in names.items()})
    for column in ("created", "started", "finished"):
        frame[column] = pd.to_datetime(frame[column]).dt.tz_localize("UTC")
    return frame


def ids(store: Store, wanted: Wanted, *, limit: int) -> list[str]:
    """Ids of the runs that meet the conditions, the newest first; `limit` at most."""
    condition, parameters = _where(wanted)
    query = f"SELECT id FROM runs r WHERE {condition} ORDER BY finished DESC NULLS LAST, id DESC LIMIT ?"
    return [str(row[0]) for row in store.rows(query, [*parameters, limit])]


def count(store: Store, wanted: Wanted) -> int:
    """How many runs meet the conditions."""
    condition, parameters = _where(wanted)
    return int(store.rows(f"SELECT count(*) FROM runs r WHERE {condition}", parameters)[0][0])


def offered(store: Store) -> Offered:
    """What there is to filter by."""
    ranges = store.rows(
        "SELECT layer_first, layer_last, count(*) FROM runs"
        f" WHERE {_MODELS} AND layer_first IS NOT NULL AND layer_last IS NOT NULL GROUP BY ALL ORDER BY 1, 2"
    )
    low, high, runs = store.rows(f"SELECT min(ratio), max(ratio), count(*) FROM runs WHERE {_MODELS}")[0]
    return Offered(
        models=_counted(store, "model"),
        methods=_counted(store, f"coalesce(method, '{DENSE}')"),
        layers={(int(first), int(last)): int(n) for first, last, n in ranges},
        studies=_counted(store, "study"),
        states=_counted(store, "state"),
        ratio=None if low is None else (float(low), float(high)),
        measures=tuple(_measures(store)),
        runs=int(runs),
    )


def _counted(store: Store, expression: str) -> dict[str, int]:
    query = (
        f"SELECT {expression} AS value, count(*) FROM runs WHERE {_MODELS} GROUP BY value ORDER BY count(*) DESC, value"
    )
    return {str(value): int(n) for value, n in store.rows(query) if value not in (None, "")}


def _measures(store: Store) -> Iterable[Measure]:
    rows = store.rows(
        "SELECT task, metric, protocol_key, any_value(protocol), count(DISTINCT run_id) AS n FROM metrics"
        " WHERE stage <> 'dense' AND value IS NOT NULL"
        " GROUP BY task, metric, protocol_key ORDER BY n DESC, task, metric, protocol_key LIMIT ?",
        [MEASURES],
    )
    return (Measure(str(task), str(metric), str(key), str(text), int(n)) for task, metric, key, text, n in rows)


def _joins(measures: Sequence[Measure]) -> tuple[str, list[Any]]:
    """One join a measure; of a run judged before and after recovery, the later value counts."""
    joins: list[str] = []
    values: list[Any] = []
    for place, measure in enumerate(measures):
        joins.append(
            f"LEFT JOIN (SELECT run_id, max_by(value, stage = 'recovered') AS m{place} FROM metrics"
            " WHERE task = ? AND metric = ? AND protocol_key = ? AND stage <> 'dense' GROUP BY run_id)"
            f" t{place} ON t{place}.run_id = r.id"
        )
        values += [measure.task, measure.metric, measure.protocol_key]
    return " ".join(joins), values


def _where(wanted: Wanted) -> tuple[str, list[Any]]:
    parts: list[str] = [_MODELS]
    values: list[Any] = []
    lists = {
        "r.model": wanted.models, f"coalesce(r.method, '{DENSE}')": wanted.methods, "r.study": wanted.studies,
        "r.state": wanted.states,
    }  # fmt: skip
    for expression, names in lists.items():
        if names:
            parts.append(f"list_contains(?::VARCHAR[], {expression})")
            values.append(list(names))
    if wanted.ratio is not None:
        low, high = wanted.ratio
        parts.append("r.ratio BETWEEN ? AND ?")
        values += [low - 1e-9, high + 1e-9]
    if wanted.layers:
        parts.append(f"({' OR '.join(['(r.layer_first = ? AND r.layer_last = ?)'] * len(wanted.layers))})")
        values += [number for each in wanted.layers for number in each]
    searched = f"lower(concat_ws(chr(10), {', '.join(f'r.{name}' for name in _SEARCHED)}))"
    for word in wanted.text.split():
        parts.append(f"contains({searched}, lower(?))")
        values.append(word)
    return " AND ".join(parts), values
