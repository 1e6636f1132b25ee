"""Runs that come ready made."""

from core.experiment import Experiment

QUICK_EVALUATION = {
    "perplexity": [{"corpus": "passages", "max_tokens": 4096}],
    "tasks": ["piqa", "arc_easy"],
    "limit": 20,
    "fidelity": False,
}
QUICK_LAYERS = [4, 25]


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
    changes = {"pruning": None, "recovery": None, "evaluation.fidelity": False, "name": f"{model}, dense"}
    return experiment.with_changes(changes)
