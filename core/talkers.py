"""Models that can be talked to: dense ones that are on this machine, then saved runs."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from core import estimate
from core.errors import EspalierError
from core.experiment import Experiment
from core.models import catalogue
from core.views import ChatModel


def of(home: Path, runs: pd.DataFrame, offline: Iterable[str]) -> list[ChatModel]:
    """Dense models by name (`offline`, then those of complete runs), then the saved models of `runs`, newest first."""
    complete = runs[runs.state == "COMPLETE"]
    names = list(offline)
    names += [name for name in complete.model.dropna().unique() if name not in names]
    dense = [_dense_model(name) for name in names]
    pruned = complete[complete.method.notna()]
    rows = zip(pruned["id"], pruned["name"], pruned["params_after"], pruned["bytes"], strict=True)
    saved = [_saved_model(home, *row) for row in rows]
    return [model for model in (*dense, *saved) if model is not None]


def _dense_model(name: str) -> ChatModel | None:
    try:
        choice = Experiment.parse({"model": {"name": name}}).model
        source = catalogue.resolve(choice)
    except EspalierError:  # it was there when its run was made, and is not now
        return None
    size = estimate.weight_bytes(source.architecture)
    return ChatModel(f"dense:{name}", f"{source.title}, dense", source.architecture.params, size, None, choice)


def _saved_model(home: Path, run_id: str, name: str, params: float, size: float) -> ChatModel | None:
    folder = home / "runs" / run_id / "model"
    if not (folder / "config.json").is_file():
        return None
    counted, stored = (0 if pd.isna(value) else int(value) for value in (params, size))
    return ChatModel(run_id, name, counted, stored, folder, None, run_id)
