"""The recovery stage: what core.recovery makes of the saved pruned model, in the run's own folders."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from core.jobs import stages
from core.jobs.journal import Journal
from core.progress import Progress
from core.settings import cache

if TYPE_CHECKING:
    from core.jobs.pipeline import Setting


def recovery_stage(journal: Journal, setting: "Setting") -> None:
    """Train, merge, save and verify. A later attempt goes on from the last checkpoint."""
    from core.data.corpora import training_leakage
    from core.models.loading import load
    from core.recovery.recover import Pruned, recover

    experiment, directory = setting.experiment, journal.directory
    assert experiment.recovery is not None
    assert experiment.pruning is not None
    journal.begin(stages.RECOVER)
    source = (directory.stage(stages.LOAD) or {}).get("model", {})
    cut = directory.stage(stages.PRUNE) or {}

    def progress(task: str) -> Progress:
        return journal.progress(task=task)

    def dense(dtype: str) -> tuple[Any, Any]:
        loaded = load(experiment.model, device=setting.device, dtype=dtype, progress=progress("load dense"))
        return loaded.model, loaded.tokenizer

    found = recover(
        Pruned(directory.model_dir, _masked(setting), _cut_layers(cut)),
        experiment.recovery,
        dense=dense,
        fingerprint=setting.source.fingerprint,
        device=setting.device,
        dtype=setting.dtype,
        saved_dtype=str(source["source_dtype"]),
        seed=experiment.seed,
        folder=directory.recovery_dir,
        model_dir=directory.recovered_dir,
        cache=cache(),
        progress=progress,
    )
    if found.training.diverged:
        journal.warn(
            f"Training was called off: {found.training.diverged}. What is judged is the model of step "
            f"{found.training.steps}, before that. Lower recovery.learning_rate."
        )
    sentences = [training_leakage(experiment.recovery.data, text) for text in experiment.evaluation.perplexity]
    warnings = list(dict.fromkeys(filter(None, sentences)))
    for warning in warnings:
        journal.warn(warning)
    journal.finish({**asdict(found), "warnings": warnings}, extra_seconds=found.training.earlier_seconds)


def _masked(setting: "Setting") -> bool:
    from core.pruning.registry import get

    pruning = setting.experiment.pruning
    return pruning is not None and get(pruning.method).kind == "mask"


def _cut_layers(cut: dict[str, Any]) -> tuple[int, ...]:
    """Layers of the pruned model, by their place in it, that lost something; those that went altogether have none."""
    place, found = 0, []
    for row in cut.get("layers", ()):
        if not row["heads_after"] and not row["mlp_after"]:
            continue
        whole = row["heads_after"] == row["heads_before"] and row["mlp_after"] == row["mlp_before"]
        if not whole or float(row.get("density", 1.0)) < 1.0:
            found.append(place)
        place += 1
    return tuple(found)
