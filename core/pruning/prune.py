"""Prune a loaded model in place, exactly as planned: calibrate, score, choose, cut.

Mask methods go layer by layer, each layer judged on what the pruned ones before it hand over. Width methods score every
selected layer of the dense model first, because their gradients belong to the dense model, and then cut.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import InputError, NotAvailableError, RunError
from core.experiment import Pruning
from core.models import surgery
from core.models.families import Family, family
from core.models.plans import LayerCut, Plan, plan, zeros_in_matrix
from core.models.sizes import Architecture, LayerSizes
from core.progress import Progress, silent
from core.pruning.calibration import LayerInputs, advance, catch_inputs, input_statistics, windows_a_batch
from core.pruning.gradients import Key, weight_gradients
from core.pruning.masks import keep_mask
from core.pruning.registry import Method, Options, get
from core.pruning.scores import checked, keep_best, keep_best_in_groups, stream
from core.pruning.units import Part, WeightGradients, member_roles, roles_of, structure, unit_of


@dataclass(frozen=True)
class PruneOutcome:
    """What was done. Counts are taken from the model itself after the cut.

    `layers`: one entry per decoder layer with its sizes before and after, `density` (non-zero share of its linear
    weights) and `densities` by role; where units were removed, the kept `query_heads`, `kv_heads` and `channels` by
    their indices in the model before.
    """

    layers: list[dict[str, Any]]
    params_before: int
    params_after: int
    nonzero_after: int
    achieved_ratio: float
    achieved_model_ratio: float
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """Everything that the steps below share."""

    model: nn.Module
    family: Family
    pruning: Pruning
    method: Method
    options: Options
    plan: Plan
    windows: Tensor | None
    seed: int
    calibrate_progress: Progress
    progress: Progress

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.method.needs_for(self.pruning.options))

    def score(self, layer: int, name: str, **offered: Any) -> Tensor:
        """Call the method with those of `offered`, its `options` and its random `generator` that it declares."""
        offered |= {"options": self.options, "generator": stream(self.seed, layer, name)}
        wanted = inspect.signature(self.method.function).parameters
        scores: Tensor = self.method.function(**{key: offered[key] for key in wanted})
        return scores

    def linears(self, layer: int) -> dict[str, nn.Linear]:
        """The linear layers of decoder layer `layer`, by role."""
        return dict(self.family.linears(self.family.layers(self.model)[layer]))


def prune(
    model: nn.Module,
    pruning: Pruning,
    *,
    architecture: Architecture,
    windows: Tensor | None,
    seed: int,
    device: str,
    calibrate_progress: Progress = silent,
    progress: Progress = silent,
) -> PruneOutcome:
    """Cut `model` in place as `plan(architecture, pruning)` says; kept weights keep their values and dtype.

    windows: (n, length) token ids on any device; needed by methods that calibrate, ignored by others. seed: of methods
    that draw at random. calibrate_progress counts windows, progress counts layers; both may raise Cancelled, and then
    the model is half cut and must be thrown away. InputError if windows are missing or the plan does not fit the model,
    NumericalError on nan or inf.
    """
    method = get(pruning.method)
    _refuse_what_is_not_built(method, pruning)
    model.to(device)
    planned = plan(architecture, pruning)
    job = _Job(
        model=model,
        family=family(str(getattr(model.config, "model_type", ""))),
        pruning=pruning,
        method=method,
        options=method.options(**pruning.options),
        plan=planned,
        windows=_usable_windows(method, pruning, windows, device),
        seed=seed,
        calibrate_progress=calibrate_progress,
        progress=progress,
    )
    _check_fit(job)
    before = _count(model)
    kept: dict[int, surgery.Kept] = {}
    with torch.no_grad():
        if method.kind == "mask":
            _mask(job)
        else:
            kept = _width(job)
    return _outcome(job, kept, before)


def _refuse_what_is_not_built(method: Method, pruning: Pruning) -> None:
    asked = {
        "depth methods": method.kind == "depth",
        "pruning.target: model": pruning.target != "selected",
        f"pruning.allocation: {pruning.allocation}": pruning.allocation != "uniform",
        "pruning.reconstruct": pruning.reconstruct,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise NotAvailableError(f"{what} is asked for, but a later release brings it.", "Leave it out.")


def _usable_windows(method: Method, pruning: Pruning, windows: Tensor | None, device: str) -> Tensor | None:
    if not method.calibrated(pruning.options):
        return None
    if windows is None or windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        shape = "none" if windows is None else f"shape {tuple(windows.shape)}"
        raise InputError(
            f"{method.title} needs calibration windows (n, length ≥ 2), but got {shape}.",
            "Give it a calibration corpus.",
        )
    return windows.to(device)


def _check_fit(job: _Job) -> None:
    """The plan was made from config.json; cutting by it is only right if the weights have those shapes."""
    for cut in job.plan.cuts:
        found = {role: tuple(linear.weight.shape) for role, linear in job.linears(cut.layer).items()}
        expected = job.plan.before.matrix_shapes(cut.layer)
        for role, shape in expected.items():
            if found.get(role) != shape:
                raise InputError(
                    f"layer {cut.layer} should have a {role} matrix of {shape}, but has {found.get(role)}.",
                    "The model's config.json does not describe its weights: download the model again.",
                )


# ---------------------------------------------------------------------------------------------------------------- masks


def _mask(job: _Job) -> None:
    """Set weights to zero, layer by layer. Calibrated methods see what the layers already pruned hand over."""
    selected, roles = job.plan.selected, roles_of(job.pruning.parts)
    inputs = _entry_of(job, selected[0]) if "inputs" in job.needs else None
    n_batches = len(inputs.hidden) if inputs else 0
    steps = 2 * n_batches + len(roles)  # a layer's share of the progress
    for position, index in enumerate(selected):
        layer, linears = job.family.layers(job.model)[index], job.linears(index)

        def tell(step: int, position: int = position) -> None:
            job.progress(position + step / steps, len(selected), "layers")

        chosen = {role: linears[role] for role in roles}
        stats = input_statistics(layer, chosen, inputs, tell) if inputs else {}
        zeros = 0
        for i, (role, linear) in enumerate(chosen.items()):
            zeros += _mask_matrix(job, index, role, linear, stats.get(role))
            tell(n_batches + i + 1)
        assert zeros == job.plan.cuts[index].zeros, (zeros, job.plan.cuts[index])
        if inputs and index != selected[-1]:
            advance(layer, inputs, lambda done: tell(n_batches + len(roles) + done))
    job.progress(len(selected), len(selected), "layers")


def _entry_of(job: _Job, index: int) -> LayerInputs:
    """What enters decoder layer `index` for all calibration windows."""
    windows = job.windows
    assert windows is not None
    batch = windows_a_batch(job.pruning.calibration.batch_size, windows.shape[1], windows.device)
    total = len(windows)
    return catch_inputs(
        job.family.backbone(job.model),
        job.family.layers(job.model),
        index,
        windows,
        batch,
        lambda done: job.calibrate_progress(done, total, "windows"),
    )


def _mask_matrix(job: _Job, index: int, role: str, linear: nn.Linear, stats: Any) -> int:
    """Zero one matrix by its scores; returns how many weights went."""
    weight = linear.weight
    scores = job.score(index, role, weight=weight.float(), inputs=stats)
    scores = checked(scores, tuple(weight.shape), job.method.name, f"layer {index}, {role}")
    keep = keep_mask(scores, ratio=job.pruning.ratio, pattern=job.pruning.pattern, compare=job.method.compare)
    weight.masked_fill_(keep.logical_not(), 0)
    gone = keep.numel() - int(keep.sum())
    shape = (weight.shape[0], weight.shape[1])
    assert gone == zeros_in_matrix(shape, job.pruning.ratio, job.pruning.pattern, job.method.compare)
    return gone


# ---------------------------------------------------------------------------------------------------------------- width


def _parts_cut(cut: LayerCut) -> tuple[Part, ...]:
    """Parts of a layer that lose at least one unit."""
    parts: list[Part] = []
    if (cut.before.heads, cut.before.kv_heads) != (cut.after.heads, cut.after.kv_heads):
        parts.append("attention")
    if cut.before.mlp != cut.after.mlp:
        parts.append("mlp")
    return tuple(parts)


def _width(job: _Job) -> dict[int, surgery.Kept]:
    """Remove units; returns what stayed in each layer that lost some."""
    cuts = [cut for cut in job.plan.cuts if _parts_cut(cut)]
    gradients = _gradients(job, cuts) if job.needs & {"gradients", "fisher"} else {}
    kept: dict[int, surgery.Kept] = {}
    for position, cut in enumerate(cuts):
        job.progress(position, len(cuts), "layers")
        of_layer = {
            role: gradients.pop((cut.layer, role))
            for role in roles_of(_parts_cut(cut))
            if (cut.layer, role) in gradients
        }
        kept[cut.layer] = _choose(job, cut, of_layer)
        surgery.cut_layer(job.model, job.family, cut.layer, kept[cut.layer])
    if cuts:
        surgery.finish(job.model, job.family)
    job.progress(len(cuts), len(cuts), "layers")
    return kept


def _gradients(job: _Job, cuts: list[LayerCut]) -> dict[Key, WeightGradients]:
    """Gradients of the matrices that lose rows or columns, and of no others."""
    windows = job.windows
    assert windows is not None
    linears = {
        (cut.layer, role): job.linears(cut.layer)[role]
        for cut in cuts
        for part in _parts_cut(cut)
        for role in member_roles(unit_of(part, job.pruning.heads))
    }
    total = len(windows)
    if not linears:
        return {}
    return weight_gradients(
        job.model,
        job.family.backbone(job.model),
        job.family.layers(job.model),
        job.family.head(job.model),
        linears,
        windows,
        fisher="fisher" in job.needs,
        batch_size=job.pruning.calibration.batch_size,
        progress=lambda done: job.calibrate_progress(done, total, "windows"),
    )


def _choose(job: _Job, cut: LayerCut, gradients: Mapping[str, WeightGradients]) -> surgery.Kept:
    """Score the units of a layer and keep the best: as many as the plan says."""
    before, after = cut.before, cut.after
    query: Tensor | None = None
    kv: Tensor | None = None
    channels: Tensor | None = None
    for part in _parts_cut(cut):
        scores = _scores(job, cut.layer, part, before, gradients)
        if part == "mlp":
            channels = keep_best(scores, after.mlp)
        elif job.pruning.heads == "kv_groups":
            rep = before.heads // before.kv_heads
            kv = keep_best(scores, after.kv_heads)
            query = (kv[:, None] * rep + torch.arange(rep)).flatten()
        else:
            query = keep_best_in_groups(scores, before.kv_heads, after.heads // after.kv_heads)
    return surgery.Kept(query, kv, channels)


def _scores(job: _Job, layer: int, part: Part, sizes: LayerSizes, gradients: Mapping[str, WeightGradients]) -> Tensor:
    """One score per unit (units,) of a part of a layer, higher stays."""
    units = structure(layer, part, job.pruning.heads, sizes, job.linears(layer), gradients)
    scores = job.score(layer, part, structure=units)
    return checked(scores, (units.units,), job.method.name, f"layer {layer}, {part}")


# -------------------------------------------------------------------------------------------------------------- outcome


def _count(model: nn.Module) -> int:
    """Parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _outcome(job: _Job, kept: Mapping[int, surgery.Kept], before: int) -> PruneOutcome:
    planned = job.plan
    after = _count(job.model)
    promised = planned.params_before - planned.params_after
    if before - after != promised:
        raise RunError(
            f"the cut removed {before - after} parameters where {promised} were planned.",
            "This is a fault in Espalier: please report it with the experiment's YAML.",
        )
    return PruneOutcome(
        layers=[_layer_report(job, cut, kept.get(cut.layer)) for cut in planned.cuts],
        params_before=before,
        params_after=after,
        nonzero_after=sum(int(torch.count_nonzero(parameter)) for parameter in job.model.parameters()),
        achieved_ratio=planned.achieved_ratio,
        achieved_model_ratio=planned.achieved_model_ratio,
        warnings=_warnings(job),
    )


