"""What to change in a run that failed, so that it may work: a button's words, and the fields that it sets. No torch.

Only what a machine can decide: less held at once where memory ran out, no weights kept where the disk is full, another
number format where numbers were none. For the rest the advice of the error has to do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import EspalierError
from core.experiment import Experiment
from core.jobs.status import RunStatus

MOST = 2
_LEAST_WINDOW, _LEAST_SAMPLES, _LEAST_CUTOFF = 128, 8, 64


@dataclass(frozen=True)
class Remedy:
    """One change. `text` is a verb with its object; `note` says what else it changes, or ''."""

    text: str
    changes: Mapping[str, Any]
    note: str = ""


def remedies(experiment: Experiment, status: RunStatus, dtype: str) -> list[Remedy]:
    """Changes that may help a failed run, the least of them first; none where nobody can tell.

    `dtype` is the number format that the run had.
    """
    stage = str(status.stage or "").partition(".")[0]
    offered: Iterator[Remedy] = iter(())
    if status.cause in ("memory", "killed"):
        offered = _less_memory(experiment, stage, dtype)
    elif status.cause == "disk":
        offered = _less_disk(experiment)
    elif status.cause == "nan":
        offered = _steadier(experiment, stage, dtype)
    found = []
    for remedy in offered:
        if _works(experiment, remedy):
            found.append(remedy)
        if len(found) == MOST:
            break
    return found


def _less_memory(experiment: Experiment, stage: str, dtype: str) -> Iterator[Remedy]:
    if stage in ("calibrate", "prune", "scan"):
        yield from _calibrating(experiment)
    elif stage == "recover":
        yield from _training(experiment)
    elif stage in ("evaluate", "judge_recovered"):
        yield from _judging(experiment)
    if dtype == "float32":
        yield Remedy("Use bfloat16", {"model.dtype": "bfloat16"}, "Half the memory; numbers differ a little.")


def _calibrating(experiment: Experiment) -> Iterator[Remedy]:
    pruning = experiment.pruning
    if pruning is None or not pruning.reads_text:
        return
    text = pruning.calibration
    if text.batch_size != 1:
        yield Remedy("Calibrate one window at a time", {"pruning.calibration.batch_size": 1}, "The same cut, slower.")
    if text.samples > _LEAST_SAMPLES:
        less = max(text.samples // 2, _LEAST_SAMPLES)
        yield Remedy(f"Lower the calibration samples to {less}", {"pruning.calibration.samples": less})
    if text.length > _LEAST_WINDOW:
        less = max(text.length // 2, _LEAST_WINDOW)
        yield Remedy(f"Lower the calibration length to {less}", {"pruning.calibration.length": less})


def _training(experiment: Experiment) -> Iterator[Remedy]:
    recovery = experiment.recovery
    if recovery is None:
        return
    if recovery.micro_batch != 1:
        yield Remedy("Train one sample at a time", {"recovery.micro_batch": 1}, "The same steps, slower.")
    if recovery.cutoff > _LEAST_CUTOFF:
        less = max(recovery.cutoff // 2, _LEAST_CUTOFF)
        yield Remedy(f"Lower the cutoff to {less} tokens", {"recovery.cutoff": less})
    if recovery.full_weights:
        yield Remedy("Train LoRA matrices instead of full weights", {"recovery.full_weights": False})


def _judging(experiment: Experiment) -> Iterator[Remedy]:
    evaluation = experiment.evaluation
    if evaluation.batch_size != 1:
        yield Remedy("Judge one sequence at a time", {"evaluation.batch_size": 1}, "The same numbers, slower.")
    for name, what in (("fidelity", "the comparison with the dense model"), ("speed", "the speed measurement")):
        if getattr(evaluation, name) and not experiment.dense:
            yield Remedy(f"Leave out {what}", {f"evaluation.{name}": False}, "It holds two models at once.")
    longest = max((text.window for text in evaluation.perplexity), default=0)
    if longest > _LEAST_WINDOW:
        less = max(longest // 2, _LEAST_WINDOW)
        data = [text.model_dump(mode="json", exclude_none=True) for text in evaluation.perplexity]
        shorter = [{**text, "window": min(text["window"], less)} for text in data]
        note = "Perplexities at another window cannot be compared."
        yield Remedy(f"Lower the perplexity window to {less}", {"evaluation.perplexity": shorter}, note)


def _less_disk(experiment: Experiment) -> Iterator[Remedy]:
    if experiment.save_model and not experiment.dense:
        yield Remedy("Keep no weights", {"save_model": False}, "They can be made again later.")


def _steadier(experiment: Experiment, stage: str, dtype: str) -> Iterator[Remedy]:
    if stage == "recover" and experiment.recovery is not None:
        rate = experiment.recovery.learning_rate / 4
        yield Remedy(f"Lower the learning rate to {rate:.3g}", {"recovery.learning_rate": rate})
    if dtype == "float16":
        yield Remedy("Use bfloat16", {"model.dtype": "bfloat16"}, "The range of float32 in the same memory.")
    if dtype != "float32":
        yield Remedy("Use float32", {"model.dtype": "float32"}, "Twice the memory.")


def _works(experiment: Experiment, remedy: Remedy) -> bool:
    try:
        return experiment.with_changes(remedy.changes) != experiment
    except EspalierError:
        return False
