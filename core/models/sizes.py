"""Sizes of a model's layers, parameter counts, and what a cut leaves: pure arithmetic, no torch.

`plan` is the one place where a ratio becomes counts; the preview shows it and the engine cuts by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from core.errors import ExperimentError, ModelError

if TYPE_CHECKING:
    from core.experiment import Pruning

PER_LAYER_KEY = "espalier_layers"
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
PART_MATRICES = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}


@dataclass(frozen=True)
class LayerSizes:
    """Query heads, KV heads and MLP channels of one decoder layer."""

    heads: int
    kv_heads: int
    mlp: int


@dataclass(frozen=True)
class Architecture:
    """What config.json says of a decoder-only model, as far as pruning needs it."""

    model_type: str
    hidden_size: int
    head_dim: int
    vocab_size: int
    tied: bool
    layers: tuple[LayerSizes, ...]
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    max_positions: int = 2048
    dtype: str = "float32"
    norms_per_layer: int = 2

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Read a config.json given as a mapping. ModelError names the key that is missing or not a positive integer."""
        heads = _count(config, "num_attention_heads")
        hidden = _count(config, "hidden_size")
        base = LayerSizes(heads, _count(config, "num_key_value_heads", heads), _count(config, "intermediate_size"))
        n_layers = _count(config, "num_hidden_layers")
        rows = config.get(PER_LAYER_KEY)
        if rows is not None and len(rows) != n_layers:
            raise ModelError(
                f"config.json gives {PER_LAYER_KEY} for {len(rows)} layers, but num_hidden_layers is {n_layers}.",
                "The folder is damaged: make the model again.",
            )
        layers = tuple(
            LayerSizes(
                _count(row, "num_attention_heads", zero=True),
                _count(row, "num_key_value_heads", zero=True),
                _count(row, "intermediate_size", zero=True),
            )
            for row in rows or ()
        )
        model_type = str(config.get("model_type", ""))
        bias = bool(config.get("attention_bias", model_type == "qwen2"))
        return cls(
            model_type=model_type,
            hidden_size=hidden,
            head_dim=_count(config, "head_dim", hidden // heads),
            vocab_size=_count(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", False)),
            layers=layers or (base,) * n_layers,
            attention_bias=bias,
            output_bias=bias and model_type != "qwen2",
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=model_type in {"qwen3", "gemma3_text"},
            max_positions=_count(config, "max_position_embeddings", 2048),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
            norms_per_layer=4 if model_type in {"gemma2", "gemma3_text"} else 2,
        )

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same sizes, so that a stock class can hold the model."""
        return len(set(self.layers)) <= 1

    def matrix_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear layer of decoder layer `layer`, by role."""
        s, d = self.layers[layer], self.hidden_size
        q, kv = s.heads * self.head_dim, s.kv_heads * self.head_dim
        return {
            "q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q),
            "gate": (s.mlp, d), "up": (s.mlp, d), "down": (d, s.mlp),
        }  # fmt: skip

    def layer_params(self, layer: int) -> int:
        """Parameters of decoder layer `layer`: linear layers, their biases, norms."""
        shapes = self.matrix_shapes(layer)
        total = sum(rows * columns for rows, columns in shapes.values())
        if self.attention_bias:
            total += sum(shapes[role][0] for role in ("q", "k", "v"))
        if self.output_bias:
            total += self.hidden_size
        if self.mlp_bias:
            total += sum(shapes[role][0] for role in ("gate", "up", "down"))
        if self.qk_norm:
            total += 2 * self.head_dim
        return total + self.norms_per_layer * self.hidden_size

    @property
    def embedding_params(self) -> int:
        """Parameters outside the decoder layers; a tied embedding is counted once."""
        tables = 1 if self.tied else 2
        return tables * self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def params(self) -> int:
        """Parameters of the whole model."""
        return self.embedding_params + sum(self.layer_params(i) for i in range(self.n_layers))

    def with_layers(self, layers: tuple[LayerSizes, ...]) -> "Architecture":
        """The same model with other layer sizes."""
        return replace(self, layers=layers)

    def macs(self, tokens: int, context: int | None = None) -> int:
        """Multiply-accumulates of a forward pass over `tokens` tokens; each sees `context` positions (default: all)."""
        context = tokens if context is None else context
        linear = sum(r * c for i in range(self.n_layers) for r, c in self.matrix_shapes(i).values())
        attention = sum(2 * s.heads * self.head_dim * context for s in self.layers)
        return tokens * (linear + attention + self.vocab_size * self.hidden_size)


def _count(config: Mapping[str, Any], key: str, default: int | None = None, *, zero: bool = False) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < (0 if zero else 1):
        raise ModelError(
            f"config.json has no usable {key!r} (found {value!r}).",
            "Espalier needs a decoder-only model in Hugging Face form.",
        )
    return value


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
