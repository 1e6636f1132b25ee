"""How much each layer loses, where the scores decide it; where they do not, the plan says it."""

from collections.abc import Mapping
from decimal import Decimal

import torch
from torch import Tensor

from core.errors import InputError
from core.models.plans import params_of
from core.models.sizes import Architecture, LayerSizes
from core.pruning.job import Job
from core.pruning.units import roles_of

OUTLIER_TIMES = 5.0
OWL_SPREAD = 0.08


def layer_ratios(job: Job) -> dict[int, float]:
    """The fraction of each selected layer's weights that a mask zeroes."""
    if job.pruning.allocation == "owl":
        return owl_ratios(_outlier_shares(job), job.plan.ratio)
    return dict.fromkeys(job.plan.selected, job.plan.ratio)


def owl_ratios(shares: Mapping[int, float], ratio: float, spread: float = OWL_SPREAD) -> dict[int, float]:
    """Outlier-weighted layer-wise sparsity: more outliers, fewer zeros; the mean over the layers is `ratio`.

    shares: outlier share of each layer. Ratios lie within ± spread of `ratio` (half of OWL's 2λ band on each side),
    and inside 0–1. Yin et al. 2024, Outlier Weighed Layerwise Sparsity, https://arxiv.org/abs/2310.05175
    """
    values = torch.tensor(list(shares.values()), dtype=torch.float64)
    span = float(values.max() - values.min())
    if span == 0:
        return dict.fromkeys(shares, ratio)
    scaled = (values - values.min()) / span * 2 * spread  # 0 … 2λ
    ratios = (ratio + scaled.mean() - scaled).clamp(0.0, 0.999)
    return {layer: float(Decimal(f"{float(each):.6f}")) for layer, each in zip(shares, ratios, strict=True)}


def _outlier_shares(job: Job) -> dict[int, float]:
    """Share of weights with |W_ij|·‖X_j‖ above five times the layer's mean, on the dense model's inputs."""
    if job.windows is None:
        raise InputError(
            f"allocation: owl looks at calibration text, and {job.method.title} has none.",
            "Choose a calibrated method, or allocation: uniform.",
        )
    roles = roles_of(job.pruning.parts)
    stream = job.enter(0.01)
    shares: dict[int, float] = {}
    last = job.plan.selected[-1]
    for index in range(last + 1):
        with job.body.at(index) as layer:
            if index not in job.plan.selected:
                job.walk.advance(index, layer, stream)
                continue
            stats = job.walk.statistics(index, layer, roles, stream, advance=True)
            matrices = job.matrices(layer)
            scores = [matrices[role].weight.float().abs() * stats[role].norm for role in roles]
            total = sum(each.numel() for each in scores)
            mean = sum(float(each.sum(dtype=torch.float64)) for each in scores) / total
            shares[index] = sum(int((each > OUTLIER_TIMES * mean).sum()) for each in scores) / total
        job.calibrated(0.6 * (index + 1) / (last + 1))
    return shares


# ---------------------------------------------------------------------------------------------------------------- width


def global_sizes(
    architecture: Architecture,
    scores: Mapping[tuple[int, str], Tensor],
    goal: int,
    *,
    heads: str,
    round_to: int,
) -> dict[int, LayerSizes]:
    """Sizes of each scored layer after one ranking over all layers, at least `goal` parameters fewer if they are there.

    scores: (layer, part) → score per unit (units,), each normalised here by its mean over the layer's part and divided
    by the parameters of a unit, so that layers compare and cheap units do not win. MLP channels go `round_to` at a
    time, the worst ones of a layer together; at least one unit of attention and one such tile stay in each layer.
    """
    sizes = {layer: architecture.layers[layer] for layer, _ in scores}
    steps = _steps(architecture, scores, sizes, heads, round_to)
    left = goal
    for _, layer, part, size in sorted(steps, key=lambda step: step[0]):
        if left <= 0:
            break
        now = sizes[layer]
        smaller = _shrunk(now, part, size, heads)
        cost = params_of(architecture, now) - params_of(architecture, smaller)
        if 2 * left < cost:  # nearer without it; a cheaper unit may still fit
            continue
        sizes[layer] = smaller
        left -= cost
    return sizes


Step = tuple[tuple[float, int, str], int, str, int]


def _steps(
    architecture: Architecture,
    scores: Mapping[tuple[int, str], Tensor],
    sizes: Mapping[int, LayerSizes],
    heads: str,
    round_to: int,
) -> list[Step]:
    """Every possible next cut: (rank, layer, part, units left after it), a layer's in the order they must be taken."""
    found: list[Step] = []
    for (layer, part), values in scores.items():
        ordered = (values.double().cpu() / values.double().mean().cpu().clamp_min(1e-30)).sort().values
        n = len(ordered)
        step = round_to if part == "mlp" else 1
        if part == "attention" and heads == "query_heads":  # the same number inside every KV group goes together
            ordered = ordered.view(-1, sizes[layer].kv_heads).mean(dim=1)
            n = len(ordered)
        cost = params_of(architecture, sizes[layer]) - params_of(
            architecture, _shrunk(sizes[layer], part, n - step if n > step else n, heads)
        )
        worst, start = 0.0, 0
        for left in range((n - 1) // step * step, 0, -step):
            stop = n - left
            value = float(ordered[start:stop].sum()) / max(cost * (stop - start) / step, 1)
            worst = max(worst, value)  # never before the ones it comes after
            found.append(((worst, layer, part), layer, part, left))
            start = stop
    return found


def _shrunk(sizes: LayerSizes, part: str, left: int, heads: str) -> LayerSizes:
    if part == "mlp":
        return LayerSizes(sizes.heads, sizes.kv_heads, left)
    if heads == "kv_groups":
        return LayerSizes(left * (sizes.heads // sizes.kv_heads), left, sizes.mlp)
    return LayerSizes(sizes.kv_heads * left, sizes.kv_heads, sizes.mlp)
