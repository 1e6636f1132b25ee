"""Compare's views: what the picker offers, one at a time. A new one is a module with `show`, and a line in `VIEWS`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from core import charts
from core.service import Service

T = TypeVar("T")


@dataclass(frozen=True)
class Shown:
    """What a view is given: the service, the points of the compared runs, and what they are held against."""

    service: Service
    table: pd.DataFrame
    """`charts.points` of the chosen runs and their baselines."""
    key: tuple[Any, ...]
    """Of `table`, for what is made of it."""
    qualities: Sequence[charts.Quality]
    chosen: Sequence[str]
    """Ids of the chosen runs, as they were ticked."""
    baselines: dict[str, str | None]
    pinned: str | None
    """The run that all are held against; None: each has its own dense run."""

    def once(self, name: str, make: Callable[[], T], *settings: Hashable) -> T:
        """What `make` makes of the table with these settings, made once for all scripts that ask. Not to be changed."""
        return self.service.compare.once((name, *settings, *self.key), make)

    @property
    def tasks(self) -> list[charts.Quality]:
        """The tasks by their usual metric."""
        return [quality for quality in self.qualities if quality.is_task and quality.primary]

    @property
    def against(self) -> str:
        """What differences are taken against, in words."""
        if self.pinned is None:
            return "dense"
        names = self.table.loc[self.table["run_id"] == self.pinned, "label"]
        return str(names.iloc[0]) if len(names) else "the baseline"

    @property
    def labels(self) -> dict[str, str]:
        """Run id → label, the dense model first, as charts have it."""
        rows = charts.at_order(self.table.drop_duplicates("run_id"))
        return dict(zip(rows["run_id"].astype(str), rows["label"].astype(str), strict=True))


@dataclass(frozen=True)
class View:
    """One entry of the picker."""

    name: str
    """What the picker and the URL say."""
    show: Callable[[Shown], None]
    there: Callable[[Shown], bool] = lambda _: True
    """Whether the compared runs have anything to show in it."""


def views() -> list[View]:
    """All views, in the picker's order."""
    from pages._parts import (
        compare_cost,
        compare_many,
        compare_pairs,
        compare_recovery,
        compare_settings,
        compare_size,
        compare_tasks,
        compare_votes,
    )

    return [
        View("Trade-off", compare_size.tradeoff),
        View("By ratio", compare_size.by_ratio),
        View("By task", compare_tasks.dots, lambda shown: bool(shown.tasks)),
        View("Heatmap", compare_tasks.heatmap, lambda shown: bool(shown.tasks)),
        View("Many runs", compare_many.show, lambda shown: shown.table["run_id"].nunique() > 1),
        View("Recovery", compare_recovery.view, lambda shown: compare_recovery.has_gains(shown.table)),
        View("Cost", compare_cost.show),
        View("Two runs", compare_pairs.view),
        View("Settings", compare_settings.show),
        View("Votes", compare_votes.view, lambda shown: compare_votes.has_votes(shown.service)),
    ]
