"""What a cut leaves: pure arithmetic, no torch.

`plan` is the one place where a ratio becomes counts; the preview shows it and the engine cuts by it.
"""

from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from core.errors import ExperimentError
from core.models.sizes import PART_MATRICES, Architecture, LayerSizes

if TYPE_CHECKING:
    from core.experiment import Pruning

GONE = LayerSizes(0, 0, 0)

# --- ratio → counts
# Ratios are read as the decimal that a person typed: floor(0.29 · 100) is 29, not the 28 of binary fractions.


def floor_count(ratio: float, n: int) -> int:
    """⌊ratio · n⌋: heads and KV groups to remove."""
    return int((Decimal(str(ratio)) * n).to_integral_value(ROUND_FLOOR))


def half_up_count(ratio: float, n: int) -> int:
    """ratio · n, halves upwards: channels or weights to remove."""
    return int((Decimal(str(ratio)) * n).to_integral_value(ROUND_HALF_UP))


def kept_channels(ratio: float, n: int, round_to: int) -> int:
    """MLP channels that stay: n − round-half-up(ratio · n), up to a multiple of `round_to`; never 0, never above n."""
    kept = max(n - half_up_count(ratio, n), 1)
    return min(-(-kept // round_to) * round_to, n)


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """`2:4` → (2, 4), `unstructured` → None."""
    if pattern == "unstructured":
        return None
    n, m = pattern.split(":")
    return int(n), int(m)


def zeros_in_matrix(shape: tuple[int, int], ratio: float, pattern: str, compare: str) -> int:
    """Weights that a mask method sets to zero in a matrix of `shape` (out, in); exact, also under ties."""
    rows, columns = shape
    n_of_m = parse_pattern(pattern)
    if n_of_m is not None:
        n, m = n_of_m
        return rows * (columns // m) * (m - n)
    if compare == "row":
        return rows * half_up_count(ratio, columns)
    return half_up_count(ratio, rows * columns)


# --- plan


@dataclass(frozen=True)
class LayerCut:
    """One decoder layer before and after, and the zeros a mask puts into it. A removed layer has sizes of 0 after."""

    layer: int
    selected: bool
    before: LayerSizes
    after: LayerSizes
    zeros: int = 0

    @property
    def removed(self) -> bool:
        """Whether the whole layer goes."""
        return self.after == GONE != self.before


@dataclass(frozen=True)
class Plan:
    """What an Experiment will cut, before any weight is loaded.

    `achieved_ratio` is the share removed (or zeroed) of what the method cuts in the selected layers, in parameters;
    `achieved_model_ratio` the same share of the whole model. Where the scores decide how much each layer loses
    (allocation other than uniform) or which layers go, `exact` is False: the totals are right to within one unit, and
    `cuts` is an even example of them. `goal` is the number of parameters to remove or zero in all, `reach` that of all
    that the method could take, `ratio` the fraction that this makes.
    """

    before: Architecture
    after: Architecture
    kind: str
    cuts: tuple[LayerCut, ...]
    params_before: int
    params_after: int
    nonzero_after: int
    achieved_ratio: float
    achieved_model_ratio: float
    exact: bool = True
    goal: int = 0
    reach: int = 0
    ratio: float = 0.0

    @property
    def selected(self) -> tuple[int, ...]:
        return tuple(cut.layer for cut in self.cuts if cut.selected)

    @property
    def layers_removed(self) -> int:
        """How many whole layers go."""
        return sum(cut.removed for cut in self.cuts)


def layer_range(layers: tuple[int, int] | None, n_layers: int) -> range:
    """Selected layers, inclusive at both ends, 0-based; None is all. ExperimentError if the model has no such layer."""
    first, last = layers if layers is not None else (0, n_layers - 1)
    if not 0 <= first <= last < n_layers:
        raise ExperimentError(
            f"layers {first}–{last} asked for, but the model has layers 0–{n_layers - 1}.",
            "Choose a first and a last layer inside that range.",
            field="pruning.layers",
        )
    return range(first, last + 1)


def cut_sizes(sizes: LayerSizes, pruning: "Pruning", ratio: float | None = None) -> LayerSizes:
    """Sizes of one selected layer after a width method took `ratio` (default: the experiment's) of its units."""
    ratio = pruning.ratio if ratio is None else ratio
    heads, kv_heads, mlp = sizes.heads, sizes.kv_heads, sizes.mlp
    rep = heads // kv_heads if kv_heads else 0
    if "attention" in pruning.parts and kv_heads:
        if pruning.heads == "kv_groups":
            kv_heads -= min(floor_count(ratio, kv_heads), kv_heads - 1)
            heads = kv_heads * rep
        else:
            heads = kv_heads * (rep - min(floor_count(ratio, rep), rep - 1))
    if "mlp" in pruning.parts and mlp:
        mlp = kept_channels(ratio, mlp, pruning.round_to)
    return LayerSizes(heads, kv_heads, mlp)


def plan(architecture: Architecture, pruning: "Pruning") -> Plan:
    """Turn the ratio into counts for every layer. The method's kind and comparison group come from the registry.

    ExperimentError where the layers do not exist or hold too little to meet a target for the whole model.
    """
    from core.pruning.registry import get

    method = get(pruning.method)
    selected = layer_range(pruning.layers, architecture.n_layers)
    reach = _reach(architecture, pruning, method.kind, selected)
    if pruning.target == "model":
        goal = half_up_count(pruning.ratio, architecture.params)
        most = _most(architecture, pruning, method.kind, selected, reach)
        if goal > most or goal == reach:
            raise ExperimentError(
                f"{pruning.ratio:.0%} of the whole model is {goal:,} parameters, but the selected layers and parts "
                f"hold only {most:,} that {pruning.method} could take ({most / architecture.params:.1%} of it).",
                "Lower the ratio, or select more layers and parts.",
                field="pruning.ratio",
            )
    else:
        goal = half_up_count(pruning.ratio, reach)
    ratio = pruning.ratio if pruning.target == "selected" else goal / reach
    sizes, zeros = list(architecture.layers), [0] * architecture.n_layers
    after: Architecture | None = None
    exact = True
    if method.kind == "width":
        sizes = _width_sizes(architecture, pruning, selected, goal)
        exact = pruning.allocation == "uniform"
    elif method.kind == "mask":
        roles = [role for part in pruning.parts for role in PART_MATRICES[part]]
        for i in selected:
            shapes = architecture.matrix_shapes(i)
            zeros[i] = sum(zeros_in_matrix(shapes[r], ratio, pruning.pattern, method.compare) for r in roles)
        exact = pruning.allocation == "uniform"
    elif method.kind == "depth":
        for i in reversed(selected[len(selected) - removed_layers(architecture, pruning, selected, goal) :]):
            sizes[i] = GONE
        exact = pruning.method == "last"
    else:
        after = replace(architecture, hidden_size=kept_hidden(architecture, pruning, goal))
    after = after or architecture.with_layers(tuple(each for each in sizes if each != GONE))
    before, left = architecture.params, after.params
    gone = before - left + sum(zeros)
    return Plan(
        before=architecture,
        after=after,
        kind=method.kind,
        cuts=tuple(LayerCut(i, i in selected, was, sizes[i], zeros[i]) for i, was in enumerate(architecture.layers)),
        params_before=before,
        params_after=left,
        nonzero_after=before - gone,
        achieved_ratio=gone / reach if reach else 0.0,
        achieved_model_ratio=gone / before,
        exact=exact,
        goal=goal,
        reach=reach,
        ratio=ratio,
    )


def params_of(architecture: Architecture, sizes: LayerSizes) -> int:
    """Parameters of a decoder layer of these sizes."""
    return replace(architecture, layers=(sizes,)).layer_params(0)


def _reach(architecture: Architecture, pruning: "Pruning", kind: str, selected: range) -> int:
    """Parameters of everything that the method could take, of which `ratio` is a fraction."""
    if kind == "hidden":
        return architecture.params
    if kind == "depth":
        return sum(architecture.layer_params(i) for i in selected)
    return sum(_cuttable(architecture, i, pruning) for i in selected)


def _most(architecture: Architecture, pruning: "Pruning", kind: str, selected: range, reach: int) -> int:
    """The most that can go: every layer keeps one unit of each part, the model one layer."""
    if kind == "width":
        least = [cut_sizes(s, pruning, 1.0) if i in selected else s for i, s in enumerate(architecture.layers)]
        return architecture.params - architecture.with_layers(tuple(least)).params
    if kind == "depth" and len(selected) == architecture.n_layers:
        return reach - min(architecture.layer_params(i) for i in selected)
    return reach


def _cuttable(architecture: Architecture, layer: int, pruning: "Pruning") -> int:
    shapes = architecture.matrix_shapes(layer)
    return sum(shapes[r][0] * shapes[r][1] for part in pruning.parts for r in PART_MATRICES[part])


def removed_layers(architecture: Architecture, pruning: "Pruning", selected: range, goal: int) -> int:
    """Whole layers that a depth method takes: ⌊ratio · n⌋, or as many as come nearest to a target for the model."""
    if pruning.target == "selected":
        count = floor_count(pruning.ratio, len(selected))
    else:
        count = round(goal * len(selected) / sum(architecture.layer_params(i) for i in selected))
    return min(count, len(selected), architecture.n_layers - 1)


def kept_hidden(architecture: Architecture, pruning: "Pruning", goal: int) -> int:
    """Channels of the residual stream that stay: a multiple of the query heads' number, as config classes ask."""
    step = max(sizes.heads for sizes in architecture.layers)
    widths = range(step, architecture.hidden_size + 1, step)
    if pruning.target == "selected":
        kept = kept_channels(pruning.ratio, architecture.hidden_size, step)
        return max((width for width in widths if width <= kept), default=step)
    left = architecture.params - goal
    return min(widths, key=lambda width: abs(replace(architecture, hidden_size=width).params - left))


def _width_sizes(architecture: Architecture, pruning: "Pruning", selected: range, goal: int) -> list[LayerSizes]:
    """Sizes after the cut, the same ratio in each selected layer."""
    if pruning.target == "selected":
        return [cut_sizes(s, pruning) if i in selected else s for i, s in enumerate(architecture.layers)]
    return _to_goal(architecture, pruning, selected, goal)


def _to_goal(architecture: Architecture, pruning: "Pruning", selected: range, goal: int) -> list[LayerSizes]:
    """As even as heads allow, then MLP channels, a step of `round_to` at a time, until the goal is nearest.

    With same_sizes a step is taken in all layers or none.
    """

    def at(ratio: float) -> list[LayerSizes]:
        return [cut_sizes(s, pruning, ratio) if i in selected else s for i, s in enumerate(architecture.layers)]

    def removed(sizes: list[LayerSizes]) -> int:
        return architecture.params - architecture.with_layers(tuple(sizes)).params

    low, high = 0, 100_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if removed(at(middle / 100_000)) <= goal else (low, middle)
    sizes = at(low / 100_000)
    if "mlp" not in pruning.parts:
        return _heads_to_goal(architecture, pruning, selected, goal, sizes, at(min(high / 100_000, 1.0)))
    left = goal - removed(sizes)
    batches = [list(selected)] if pruning.same_sizes else [[i] for i in reversed(selected)]
    moved = True
    while moved:
        moved = False
        for layers in batches:
            smaller = {i: replace(sizes[i], mlp=_next_width(sizes[i].mlp, pruning.round_to)) for i in layers}
            cost = sum(params_of(architecture, sizes[i]) - params_of(architecture, smaller[i]) for i in layers)
            if 0 < cost <= 2 * left and all(smaller[i].mlp > 0 for i in layers):
                for i in layers:
                    sizes[i] = smaller[i]
                left -= cost
                moved = True
    return sizes


def _next_width(width: int, step: int) -> int:
    """The next smaller multiple of `step`."""
    return (width - 1) // step * step


def _heads_to_goal(
    architecture: Architecture,
    pruning: "Pruning",
    selected: range,
    goal: int,
    sizes: list[LayerSizes],
    further: list[LayerSizes],
) -> list[LayerSizes]:
    """Attention alone: the last layers lose one head more than the first ones, as many as come nearest to the goal."""
    if pruning.same_sizes:
        return sizes
    found = list(sizes)
    left = goal - (architecture.params - architecture.with_layers(tuple(found)).params)
    for i in reversed(selected):
        cost = params_of(architecture, found[i]) - params_of(architecture, further[i])
        if 0 < cost <= 2 * left:
            found[i] = further[i]
            left -= cost
    return found
