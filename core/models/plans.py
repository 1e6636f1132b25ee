"""What a cut leaves: pure arithmetic, no torch.

`plan` is the one place where a ratio becomes counts; the preview shows it and the engine cuts by it.
"""

from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from core.errors import ExperimentError
from core.models.sizes import PART_MATRICES, Architecture, LayerSizes

if TYPE_CHECKING:
    from core.experiment import Pruning

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
    """One decoder layer before and after, and the zeros a mask puts into it."""

    layer: int
    selected: bool
    before: LayerSizes
    after: LayerSizes
    zeros: int = 0


@dataclass(frozen=True)
class Plan:
    """What an Experiment will cut, exactly, before any weight is loaded.

    `achieved_ratio` is the share removed (or zeroed) of what the method cuts in the selected layers, in parameters;
    `achieved_model_ratio` the same share of the whole model.
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

    @property
    def selected(self) -> tuple[int, ...]:
        return tuple(cut.layer for cut in self.cuts if cut.selected)


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


def cut_sizes(sizes: LayerSizes, pruning: "Pruning") -> LayerSizes:
    """Sizes of one selected layer after a width method with uniform allocation."""
    heads, kv_heads, mlp = sizes.heads, sizes.kv_heads, sizes.mlp
    rep = heads // kv_heads
    if "attention" in pruning.parts:
        if pruning.heads == "kv_groups":
            kv_heads -= min(floor_count(pruning.ratio, kv_heads), kv_heads - 1)
            heads = kv_heads * rep
        else:
            heads = kv_heads * (rep - min(floor_count(pruning.ratio, rep), rep - 1))
    if "mlp" in pruning.parts:
        mlp = kept_channels(pruning.ratio, mlp, pruning.round_to)
    return LayerSizes(heads, kv_heads, mlp)


def plan(architecture: Architecture, pruning: "Pruning") -> Plan:
    """Turn the ratio into counts for every layer. The method's kind and comparison group come from the registry."""
    from core.pruning.registry import get

    method = get(pruning.method)
    selected = layer_range(pruning.layers, architecture.n_layers)
    cuts: list[LayerCut] = []
    for i, sizes in enumerate(architecture.layers):
        after, zeros = sizes, 0
        if i in selected and method.kind == "width":
            after = cut_sizes(sizes, pruning)
        elif i in selected and method.kind == "mask":
            shapes = architecture.matrix_shapes(i)
            roles = [role for part in pruning.parts for role in PART_MATRICES[part]]
            zeros = sum(zeros_in_matrix(shapes[r], pruning.ratio, pruning.pattern, method.compare) for r in roles)
        cuts.append(LayerCut(i, i in selected, sizes, after, zeros))
    after_architecture = architecture.with_layers(tuple(cut.after for cut in cuts))
    before, left = architecture.params, after_architecture.params
    gone = before - left + sum(cut.zeros for cut in cuts)
    reach = sum(_cuttable(architecture, i, pruning) for i in selected)
    return Plan(
        before=architecture,
        after=after_architecture,
        kind=method.kind,
        cuts=tuple(cuts),
        params_before=before,
        params_after=left,
        nonzero_after=before - gone,
        achieved_ratio=gone / reach if reach else 0.0,
        achieved_model_ratio=gone / before,
    )


def _cuttable(architecture: Architecture, layer: int, pruning: "Pruning") -> int:
    shapes = architecture.matrix_shapes(layer)
    return sum(shapes[r][0] * shapes[r][1] for part in pruning.parts for r in PART_MATRICES[part])
