"""Runs that come ready made, and the recipe of the door *Smaller and faster*."""

from typing import Any

from core.experiment import Experiment
from core.pruning.registry import methods

QUICK_EVALUATION = {
    "perplexity": [{"corpus": "passages", "max_tokens": 4096}],
    "tasks": ["piqa", "arc_easy"],
    "limit": 20,
    "fidelity": False,
}
QUICK_LAYERS = [4, 25]


MLPS_ALONE = 0.7  # share of the model kept, from which on cutting only MLPs was better
BEST_FIRST = ("obs", "flap", "taylor")
"""Methods that remove heads and channels, the best known first."""


def smaller_and_faster(keep: float) -> dict[str, Any]:
    """`pruning` of the best known recipe that keeps this share of the model's parameters, 0.5 to 0.95.

    The one place where the recipe stands: the door on Launch fills the form with whatever it says. The same sizes in
    every layer cost little on SmolLM2 (docs/engine.md) and keep the stock class, which every engine loads; where much
    is to go, attention gives its share.
    """
    known = methods()
    method = next(name for name in BEST_FIRST if name in known)
    found = {"method": method, "ratio": round(1 - keep, 4), "target": "model", "same_sizes": True, "reconstruct": True}
    return found | ({"parts": ["mlp"]} if keep >= MLPS_ALONE else {})


def quick_look() -> list[Experiment]:
    """The built-in model, dense and cut in two ways: finished in under five minutes on two CPU cores.

    Taylor, at just over one third, the least that removes one of SmolLM2's three KV groups, is really smaller and
    faster; Wanda sets half of the weights to zero, and neither size nor speed changes.
    """
    calibration = {"samples": 8, "length": 256}
    cuts: dict[str, dict[str, object] | None] = {
        "dense": None,
        "Taylor 34 %": {"method": "taylor", "ratio": 0.34, "layers": QUICK_LAYERS, "calibration": calibration},
        "Wanda 50 %": {"method": "wanda", "ratio": 0.5, "layers": QUICK_LAYERS, "calibration": calibration},
    }
    return [
        Experiment.parse({"name": f"Quick look: {title}", "pruning": pruning, "evaluation": QUICK_EVALUATION})
        for title, pruning in cuts.items()
    ]


def dense_like(experiment: Experiment) -> Experiment:
    """The dense model, judged as `experiment` is, but for fidelity, which compares with the dense model."""
    model = experiment.model.name.removeprefix("builtin:").rstrip("/").rpartition("/")[2]
    as_it_is = {"pruning": None, "recovery": None, "model.quantised": None}
    changes = {**as_it_is, "evaluation.fidelity": False, "name": f"{model}, dense"}
    return experiment.with_changes(changes)
