"""What pages ask about the anatomy of a run: what was removed where, what decided, and how far each layer is off.

Everything is read from the run's files when it is asked for; nothing is loaded but numbers. No torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.anatomy_file import FILE, read_anatomy
from core.board import existing
from core.charts_words import mapping
from core.errors import EspalierError, InputError
from core.experiment import Experiment
from core.jobs import stages
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.models.catalogue import resolve
from core.models.sizes import MATRICES, PART_MATRICES, Architecture, LayerSizes
from core.pruning.registry import get
from core.storage.reading import title_of
from core.storage.store import Store
from core.weights_view import Image, Region, zeros_of

PARTS = ("embedding", "attention", "MLP", "norms", "head")


@dataclass(frozen=True)
class RunAnatomy:
    """One run, layer by layer. Texts may come from people: show them as text.

    `layers`: as the pruning stage left them (core.pruning.prune.PruneOutcome), `rows`: of anatomy.parquet without
    images, empty for runs that are older than that file. `drift`, `drift_recovered`: `layer_errors` of results.json.
    """

    run_id: str
    name: str
    method: str
    kind: str
    layers: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    drift: Mapping[str, Any]
    drift_recovered: Mapping[str, Any]
    pruned: Mapping[str, Any]
    selected: tuple[int, int] | None = None
    architecture: Architecture | None = None
    matrices: list[str] = field(default_factory=list)
    """Roles of the matrices that a mask reaches, in the forward pass's order."""
    weights: bool = False
    """Whether the pruned model is on this machine."""
    scan: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ("attention", "mlp")

    @property
    def dropped(self) -> list[int]:
        """Layers that are gone."""
        return [int(row["layer"]) for row in self.layers if not row.get("heads_after") and not row.get("mlp_after")]

    def scores(self, name: str) -> list[dict[str, Any]]:
        """Rows of scores of a part, by layer."""
        found = [row for row in self.rows if row["kind"] == "scores" and row["name"] == name]
        return sorted(found, key=lambda row: int(row["layer"]))

    def after(self) -> Architecture | None:
        """The architecture that is left; None where the dense one is not known."""
        if self.architecture is None:
            return None
        sizes = tuple(
            LayerSizes(int(row["heads_after"]), int(row["kv_after"]), int(row["mlp_after"]))
            for row in self.layers
            if int(row["layer"]) not in self.dropped
        )
        hidden = int(self.pruned.get("hidden_after") or self.architecture.hidden_size)
        return replace(self.architecture, layers=sizes or self.architecture.layers, hidden_size=hidden)


class Anatomies:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(self, store: Store, home: Path) -> None:
        self._store, self._home = store, home

    def runs(self) -> list[tuple[str, str]]:
        """(id, name) of complete runs that cut something or scanned layers, newest first."""
        found = self._store.rows(
            "SELECT id, name FROM runs WHERE state = ? AND kind IN ('mask', 'width', 'hidden', 'depth', 'scan') "
            "ORDER BY finished DESC NULLS LAST, id DESC",
            [str(State.COMPLETE)],
        )
        return [(str(run_id), str(name)) for run_id, name in found]

    def of(self, run_id: str) -> RunAnatomy:
        """InputError where there is no such run, or it has no results yet, or cut nothing."""
        directory = existing(self._home, run_id)
        experiment, results = directory.experiment(), directory.results()
        if experiment.pruning is None:
            raise InputError("The dense model has nothing that was removed.", "Choose a pruned run.")
        if results is None:
            raise InputError("This run has no results yet.", "Look at it on Runs until it is complete.")
        method = get(experiment.pruning.method)
        pruned = mapping(results.get("pruning"))
        recovery = mapping(results.get("recovery"))
        names = self._store.rows("SELECT name FROM runs WHERE id = ?", [run_id])
        reached = [role for part in experiment.pruning.parts for role in PART_MATRICES[part]]
        return RunAnatomy(
            run_id=run_id,
            name=str(names[0][0]) if names else experiment.name or title_of(experiment),
            method=method.name,
            kind=method.kind,
            layers=_layers(directory, pruned),
            rows=read_anatomy(directory.path / FILE),
            drift=mapping(results.get("layer_errors")),
            drift_recovered=mapping(recovery.get("layer_errors")),
            pruned=pruned,
            selected=experiment.pruning.layers,
            architecture=_architecture(experiment),
            matrices=[role for role in MATRICES if role in reached] if method.kind == "mask" else [],
            weights=any(directory.model_dir.glob("*.safetensors")),
            scan=mapping(results.get("scan")),
            parts=experiment.pruning.parts,
        )

    def zeros(self, run_id: str, layer: int, role: str, region: Region | None = None) -> Image | None:
        """Where the zeros of one masked matrix are: from the saved weights, else as noted down; None where neither is.

        region: read from the weights alone; without them the whole matrix comes.
        """
        directory = existing(self._home, run_id)
        if role not in MATRICES or layer < 0:
            raise InputError(f"There is no matrix {role} in layer {layer}.", f"Choose one of {', '.join(MATRICES)}.")
        architecture = _architecture(directory.experiment())
        if architecture is not None and layer < architecture.n_layers and not directory.model_dir.is_symlink():
            shapes = architecture.matrix_shapes(layer)
            above = {"k": ("q",), "v": ("q", "k"), "up": ("gate",)}.get(role, ())
            before = sum(shapes[other][0] for other in above)
            found = zeros_of(directory.model_dir, layer, role, shapes[role], before, region)
            if found is not None:
                return found
        return _noted(read_anatomy(directory.path / FILE, images=True), layer, role)


def _architecture(experiment: Experiment) -> Architecture | None:
    try:
        return resolve(experiment.model).architecture
    except EspalierError:  # the model is not to be had any more
        return None


def _layers(directory: RunDirectory, pruned: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a decoder layer, from the pruning stage, or from the results where that is gone; none if damaged."""
    for found in ((directory.stage(stages.PRUNE) or {}).get("layers"), pruned.get("layers")):
        rows = [dict(row) for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []
        sizes = [f"{unit}_{when}" for unit in ("heads", "kv", "mlp") for when in ("before", "after")]
        if rows and all(isinstance(row.get(name), int) for row in rows for name in ("layer", *sizes)):
            return sorted(rows, key=lambda row: int(row["layer"]))
    return []


def _noted(rows: Sequence[Mapping[str, Any]], layer: int, role: str) -> Image | None:
    for row in rows:
        if row["kind"] != "weights" or (row["layer"], row["name"]) != (layer, role) or not row["image"]:
            continue
        shape, sides = (row["rows"], row["columns"]), (row["image_rows"], row["image_columns"])
        if None in (*shape, *sides) or math.prod(sides) != len(row["image"]):
            continue
        values = np.frombuffer(row["image"], dtype=np.uint8).reshape(sides).astype(np.float64) / 255
        return Image(values, Region(0, shape[0], 0, shape[1]), shape, exact=False)
    return None
