"""Removing heads and MLP channels: score the dense model's units, share the ratio out, cut, and refit if asked for."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from core.models import surgery
from core.models.sizes import LayerSizes
from core.models.surgery import Kept
from core.pruning.allocation import global_sizes
from core.pruning.calibration import InputStats
from core.pruning.curvature import Curvature, curvatures
from core.pruning.gradients import weight_gradients
from core.pruning.job import Job, parts_cut
from core.pruning.measured import measured_sizes
from core.pruning.reconstruction import Refit
from core.pruning.scores import checked, keep_best, keep_best_in_groups
from core.pruning.units import WeightGradients, member_roles, reader_role, structure, unit_of

Key = tuple[int, str]  # layer, part
_SCORING = 0.3  # of the time until all is chosen, where costs of cuts are measured, too


def width(job: Job) -> None:
    """Cut every layer that loses units; the model's config says the new sizes afterwards."""
    measured = job.pruning.allocation == "measured"
    job.span = (0.0, _SCORING) if measured else (0.0, 1.0)
    scores = importances(job)
    job.span = (_SCORING, 1.0) if measured else (0.0, 1.0)
    kept = choose(job, scores)
    _note(job, scores, kept)
    if job.pruning.reconstruct and kept:
        Refit(job, kept).run()
    else:
        for position, (index, stays) in enumerate(sorted(kept.items())):
            job.progress(position, len(kept), "layers")
            with job.body.at(index, final=True) as layer:
                cut(job, index, stays)
                job.report(index, layer, stays)
    if kept:
        surgery.finish(job.body.model, job.body.family)
    job.progress(len(kept), len(kept), "layers")


def _note(job: Job, scores: Mapping[Key, Tensor], kept: Mapping[int, Kept]) -> None:
    if job.anatomy is None:
        return
    for (index, part), found in sorted(scores.items()):
        stays, unit = kept.get(index, Kept()), unit_of(part, job.pruning.heads)
        indices = {"KV group": stays.kv_heads, "query head": stays.query_heads, "MLP channel": stays.channels}[unit]
        job.anatomy.scores(index, part, unit, found, indices)


def cut(job: Job, index: int, stays: Kept) -> None:
    """Cut decoder layer `index`, whose weights are at hand."""
    surgery.cut_layer(job.body.model, job.body.family, index, stays)


# -------------------------------------------------------------------------------------------------------------- scores


def importances(job: Job) -> dict[Key, Tensor]:
    """A score per unit, higher stays, of each part of each layer whose score matters; from the cache if it has them."""
    if job.pruning.allocation == "uniform":
        wanted = [(each.layer, part) for each in job.plan.cuts for part in parts_cut(each)]
    else:
        wanted = [(index, part) for index in job.plan.selected for part in job.pruning.parts]
    if not wanted:
        return {}
    names = {f"{index}.{part}": (index, part) for index, part in wanted}

    # All parts, though some lose nothing at this ratio: the next run of a sweep, which cuts them, then reads no text.
    whole: list[Key] = [(index, part) for index in job.plan.selected for part in job.pruning.parts]

    def compute() -> dict[str, Tensor]:
        scores = _computed(job, whole if job.keeps else wanted)
        return {f"{index}.{part}": each for (index, part), each in scores.items()}

    found = job.kept_scores(list(names), compute)
    return {key: found[name] for name, key in names.items()}


def _computed(job: Job, wanted: list[Key]) -> dict[Key, Tensor]:
    if "curvature" in job.needs:
        return _from_curvature(job, wanted)
    if job.needs & {"gradients", "fisher"}:
        return _from_gradients(job, wanted)
    if job.needs:
        return _from_inputs(job, wanted)
    scores: dict[Key, Tensor] = {}
    for index in sorted({layer for layer, _ in wanted}):
        with job.body.at(index) as layer:
            scores |= {key: _score(job, *key, layer) for key in wanted if key[0] == index}
    return scores


def _from_gradients(job: Job, wanted: list[Key]) -> dict[Key, Tensor]:
    assert job.windows is not None
    total = len(job.windows)
    scores: dict[Key, Tensor] = {}
    roles: dict[int, list[str]] = {}
    for index, part in wanted:
        roles.setdefault(index, []).extend(member_roles(unit_of(part, job.pruning.heads)))

    def take(index: int, gradients: Mapping[str, WeightGradients]) -> None:
        layer = job.body.layers()[index]
        scores.update({key: _score(job, *key, layer, gradients) for key in wanted if key[0] == index})

    weight_gradients(
        job.body,
        roles,
        job.windows,
        take,
        fisher="fisher" in job.needs,
        batch_size=job.pruning.calibration.batch_size,
        progress=lambda done: job.calibrated(done / total),
    )
    return scores


