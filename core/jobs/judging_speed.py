"""The speed part of the evaluation: the judged model and the dense one in turn, with the device to themselves."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from core.jobs.journal import Journal
from core.progress import Progress

if TYPE_CHECKING:
    from core.evaluation.metrics import Metric
    from core.jobs.pipeline import Setting
    from core.models.sizes import Architecture

SPARSE = "2:4"
NOT_ALONE = "another run on this device did not pause"
DISTURBED = "‡ The speed was measured beside other work, and may be too low: {}."
Part = Callable[[Progress], "tuple[list[Metric], list[str]]"]


class Models(Protocol):
    """What `core.jobs.judging` offers: the models, loaded when first asked for."""

    journal: Journal

    def judged(self) -> tuple[Any, Any]: ...

    def dense(self) -> Any: ...


def speed_part(setting: "Setting", models: Models) -> Part:
    """The work, which gives metrics and warnings: speeds and peak memory, of rounded weights those of llama.cpp; and
    multiply-accumulates.

    A metric's stage is its model's name; the first evaluation of any run, a dense one too, is `pruned`.
    """

    def work(progress: Progress) -> tuple[list["Metric"], list[str]]:
        from core.evaluation import macs

        journal, experiment = models.journal, setting.experiment
        if experiment.model.quantised is not None:
            from core.jobs.judging_llamacpp import speeds

            return speeds(setting, journal, progress)
        both = {"pruned": models.judged()[0]}
        if not experiment.dense:
            both["dense"] = models.dense()
        sparse = _with_sparse_kernels(setting, journal, both["pruned"])
        if sparse is not None:
            both[SPARSE] = sparse
        with journal.use.alone(lambda: progress(0, 1, "waits for the device")) as alone:
            found = _measured(both, setting.device, progress, "" if alone else NOT_ALONE)
        shapes = {"pruned": _architecture_of(setting, journal), "dense": setting.source.architecture}
        work_done = [metric for stage in both if stage in shapes for metric in macs.measured(stage, shapes[stage])]
        reasons = dict.fromkeys(metric.details["disturbed"] for metric in found if "disturbed" in metric.details)
        warnings = [DISTURBED.format(reason) for reason in reasons]
        for text in warnings:
            journal.warn(text)
        return [*map(_of_sparse, found), *work_done], warnings

    return work


def _measured(models: dict[str, Any], device: str, progress: Progress, beside: str) -> "list[Metric]":
    from core.evaluation.speed import measure

    return measure(models, device=device, progress=progress, beside=beside)


def _architecture_of(setting: "Setting", journal: Journal) -> "Architecture":
    """Shapes of the judged model: as saved, or the dense ones."""
    from core.models.catalogue import read_config
    from core.models.sizes import Architecture

    if setting.experiment.pruning is None:
        return setting.source.architecture
    return Architecture.from_config(read_config(journal.directory.model_dir))


def _with_sparse_kernels(setting: "Setting", journal: Journal, model: Any) -> Any:
    """The judged model on 2:4 kernels, where the run made a 2:4 mask on a GPU that has them."""
    pruning = setting.experiment.pruning
    if pruning is None or pruning.pattern != "2:4" or not setting.device.startswith("cuda"):
        return None
    from core.errors import NotAvailableError
    from core.evaluation.sparse_kernels import with_sparse_kernels

    try:
        return with_sparse_kernels(model)[0]
    except NotAvailableError as error:
        journal.warn(str(error))
        return None


def _of_sparse(metric: "Metric") -> "Metric":
    """Speeds on 2:4 kernels are a measurement of their own of the same model."""
    if metric.stage != SPARSE:
        return metric
    protocol = {**metric.protocol, "kernels": "semi-structured 2:4"}
    return dataclasses.replace(metric, stage="pruned", task=f"{metric.task}/2:4", protocol=protocol)
