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
from core.experiment import Experiment, PerplexityCorpus
from core.jobs import stages
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.models.catalogue import resolve
from core.models.sizes import MATRICES, PART_MATRICES, Architecture, LayerSizes
from core.pruning.registry import get
from core.storage.reading import title_of
from core.storage.store import Store
from core.weights_view import Image, Region, zeros_of

SCAN_TOKENS = 4096
"""Of the text that a scan reads, unless its file says otherwise: enough to tell layers apart."""


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

    def scan_for(self, found: RunAnatomy) -> "tuple[str, str, Mapping[str, Any]] | None":
        """(run id, name, results) of the complete scan that says most of a run's model and method; None without one.

        The same model by its content; the same method, and then the nearest ratio; the newest of equals.
        """
        rows = self._store.rows(
            "SELECT s.id, s.name FROM runs s JOIN runs r ON r.id = ? WHERE s.kind = 'scan' AND s.state = 'COMPLETE' "
            "AND s.method = r.method AND coalesce(s.fingerprint = r.fingerprint, s.model = r.model) "
            "ORDER BY abs(s.ratio - r.ratio) NULLS LAST, s.finished DESC NULLS LAST, s.id DESC LIMIT 1",
            [found.run_id],
        )
        for run_id, name in rows:
            scan = mapping((existing(self._home, str(run_id)).results() or {}).get("scan"))
            if scan.get("layers"):
                return str(run_id), str(name), scan
        return None

    def scan_of(self, experiment: Experiment) -> Experiment:
        """The scan of all layers by this experiment's method and ratio, on a little of its text. InputError where its
        method has no single layers to try."""
        pruning = experiment.pruning
        if pruning is None or get(pruning.method).kind == "hidden":
            raise InputError("There are no single layers to try.", "Choose a method that cuts layers, or in them.")
        data = experiment.to_dict()
        for name in ("layers", "target", "allocation", "same_sizes"):
            data["pruning"].pop(name, None)
        text = (*experiment.evaluation.perplexity, PerplexityCorpus())[0]
        tokens = max(text.window, min(SCAN_TOKENS, text.max_tokens or SCAN_TOKENS))
        text = text.model_copy(update={"max_tokens": tokens})
        data |= {
            "name": "",
            "recovery": None,
            "scan": {},
            "evaluation": {"perplexity": [text.model_dump(mode="json", exclude_none=True)]},
        }
        return Experiment.parse(data)

    def run_of(self, scan: Experiment, layers: tuple[int, int] | None) -> Experiment:
        """The run that a scan speaks for: its method and ratio on these layers (None: all), judged as usual."""
        data = scan.to_dict()
        data["pruning"]["layers"] = None if layers is None else list(layers)
        text = {**data["evaluation"]["perplexity"][0], "max_tokens": None}
        return Experiment.parse({**data, "name": "", "scan": None, "evaluation": {"perplexity": [text]}})

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