def _layer_report(job: _Job, cut: LayerCut, kept: surgery.Kept | None) -> dict[str, Any]:
    linears = job.linears(cut.layer)
    nonzero = {role: int(torch.count_nonzero(linear.weight)) for role, linear in linears.items()}
    size = {role: linear.weight.numel() for role, linear in linears.items()}
    report: dict[str, Any] = {
        "layer": cut.layer,
        "heads_before": cut.before.heads,
        "heads_after": cut.after.heads,
        "kv_before": cut.before.kv_heads,
        "kv_after": cut.after.kv_heads,
        "mlp_before": cut.before.mlp,
        "mlp_after": cut.after.mlp,
        "density": sum(nonzero.values()) / sum(size.values()),
        "densities": {role: nonzero[role] / size[role] for role in linears},
    }
    if kept is not None:
        indices = {"query_heads": kept.query_heads, "kv_heads": kept.kv_heads, "channels": kept.channels}
        report |= {name: kept_ones.tolist() for name, kept_ones in indices.items() if kept_ones is not None}
    return report


def _warnings(job: _Job) -> list[str]:
    """What the person asked for and did not get."""
    if job.method.kind != "width":
        return []
    lost = {part for cut in job.plan.cuts for part in _parts_cut(cut)}
    sizes = job.plan.before.layers[job.plan.selected[0]]
    found: list[str] = []
    if "attention" in job.pruning.parts and "attention" not in lost:
        groups = job.pruning.heads == "kv_groups"
        n = sizes.kv_heads if groups else sizes.heads // sizes.kv_heads
        of = "KV heads" if groups else "query heads of a KV group"
        found.append(f"No head was removed: {job.pruning.ratio:g} of {n} {of} is less than one.")
    if "mlp" in job.pruning.parts and "mlp" not in lost:
        left = f"what {job.pruning.ratio:g} of {sizes.mlp} leaves, rounded up to a multiple of {job.pruning.round_to}"
        found.append(f"No MLP channel was removed: {left}, is all of them.")
    return found
