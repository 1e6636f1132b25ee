"""Runs that come ready made, and the recipe of the door *Smaller and faster*."""

from typing import Any

from core.experiment import Experiment

QUICK_EVALUATION = {
    "perplexity": [{"corpus": "passages", "max_tokens": 4096}],
    "tasks": ["piqa", "arc_easy"],
    "limit": 20,
    "fidelity": False,
}
QUICK_LAYERS = [4, 25]


MLPS_ALONE = 0.7  # share of the model kept, from which on cutting only MLPs was better, the same in every layer


def smaller_and_faster(keep: float, *, stock: bool = False) -> dict[str, Any]:
    """`pruning` of the best known recipe that keeps this share of the model's parameters, 0.5 to 0.95.

    The one place where the recipe stands: the door on Launch fills the form with whatever it says. What is best was
    measured on SmolLM2 (docs/engine.md). stock: every layer ends with the same sizes, so that engines which know stock
    classes only load it, at some 7 % more perplexity.
    """
    found: dict[str, Any] = {"ratio": round(1 - keep, 4), "target": "model", "reconstruct": True}
    if not stock:
        return {"method": "obs", "allocation": "measured", **found}
    parts = {"parts": ["mlp"]} if keep >= MLPS_ALONE else {}
    return {"method": "flap", "same_sizes": True, **found, **parts}


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
    as_it_is = {"pruning": None, "recovery": None, "scan": None, "model.quantised": None}
    changes = {**as_it_is, "evaluation.fidelity": False, "name": f"{model}, dense"}
    return experiment.with_changes(changes)
