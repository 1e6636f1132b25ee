"""Models that can be talked to: dense ones on this machine, then saved runs, before and after recovery, or rounded."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core import estimate
from core.chat.sources import DENSE, PRUNED
from core.errors import EspalierError
from core.experiment import Experiment, ModelChoice
from core.models import catalogue
from core.storage.reading import QUANTISED
from core.views import ChatModel

OVER = ("FAILED", "CANCELLED")


def of(home: Path, runs: pd.DataFrame, offline: Iterable[str]) -> list[ChatModel]:
    """Dense models by name (`offline`, then those of complete runs), then the saved models of `runs`, newest first.

    Of a run with recovery both; of one whose recovery failed, the pruned one, once it was judged.
    """
    complete = runs[runs.state == "COMPLETE"]
    names = list(offline)
    names += [name for name in complete.model.dropna().unique() if name not in names]
    dense = [_dense_model(name) for name in names]
    return [*(model for model in dense if model is not None), *saved(home, runs)]


def key(home: Path, run: pd.DataFrame) -> str | None:
    """The last model of one run (no row: of none); the dense one itself where the run judged that, as it is."""
    if (found := saved(home, run)) or run.empty:
        return found[0].key if found else None
    only = run.iloc[0]
    judged = only.state == "COMPLETE" and pd.isna(only.method) and pd.notna(only.model)
    return _dense_key(only.model) if judged and _dense_model(only.model) is not None else None


def saved(home: Path, runs: pd.DataFrame) -> list[ChatModel]:
    """The saved models of `runs`, in their order: pruned ones, and the dense one rounded to a GGUF format."""
    judged = runs.state.isin(OVER) & runs.recovery.notna() & runs.params_after.notna()
    made = runs[runs.method.notna() & (runs.state.eq("COMPLETE") | judged)]
    names = ("id", "name", "params_after", "bytes", "recovery", "state", "kind", "model", "method")
    root = f"{home}/runs/"
    found: list[ChatModel] = []
    for *row, kind, model, method in zip(*(made[name] for name in names), strict=True):
        found += _rounded_model(root, row, model, method) if kind == QUANTISED else _saved_models(root, *row)
    return found


def _dense_key(name: str) -> str:
    return f"{DENSE}{name}"


def _dense_model(name: str) -> ChatModel | None:
    try:
        choice = Experiment.parse({"model": {"name": name}}).model
        source = catalogue.resolve(choice)
    except EspalierError:  # it was there when its run was made, and is not now
        return None
    size = estimate.weight_bytes(source.architecture)
    return ChatModel(_dense_key(name), f"{source.title}, dense", source.architecture.params, size, None, choice)


def _saved_models(
    root: str, run_id: str, name: str, params: float, size: float, recovery: str | None, state: str
) -> list[ChatModel]:
    """The last model first: its key is the run's id. Quick: most of ten thousand runs keep no model."""
    if not isinstance(recovery, str):
        wanted = [(run_id, name, "model")]
    else:
        wanted = [(run_id, f"{name}, recovered", "recovered")] if state == "COMPLETE" else []
        wanted.append((f"{run_id}{PRUNED}", f"{name}, before recovery", "model"))
    there = [each for each in wanted if os.path.isfile(f"{root}{run_id}/{each[2]}/config.json")]  # noqa: PTH113
    counted, stored = (0 if pd.isna(value) else int(value) for value in (params, size)) if there else (0, 0)
    return [ChatModel(key, title, counted, stored, Path(root, run_id, of), None, run_id) for key, title, of in there]


def _rounded_model(root: str, row: Sequence[Any], of: str, to: str) -> list[ChatModel]:
    """The dense model `of` with the weights of the run's GGUF file in the format `to`; none where that was not kept."""
    run_id, name, params, size = row[:4]
    folder = Path(root, run_id, "model")
    if not any(folder.glob("*.gguf")):
        return []
    choice = ModelChoice.model_validate({"name": of, "quantised": to})
    title = name if to.upper() in name.upper() else f"{name}, {to.upper()}"
    counted, stored = (0 if pd.isna(value) else int(value) for value in (params, size))
    return [ChatModel(run_id, title, counted, stored, folder, choice, run_id)]
