"""Runs that come ready made."""

from core.experiment import Experiment

QUICK_EVALUATION = {
    "perplexity": [{"corpus": "passages", "max_tokens": 8192}],
    "tasks": ["piqa", "arc_easy"],
    "limit": 20,
}
QUICK_LAYERS = [4, 25]


def quick_look() -> list[Experiment]:
    """The built-in model, dense and cut by three means: finished in under five minutes on two CPU cores.

    One third is the least that removes one of SmolLM2's three KV groups. Taylor against random shows what the criterion
    is worth at equal size; Wanda, at half of the weights, that zeros keep quality and bring neither size nor speed.
    """
    calibration = {"samples": 8, "length": 256}
    width = {"ratio": 0.34, "layers": QUICK_LAYERS}
    cuts: list[tuple[str, dict[str, object] | None]] = [
        ("Quick look: dense", None),
        ("Quick look: Taylor 34 %", {"method": "taylor", **width, "calibration": calibration}),
        ("Quick look: random 34 %", {"method": "random", **width}),
        (
            "Quick look: Wanda 50 %",
            {"method": "wanda", "ratio": 0.5, "layers": QUICK_LAYERS, "calibration": calibration},
        ),
    ]
    return [
        Experiment.parse(
            {
                "name": name,
                "pruning": pruning,
                "evaluation": {**QUICK_EVALUATION, "fidelity": pruning is not None},
                "device": "auto",
            }
        )
        for name, pruning in cuts
    ]


def dense_like(experiment: Experiment) -> Experiment:
    """The dense model, judged as `experiment` is, but for fidelity, which compares with the dense model."""
    model = experiment.model.name.rpartition("/")[2]
    changes = {"pruning": None, "recovery": None, "evaluation.fidelity": False, "name": f"{model}, dense"}
    return experiment.with_changes(changes)