def _from_curvature(job: Job, wanted: list[Key]) -> dict[Key, Tensor]:
    assert job.windows is not None
    total = len(job.windows)
    scores: dict[Key, Tensor] = {}
    roles: dict[int, list[str]] = {}
    for index, part in wanted:
        roles.setdefault(index, []).append(reader_role(part))

    def take(index: int, found: Mapping[str, Curvature]) -> None:
        layer = job.body.layers()[index]
        for key in wanted:
            if key[0] == index:
                scores[key] = _score(job, *key, layer, curved=found[reader_role(key[1])])

    curvatures(
        job.body,
        roles,
        job.windows,
        take,
        batch_size=job.pruning.calibration.batch_size,
        progress=lambda done: job.calibrated(done / total),
    )
    return scores


def _from_inputs(job: Job, wanted: list[Key]) -> dict[Key, Tensor]:
    """From the dense model's own inputs of o and down, one pass."""
    stream = job.enter(0.01)
    scores: dict[Key, Tensor] = {}
    last = max(index for index, _ in wanted)
    for index in range(last + 1):
        here = [key for key in wanted if key[0] == index]
        with job.body.at(index) as layer:
            if not here:
                job.walk.advance(index, layer, stream)
            else:
                roles = [reader_role(part) for _, part in here]
                stats = job.walk.statistics(index, layer, roles, stream, job.gather, advance=True)
                scores |= {key: _score(job, *key, layer, None, stats[reader_role(key[1])]) for key in here}
        job.calibrated((index + 1) / (last + 1))
    return scores


def _score(
    job: Job,
    index: int,
    part: str,
    layer: nn.Module,
    gradients: Mapping[str, WeightGradients] | None = None,
    read: InputStats | None = None,
    curved: Curvature | None = None,
) -> Tensor:
    """One score per unit (units,) of a part of a layer, on the CPU."""
    sizes = job.plan.before.layers[index]
    units = structure(index, part, job.pruning.heads, sizes, job.matrices(layer), gradients, read, curved)

    def warn(message: str) -> None:
        job.warnings.append(f"Layer {index}, {part}: {message}")

    scores = job.call(index, part, structure=units, warn=warn)
    return checked(scores, (units.units,), job.method.name, f"layer {index}, {part}").detach().cpu()


# -------------------------------------------------------------------------------------------------------------- choice


def choose(job: Job, scores: Mapping[Key, Tensor]) -> dict[int, Kept]:
    """What stays of each layer that loses units: as many of the best as plan, ranking over all or measurement says."""
    if job.pruning.allocation == "uniform":
        after = {each.layer: each.after for each in job.plan.cuts if parts_cut(each)}
    elif job.pruning.allocation == "measured":
        after = measured_sizes(job, lambda i, sizes: stays_of(job, i, job.plan.before.layers[i], sizes, scores))
    else:
        after = global_sizes(
            job.plan.before,
            scores,
            job.plan.goal,
            heads=job.pruning.heads,
            round_to=job.pruning.round_to,
            standardised=job.method.standardised,
        )
    return {
        index: stays
        for index, sizes in after.items()
        if (stays := stays_of(job, index, job.plan.before.layers[index], sizes, scores)) != Kept()
    }


def stays_of(job: Job, index: int, before: LayerSizes, after: LayerSizes, scores: Mapping[Key, Tensor]) -> Kept:
    """What stays of a layer that is to have the sizes `after`, by the scores of its units."""
    query: Tensor | None = None
    kv: Tensor | None = None
    channels: Tensor | None = None
    if (before.heads, before.kv_heads) != (after.heads, after.kv_heads):
        if job.pruning.heads == "kv_groups":
            rep = before.heads // before.kv_heads
            kv = keep_best(scores[index, "attention"], after.kv_heads)
            query = (kv[:, None] * rep + torch.arange(rep)).flatten()
        else:
            query = keep_best_in_groups(scores[index, "attention"], before.kv_heads, after.heads // after.kv_heads)
    if before.mlp != after.mlp:
        channels = keep_best(scores[index, "mlp"], after.mlp)
    return Kept(query, kv, channels)
