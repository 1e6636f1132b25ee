"""How much each layer loses, where the scores decide it; where they do not, the plan says it."""

import math
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
        return owl_ratios(_outlier_shares(job), job.plan.ratio, sizes=_weights(job))
    return dict.fromkeys(job.plan.selected, job.plan.ratio)


def owl_ratios(
    shares: Mapping[int, float],
    ratio: float,
    spread: float = OWL_SPREAD,
    sizes: Mapping[int, int] | None = None,
) -> dict[int, float]:
    """Outlier-weighted layer-wise sparsity: more outliers, fewer zeros; the mean over all weights is `ratio`.

    shares: outlier share of each layer; sizes: its weights, if layers differ. The most and the least are 2 · spread
    apart (OWL's band of 2λ), or less where a layer would leave 0–0.999.
    Yin et al. 2024, Outlier Weighed Layerwise Sparsity, https://arxiv.org/abs/2310.05175
    """
    values = torch.tensor(list(shares.values()), dtype=torch.float64)
    span = float(values.max() - values.min())
    if span == 0:
        return dict.fromkeys(shares, ratio)
    weights = torch.tensor([sizes[layer] if sizes else 1 for layer in shares], dtype=torch.float64)
    scaled = (values - values.min()) / span * 2 * spread  # 0 … 2λ
    more = (scaled * weights).sum() / weights.sum() - scaled  # above or below the mean ratio
    fits = min(1.0, ratio / -float(more.min()), (0.999 - ratio) / float(more.max()))
    ratios = ratio + max(fits, 0.0) * more
    return {layer: float(Decimal(f"{float(each):.9f}")) for layer, each in zip(shares, ratios, strict=True)}


def _weights(job: Job) -> dict[int, int]:
    """Weights that a mask may zero, by layer."""
    roles, shapes = roles_of(job.pruning.parts), job.plan.before.matrix_shapes
    return {index: sum(math.prod(shapes(index)[role]) for role in roles) for index in job.plan.selected}


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
    standardised: bool = False,
) -> dict[int, LayerSizes]:
    """Sizes of each scored layer after one ranking over all layers, as near to `goal` parameters fewer as units allow.

    scores: (layer, part) → score per unit (units,), divided here by its mean over the layer's part: per parameter, the
    average unit of every part of every layer is worth the same, and neither large nor cheap ones go first for that;
    standardised scores are taken as they are. MLP channels go `round_to` at a time, the worst ones of a layer together;
    at least one unit of attention and one such tile stay in each layer.
    """
    sizes = {layer: architecture.layers[layer] for layer, _ in scores}
    channel, head, kv_head = _costs(architecture)

    def cost(layer: int, smaller: LayerSizes) -> int:
        now = sizes[layer]
        heads_gone, kv_gone = now.heads - smaller.heads, now.kv_heads - smaller.kv_heads
        return (now.mlp - smaller.mlp) * channel + heads_gone * head + kv_gone * kv_head

    steps = sorted(_steps(architecture, scores, heads, round_to, standardised), key=lambda step: step[0])
    left = goal
    for overshoots in (False, True):  # all that fit; then one that ends nearer to the goal than nothing
        for _, layer, part, size in steps:
            if left < (channel + 1) // 2:
                break
            smaller = shrunk(sizes[layer], part, size, heads)
            taken = cost(layer, smaller)
            if 0 < taken < 2 * left if overshoots else 0 < taken <= left:
                sizes[layer] = smaller
                left -= taken
    return sizes


def _costs(architecture: Architecture) -> tuple[int, int, int]:
    """Parameters of an MLP channel, of a query head and of a KV head."""
    none, one = params_of(architecture, LayerSizes(0, 0, 0)), [(0, 0, 1), (1, 0, 0), (0, 1, 0)]
    channel, head, kv_head = (params_of(architecture, LayerSizes(*sizes)) - none for sizes in one)
    return channel, head, kv_head


Step = tuple[tuple[float, int, str], int, str, int]


def _steps(
    architecture: Architecture,
    scores: Mapping[tuple[int, str], Tensor],
    heads: str,
    round_to: int,
    standardised: bool,
) -> list[Step]:
    """Every possible next cut: (rank, layer, part, units left after it), a layer's in the order they must be taken."""
    found: list[Step] = []
    for (layer, part), values in scores.items():
        sizes = architecture.layers[layer]
        ordered = values.double().cpu()
        if not standardised:
            ordered = ordered / ordered.mean().clamp_min(1e-30)
        if part == "attention" and heads == "query_heads":  # the same number inside every KV group goes together
            ordered = ordered.view(sizes.kv_heads, -1).sort(dim=1).values.mean(dim=0)
        else:
            ordered = ordered.sort().values
        n, step = len(ordered), round_to if part == "mlp" else 1
        worst, start = -math.inf, 0
        for left in range((n - 1) // step * step, 0, -step):
            worst = max(worst, float(ordered[start : n - left].mean()))  # never before the ones it comes after
            found.append(((worst, layer, part), layer, part, left))
            start = n - left
    return found


def shrunk(sizes: LayerSizes, part: str, left: int, heads: str) -> LayerSizes:
    """Sizes of a layer whose MLP keeps `left` channels, or whose attention `left` KV groups or heads of each group."""
    if part == "mlp":
        return LayerSizes(sizes.heads, sizes.kv_heads, left)
    if heads == "kv_groups":
        return LayerSizes(left * (sizes.heads // sizes.kv_heads), left, sizes.mlp)
    return LayerSizes(sizes.kv_heads * left, sizes.kv_heads, sizes.mlp)
