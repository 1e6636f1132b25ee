"""Configurations side by side: every setting of several runs, and those in which they differ. Pure pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from core import yaml_text
from core.errors import EspalierError
from core.experiment import Experiment

FACTS = {"dtype": "computed in", "device_name": "device", "fingerprint": "weights"}
"""What a run found out by itself, as columns of the store's runs, and how that is called."""
_HASH = 12


def configurations(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a setting (its dotted path, as in the YAML), one column a run (its id), texts; '' where it has none.

    runs: the store's table, with `id`, `experiment` and, where they are known, the columns of `FACTS`. Defaults are
    filled in, so that a setting that was left out equals the same one written down. The run's name is left out.
    """
    columns = {str(run_id): _settings(text) for run_id, text in zip(runs["id"], runs["experiment"], strict=True)}
    for name, title in FACTS.items():
        for run_id, value in zip(runs["id"], runs[name], strict=True) if name in runs else ():
            if isinstance(value, str) and value:
                columns[str(run_id)][title] = value[:_HASH] if name == "fingerprint" else value
    order = list(dict.fromkeys(path for column in columns.values() for path in column))
    order.sort(key=lambda path: _PLACES.get(path.partition(".")[0], len(_PLACES)))
    return pd.DataFrame({run_id: [own.get(path, "") for path in order] for run_id, own in columns.items()}, index=order)


_PLACES = {name: place for place, name in enumerate(("model", "pruning", "recovery", "evaluation"))}


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `configurations` in which not all runs say the same."""
    return table[table.nunique(axis=1) > 1]


def _settings(text: Any) -> dict[str, str]:
    return dict(_flat(text)) if isinstance(text, str) else {}


@lru_cache(maxsize=2048)
def _flat(text: str) -> tuple[tuple[str, str], ...]:
    """Dotted paths and values; of a file that this version cannot read, what it says."""
    try:
        data: Any = Experiment.from_yaml(text).to_dict()
    except EspalierError:
        try:
            data = yaml_text.load_mapping(text)
        except EspalierError:
            return (("experiment", "cannot be read"),)
    data.pop("name", None)
    return tuple(_leaves(data, ""))


def _leaves(value: Mapping[str, Any], path: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, each in value.items():
        where = f"{path}.{name}" if path else str(name)
        if isinstance(each, Mapping) and each:
            found += _leaves(each, where)
        elif isinstance(each, Sequence) and not isinstance(each, str) and each and isinstance(each[0], Mapping):
            for place, entry in enumerate(each, 1):
                found += _leaves(entry, f"{where}.{place}" if len(each) > 1 else where)
        else:
            found.append((where, _words(each)))
    return found


def _words(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_words(each) for each in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
