"""What Compare asks: which runs there are, what each is held against, and the points behind its charts and tables."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from core import history, pairs
from core.charts_frames import points
from core.configurations import configurations, differences
from core.pruning import registry
from core.storage import finding
from core.storage.finding import Measure, Offered, Wanted
from core.storage.reading import SCAN
from core.storage.store import Store

KEPT = 64
"""Answers that are remembered: points, and charts and tables of them."""
MOST = 300
"""Runs that are compared at once, at most."""
_PINNABLE = f"""
    (SELECT id, name FROM runs WHERE state = 'COMPLETE' AND method IS NULL AND kind IS DISTINCT FROM '{SCAN}'
     ORDER BY finished DESC NULLS LAST, id DESC LIMIT ?)
    UNION ALL
    (SELECT id, name FROM runs WHERE state = 'COMPLETE' AND list_contains(?::VARCHAR[], id)
     ORDER BY created DESC NULLS LAST, id DESC)"""

T = TypeVar("T")


class Comparisons:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    most = MOST

    def __init__(self, store: Store, home: Path, sync: Callable[[], None], paired: pairs.Known) -> None:
        self._store, self._home, self._sync = store, home, sync
        self._paired = paired
        self._lock = threading.Lock()
        self._version = -1
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def offered(self) -> Offered:
        """What runs can be filtered and listed by."""
        self._sync()
        found: Offered = self._remembered(("offered",), lambda: finding.offered(self._store))
        return found

    def find(
        self,
        wanted: Wanted,
        *,
        sort: str = "finished",
        descending: bool = True,
        limit: int = 100,
        offset: int = 0,
        measures: Sequence[Measure] = (),
    ) -> pd.DataFrame:
        """A page of the runs that meet the conditions; see `core.storage.finding.find`."""
        return finding.find(
            self._store, wanted, sort=sort, descending=descending, limit=limit, offset=offset, measures=measures
        )

    def ids(self, wanted: Wanted, limit: int = MOST) -> list[str]:
        """Ids of the runs that meet the conditions, the newest first."""
        return finding.ids(self._store, wanted, limit=limit)

    def count(self, wanted: Wanted) -> int:
        """How many runs meet the conditions."""
        return finding.count(self._store, wanted)

    def ending(self, tail: str) -> list[str]:
        """Ids that end in these letters, eight at least; a few at most."""
        if len(tail) < 8:
            return []
        rows = self._store.rows("SELECT id FROM runs WHERE ends_with(id, ?) ORDER BY id DESC LIMIT 5", [tail])
        return [str(row[0]) for row in rows]

    def known(self, run_ids: Sequence[str]) -> list[str]:
        """Those of the ids that are runs, each once, in their order."""
        wanted = list(dict.fromkeys(run_ids))
        rows = self._store.rows("SELECT id FROM runs WHERE list_contains(?::VARCHAR[], id)", [wanted])
        there = {str(row[0]) for row in rows}
        return [run_id for run_id in wanted if run_id in there]

    def runs(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """The store's rows of these runs, with their experiments."""
        return self._store.runs("list_contains(?::VARCHAR[], id)", [list(dict.fromkeys(run_ids))])

    def pinnable(self, run_ids: Sequence[str], dense: int = 50) -> dict[str, str]:
        """Id → name of what runs can be held against: the newest complete dense runs, then those of the ids that are
        complete."""
        rows = self._store.rows(_PINNABLE, [dense, list(dict.fromkeys(run_ids))])
        return {str(run_id): str(name or "") for run_id, name in rows}

    def baselines(self, run_ids: Sequence[str], pinned: str | None = None) -> dict[str, str | None]:
        """Run id → what it is held against: the pinned run; without one the dense run measured most alike, or None.

        A dense run without a pin is its own.
        """
        if pinned is not None:
            return dict.fromkeys(run_ids, pinned)
        key = ("baselines", *run_ids)
        return dict(self._remembered(key, lambda: history.baselines_for(self._store, run_ids)))

    def points(
        self, run_ids: Sequence[str], baselines: Mapping[str, str | None]
    ) -> tuple[tuple[Any, ...], pd.DataFrame]:
        """One row a run and quality of the runs and of what they are held against: `charts.points`. Before it, a key
        for `once` to what is made of it: another one when the store or a pair has changed."""
        ids = list(dict.fromkeys([*run_ids, *(each for each in baselines.values() if each)]))
        stamps = tuple(pairs.stamp(self._home, run_id) for run_id in ids)
        key = (self._store.version, tuple(ids), tuple(baselines.items()), stamps)  # before the points are read
        found: pd.DataFrame = self._remembered(("points", *key), lambda: self._points(ids, baselines))
        return key, found.copy()

    def once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What `make` gave when it was last asked for by this key, as long as the store has not changed. Not to be
        changed by who gets it: others get the same."""
        found: T = self._remembered(("made", *key), make)
        return found

    def _points(self, ids: Sequence[str], baselines: Mapping[str, str | None]) -> pd.DataFrame:
        titles = {method.name: method.title for method in registry.methods().values()}
        paired = pairs.differences(self._store, self._home, baselines, self._paired)
        return points(self.runs(ids), self._store.metrics(ids), baselines, titles, paired)

    def settings(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """The whole configuration of each run, a row a setting: `core.configurations.configurations`."""
        return configurations(self.runs(run_ids))

    def differing(self, settings: pd.DataFrame) -> pd.DataFrame:
        """The rows of `settings` in which not all runs say the same."""
        return differences(settings)

    def _remembered(self, key: tuple[Any, ...], answer: Callable[[], Any]) -> Any:
        """The answer, kept until the store changes; the least used goes first."""
        with self._lock:
            version = self._store.version
            if version != self._version:
                self._kept.clear()
                self._version = version
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = answer()
        with self._lock:
            if self._version == version:
                self._kept[key] = found
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found
