"""Prune a model in place, as planned: calibrate, score, choose, cut. The kinds of cut have a module each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from core.errors import InputError, RunError
from core.experiment import Pruning
from core.models.body import Body, Resident, whole_fits
from core.models.plans import LayerCut, plan
from core.models.sizes import Architecture
from core.models.surgery import Kept
from core.progress import Progress, silent
from core.pruning.anatomy import Anatomy
from core.pruning.calibration import pass_dtype
from core.pruning.depth import depth
from core.pruning.hidden import hidden
from core.pruning.job import Job, count_nonzero, parts_cut
from core.pruning.masking import mask
from core.pruning.registry import Method, get
from core.pruning.scores import ScoreCache
from core.pruning.units import roles_of
from core.pruning.width import width

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PruneOutcome:
    """What was done. Counts are taken from the model itself after the cut.

    `layers`: one entry per decoder layer with its sizes before and after (0 where the layer is gone), `density`
    (non-zero share of its linear weights) and `densities` by role; where units were removed, the kept `query_heads`,
    `kv_heads` and `channels` by their indices in the model before.
    """

    layers: list[dict[str, Any]]
    params_before: int
    params_after: int
    nonzero_after: int
    achieved_ratio: float
    achieved_model_ratio: float
    hidden_before: int = 0
    hidden_after: int = 0
    passes: str | None = None
    warnings: list[str] = field(default_factory=list)


def prune(
    model: "PreTrainedModel | Body",
    pruning: Pruning,
    *,
    architecture: Architecture,
    windows: Tensor | None,
    seed: int,
    device: str,
    calibrate_progress: Progress = silent,
    progress: Progress = silent,
    cache: ScoreCache | None = None,
    store: str | None = None,
    anatomy: Anatomy | None = None,
    tick: Callable[[], None] = lambda: None,
) -> PruneOutcome:
    """Cut `model` in place as `plan(architecture, pruning)` says; what no refit touches keeps its values and dtype.

    model: in memory, wherever it is, or a Body that says where its layers are. windows: (n, length) token ids on any
    device; needed by methods that calibrate, ignored by others. seed: of methods that draw at random. cache: where
    scores are kept between runs. store: where hidden states wait between layers (default: the device).
    anatomy: takes down what the method saw.
    calibrate_progress counts windows, progress counts layers, tick is called before each batch and tells nothing; each
    may raise Cancelled, and then the model is half cut and must be thrown away. InputError if windows are missing or
    the plan does not fit the model, NumericalError on nan or inf.
    """
    usable = _usable_windows(get(pruning.method), pruning, windows)
    body = model if isinstance(model, Body) else resident(model, device, usable)
    before = _count(body)
    job = job_of(
        body,
        pruning,
        architecture=architecture,
        windows=usable,
        seed=seed,
        calibrate_progress=calibrate_progress,
        progress=progress,
        cache=cache,
        store=store,
        anatomy=anatomy,
        tick=tick,
    )
    with torch.no_grad():
        {"mask": mask, "width": width, "hidden": hidden, "depth": depth}[job.method.kind](job)
    return _outcome(job, before)


def job_of(
    body: Body,
    pruning: Pruning,
    *,
    architecture: Architecture,
    windows: Tensor | None,
    seed: int,
    calibrate_progress: Progress = silent,
    progress: Progress = silent,
    cache: ScoreCache | None = None,
    store: str | None = None,
    anatomy: Anatomy | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Job:
    """What the steps of a cut share, for a model as `architecture` says. InputError where these do not fit."""
    method = get(pruning.method)
    job = Job(
        body=body,
        pruning=pruning,
        method=method,
        options=method.options(**pruning.options),
        plan=plan(architecture, pruning),
        windows=_usable_windows(method, pruning, windows),
        seed=seed,
        calibrate_progress=calibrate_progress,
        progress=progress,
        cache=cache,
        store=store,
        anatomy=anatomy,
        tick=tick,
    )
    _check_fit(job)
    return job


def resident(model: "PreTrainedModel", device: str, windows: Tensor | None) -> Resident:
    """The whole model on the device where that leaves room, else a layer at a time."""
    passes = 0 if windows is None else 3 * windows.numel() * int(model.config.hidden_size) * model.dtype.itemsize
    return Resident(model, device, whole=whole_fits(model, device, passes))


def _usable_windows(method: Method, pruning: Pruning, windows: Tensor | None) -> Tensor | None:
    if not pruning.reads_text:
        return None
    if windows is None or windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        shape = "none" if windows is None else f"shape {tuple(windows.shape)}"
        raise InputError(
            f"{method.title} needs calibration windows (n, length ≥ 2), but got {shape}.",
            "Give it a calibration corpus.",
        )
    return windows


def _check_fit(job: Job) -> None:
    """The plan was made from config.json; cutting by it is only right if the weights have those shapes."""
    layers = job.body.layers()
    for cut in job.plan.cuts:
        found = {role: tuple(each.weight.shape) for role, each in job.matrices(layers[cut.layer]).items()}
        for role, shape in job.plan.before.matrix_shapes(cut.layer).items():
            if found.get(role) != shape:
                raise InputError(
                    f"layer {cut.layer} should have a {role} matrix of {shape}, but has {found.get(role)}.",
                    "The model's config.json does not describe its weights: download the model again.",
                )


# -------------------------------------------------------------------------------------------------------------- outcome


def _count(body: Body) -> int:
    """Parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in body.model.parameters())


