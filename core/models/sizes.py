"""Sizes of a model's layers and parameter counts: pure arithmetic, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.errors import ModelError

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
