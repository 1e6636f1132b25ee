"""Models that can be talked to: dense ones that are on this machine, then saved runs, before and after recovery."""

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from core import estimate
from core.chat.client import PRUNED
from core.errors import EspalierError
from core.experiment import Experiment
from core.models import catalogue
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


def saved(home: Path, runs: pd.DataFrame) -> list[ChatModel]:
    """The saved models of `runs`, in their order."""
    judged = runs.state.isin(OVER) & runs.recovery.notna() & runs.params_after.notna()
    pruned = runs[runs.method.notna() & (runs.state.eq("COMPLETE") | judged)]
    columns = (pruned[name] for name in ("id", "name", "params_after", "bytes", "recovery", "state"))
    root = f"{home}/runs/"
    return [model for row in zip(*columns, strict=True) for model in _saved_models(root, *row)]


def _dense_model(name: str) -> ChatModel | None:
    try:
        choice = Experiment.parse({"model": {"name": name}}).model
        source = catalogue.resolve(choice)
    except EspalierError:  # it was there when its run was made, and is not now
        return None
    size = estimate.weight_bytes(source.architecture)
    return ChatModel(f"dense:{name}", f"{source.title}, dense", source.architecture.params, size, None, choice)


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