def _outcome(job: Job, before: int) -> PruneOutcome:
    planned, body = job.plan, job.body
    after = _count(body)
    _check_promise(job, before - after)
    remaining = [cut.layer for cut in planned.cuts if cut.layer not in job.removed_layers]
    for place, index in enumerate(remaining):
        if index not in job.reports:
            with body.at(place, final=True) as layer:
                job.report(index, layer)
    with body.outside():
        inside = {id(each) for layer in body.layers() for each in layer.parameters()}
        outside = count_nonzero(each for each in body.model.parameters() if id(each) not in inside)
    gone = _zeroed(job) if planned.kind == "mask" else before - after
    on_text = str(pass_dtype(body.model.dtype, body.device)).removeprefix("torch.")
    return PruneOutcome(
        layers=[_layer_report(job, cut) for cut in planned.cuts],
        params_before=before,
        params_after=after,
        nonzero_after=outside + sum(report.nonzero_in_all for report in job.reports.values()),
        achieved_ratio=gone / planned.reach if planned.reach else 0.0,
        achieved_model_ratio=gone / before,
        hidden_before=planned.before.hidden_size,
        hidden_after=int(body.model.config.hidden_size),
        passes=None if job.windows is None else on_text,
        warnings=[*job.warnings, *_warnings(job, before - after)],
    )


def _zeroed(job: Job) -> int:
    """Zeros in the matrices that a mask reaches."""
    roles = roles_of(job.pruning.parts)
    return sum(
        job.reports[index].size[role] - job.reports[index].nonzero[role]
        for index in job.plan.selected
        for role in roles
    )


def _check_promise(job: Job, gone: int) -> None:
    planned = job.plan
    promised = planned.params_before - planned.params_after
    even = planned.exact or len(set(planned.before.layers)) == 1
    if gone != promised and (planned.exact or (planned.kind == "depth" and even)):
        raise RunError(
            f"the cut removed {gone} parameters where {promised} were planned.",
            "This is a fault in Espalier: please report it with the experiment's YAML.",
        )


def _layer_report(job: Job, cut: LayerCut) -> dict[str, Any]:
    before = cut.before
    found: dict[str, Any] = {"layer": cut.layer, "heads_before": before.heads, "kv_before": before.kv_heads}
    found["mlp_before"] = before.mlp
    report = job.reports.get(cut.layer)
    if report is None:
        return found | {"heads_after": 0, "kv_after": 0, "mlp_after": 0, "density": 0.0, "densities": {}}
    kept = report.kept or Kept()
    after = {
        "heads_after": before.heads if kept.query_heads is None else len(kept.query_heads),
        "kv_after": before.kv_heads if kept.kv_heads is None else len(kept.kv_heads),
        "mlp_after": before.mlp if kept.channels is None else len(kept.channels),
        "density": sum(report.nonzero.values()) / sum(report.size.values()),
        "densities": {role: report.nonzero[role] / size for role, size in report.size.items()},
    }
    indices = {"query_heads": kept.query_heads, "kv_heads": kept.kv_heads, "channels": kept.channels}
    return found | after | {name: ones.tolist() for name, ones in indices.items() if ones is not None}


def _warnings(job: Job, gone: int) -> list[str]:
    """What the person asked for and did not get."""
    planned, pruning = job.plan, job.pruning
    if planned.kind != "width":
        return []
    found: list[str] = []
    if planned.exact:
        lost = {part for cut in planned.cuts for part in parts_cut(cut)}
        sizes = planned.before.layers[planned.selected[0]]
        if "attention" in pruning.parts and "attention" not in lost and pruning.target == "selected":
            groups = pruning.heads == "kv_groups"
            n = sizes.kv_heads if groups else sizes.heads // sizes.kv_heads
            of = "KV heads" if groups else "query heads of a KV group"
            found.append(f"No head was removed: {pruning.ratio:g} of {n} {of} is less than one.")
        if "mlp" in pruning.parts and "mlp" not in lost:
            left = f"what {pruning.ratio:g} of {sizes.mlp} leaves, rounded up to a multiple of {pruning.round_to}"
            found.append(f"No MLP channel was removed: {left}, is all of them.")
    if pruning.target == "model" or not planned.exact:
        share, goal = gone / planned.params_before, planned.goal / planned.params_before
        if abs(goal - share) > 0.002:
            found.append(
                f"{share:.1%} of the model was removed where {goal:.1%} was the goal: "
                "the units that could go do not add up to it."
            )
    return found
