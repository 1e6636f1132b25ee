"""Sizes of a model's layers and parameter counts: pure arithmetic, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from core.errors import ModelError

PER_LAYER_KEY = "espalier_layers"
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
PART_MATRICES = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}

# What config classes take for granted where config.json says nothing, as far as published models rely on it.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
    "phi3": {"max_position_embeddings": 4096},
    "gemma2": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256_000,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131_072,
    },
}
# Other families' words for the same; models of those are judged, not cut, so that their counts may be about right.
_OTHER_WORDS = {
    "hidden_size": ("n_embd", "d_model"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
_QKV_BIAS = {"qwen2"}  # on q, k and v, whatever config.json says
_NO_ATTENTION_BIAS = {"mistral", "phi3"}
_NO_MLP_BIAS = {"mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"}
_QK_NORM = {"qwen3", "gemma3_text"}
_FOUR_NORMS = {"gemma2", "gemma3_text"}


@dataclass(frozen=True)
class LayerSizes:
    """Query heads, KV heads and MLP channels of one decoder layer."""

    heads: int
    kv_heads: int
    mlp: int


@dataclass(frozen=True)
class Architecture:
    """What config.json says of a decoder-only model, as far as pruning needs it.

    `longrope`: positions are scaled by factors of Phi-3's kind, one for each pair of a head's channels.
    """

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
    longrope: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Read a config.json given as a mapping. ModelError names the key that is missing or not a positive integer.

        So it does for a model of texts and images, whose text part has a config of its own.
        """
        model_type = str(config.get("model_type", ""))
        if isinstance(config.get("text_config"), Mapping):
            part = config["text_config"].get("model_type", "text")
            raise ModelError(
                f"A {model_type or 'multimodal'} model reads more than text: its {part} model is only a part of it.",
                "Choose a model of text alone, or save the text part as a model of its own.",
            )
        config = {**_DEFAULTS.get(model_type, {}), **_in_our_words(config)}
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
        bias = bool(config.get("attention_bias")) and model_type not in _NO_ATTENTION_BIAS
        return cls(
            model_type=model_type,
            hidden_size=hidden,
            head_dim=_count(config, "head_dim", hidden // heads),
            vocab_size=_count(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", False)),
            layers=layers or (base,) * n_layers,
            attention_bias=bias or model_type in _QKV_BIAS,
            output_bias=bias and model_type not in _QKV_BIAS,
            mlp_bias=bool(config.get("mlp_bias")) and model_type not in _NO_MLP_BIAS,
            qk_norm=model_type in _QK_NORM,
            max_positions=_count(config, "max_position_embeddings", 2048),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
            norms_per_layer=4 if model_type in _FOUR_NORMS else 2,
            longrope=model_type == "phi3" and "long_factor" in _rope(config),
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


def _in_our_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with GPT-2's and its kin's names of the sizes as the others have them."""
    found = {
        name: config[other]
        for name, others in _OTHER_WORDS.items()
        for other in others
        if name not in config and isinstance(config.get(other), int)
    }
    if not found:
        return config
    if isinstance(width := found.get("hidden_size", config.get("hidden_size")), int):
        found.setdefault("intermediate_size", 4 * width)  # what they take where they say nothing
    return {**found, **config}


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("rope_scaling") or config.get("rope_parameters")
    return found if isinstance(found, Mapping) else {}


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
