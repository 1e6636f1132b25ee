"""What a GGUF file of a model holds: its architecture's name, its sizes, and every tensor with shape and format.

| sizes | architecture | in the file |
|---|---|---|
| the same in every layer | the family's own (`llama`, `qwen2`, `qwen3`) | one number each |
| different per layer, Llama and Mistral only | `deci` | one array each |

llama.cpp's `llama` reads single numbers only. Quantised rows come in blocks of 32, so MLP widths are filled up with
zero channels, which add exactly nothing; rows of other widths that 32 does not divide are kept in float16. Pure
arithmetic: no torch, no gguf.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from core.errors import ModelError
from core.models.sizes import Architecture, LayerSizes

GgufDtype = Literal["float32", "float16", "bfloat16", "q8_0", "q4_0"]
DTYPES: tuple[GgufDtype, ...] = ("float32", "float16", "bfloat16", "q8_0", "q4_0")
TYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5}  # per weight, scales included
BLOCK = 32  # weights that share a scale in Q8_0 and Q4_0

_MATRICES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROLES = dict(zip(_MATRICES, ("q", "k", "v", "o", "gate", "up", "down"), strict=True))
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclass(frozen=True)
class _Target:
    """How llama.cpp knows a family. `neighbours`: it turns channels 2i and 2i+1 together, so q and k rows are put in
    that order."""

    name: str
    per_layer: str | None
    neighbours: bool


_TARGETS = {
    "llama": _Target("llama", "deci", True),
    "mistral": _Target("llama", "deci", True),
    "qwen2": _Target("qwen2", None, False),
    "qwen3": _Target("qwen3", None, False),
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file. `shape` is (out, in) or (n,) as written, `held` as the source has it; the rest is zero.

    `source` is its name in the safetensors files, None for one that is all zeros; `heads` > 0: rows of q or k, whose
    halves of each head are interleaved.
    """

    name: str
    source: str | None
    shape: tuple[int, ...]
    held: tuple[int, ...]
    type: str
    heads: int = 0


@dataclass(frozen=True)
class GgufLayout:
    """The plan of a file. `layers` are the sizes as written; `notes` says what a reader should know, in sentences."""

    architecture: str
    layers: tuple[LayerSizes, ...]
    head_dim: int
    hidden_size: int
    context_length: int
    tensors: tuple[GgufTensor, ...]
    rope_factors: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def per_layer(self) -> bool:
        return self.architecture == "deci"

    @property
    def bytes(self) -> int:
        """Size of the weights in the file, without metadata."""
        return sum(int(math.prod(each.shape) * BITS[each.type]) // 8 for each in self.tensors)


def known_families() -> list[str]:
    """Every `model_type` that a GGUF can be written of."""
    return list(_TARGETS)


def about_bytes(architecture: Architecture, dtype: str) -> int:
    """About how large a file of these sizes gets, from the sizes alone: `gguf_layout` knows it to the byte."""
    tables = architecture.embedding_params
    blocks = dtype in ("q8_0", "q4_0")
    bits = BITS["F16"] if blocks and architecture.hidden_size % BLOCK else BITS[TYPE_NAMES[dtype]]
    outer = BITS["Q8_0"] if blocks and bits != BITS["F16"] else bits
    return int(((architecture.params - tables) * bits + tables * outer) / 8)


def gguf_architecture(architecture: Architecture) -> str | None:
    """llama.cpp's name for a model of these sizes, or None where it has none."""
    target = _TARGETS.get(architecture.model_type)
    if target is None:
        return None
    return target.name if architecture.uniform else target.per_layer


def gguf_layout(config: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]], dtype: GgufDtype) -> GgufLayout:
    """Plan the file. `config`: the folder's config.json; `stored`: shape of each tensor of its safetensors files.

    ModelError says what llama.cpp could not compute as transformers does, or which weight is missing or left over.
    """
    architecture = Architecture.from_config(config)
    notes: list[str] = []
    target = _checked(config, architecture)
    kind = TYPE_NAMES[dtype]
    layers = tuple(_written(sizes, kind, i) for i, sizes in enumerate(architecture.layers))
    alike = len(set(layers)) == 1 and all(sizes.heads and sizes.mlp for sizes in architecture.layers)
    if not alike and target.per_layer is None:
        raise ModelError(
            f"llama.cpp has no architecture for a {architecture.model_type} model whose layers differ in size.",
            "Export it in Hugging Face form (--to hf), or prune all layers alike.",
        )
    widened = sum(a.mlp != b.mlp for a, b in zip(architecture.layers, layers, strict=True))
    if widened:
        notes.append(f"the MLP of {widened} layers is filled up with zero channels to a multiple of {BLOCK}: no loss")
    tensors = tuple(_tensors(architecture, layers, target, kind, stored, notes))
    _nothing_left_over(tensors, stored, architecture)
    return GgufLayout(
        architecture=target.name if alike else str(target.per_layer),
        layers=layers,
        head_dim=architecture.head_dim,
        hidden_size=architecture.hidden_size,
        context_length=_context(config, architecture, notes),
        tensors=tensors,
        rope_factors=_rope_type(config) == "llama3",
        notes=tuple(dict.fromkeys(notes)),
    )


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that config.json says of rotary positions, in the words of transformers 5."""
    found = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    found.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    found["rope_type"] = str(found.get("rope_type") or found.get("type") or "default")
    return found


def _rope_type(config: Mapping[str, Any]) -> str:
    return str(rope_parameters(config)["rope_type"])


def _checked(config: Mapping[str, Any], architecture: Architecture) -> _Target:
    """The family in llama.cpp. ModelError for everything that would load and be wrong."""
    advice = "Export it in Hugging Face form (--to hf) instead."
    target = _TARGETS.get(architecture.model_type)
    if target is None:
        raise ModelError(
            f"No GGUF can be written of a {architecture.model_type!r} model: only of {', '.join(_TARGETS)}.", advice
        )
    rope = rope_parameters(config)
    wrong = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "rope_type": (rope["rope_type"] if rope["rope_type"] not in ("linear", "llama3") else "default", "default"),
        "partial_rotary_factor": (float(rope.get("partial_rotary_factor") or 1.0), 1.0),
        "an odd head_dim": (architecture.head_dim % 2, 0),
    }
    for name, (value, needed) in wrong.items():
        if value != needed:
            raise ModelError(f"llama.cpp would compute this model wrongly: {name} is {value!r}.", advice)
    if config.get("use_sliding_window") and architecture.model_type in ("qwen2", "qwen3"):
        raise ModelError("llama.cpp would compute this model wrongly: it uses a sliding window.", advice)
    return target


def _written(sizes: LayerSizes, kind: str, index: int) -> LayerSizes:
    """Sizes of a layer in the file.

    A layer without an MLP gets one of zeros, or llama.cpp would drop its attention; the first layer without attention
    gets one head of zeros, or llama.cpp would take head_dim for nothing in all of them.
    """
    mlp = sizes.mlp or BLOCK
    if kind in ("Q8_0", "Q4_0"):
        mlp = -(-mlp // BLOCK) * BLOCK
    if index == 0 and not sizes.heads:
        return LayerSizes(1, 1, mlp)
    return LayerSizes(sizes.heads, sizes.kv_heads, mlp)


def _context(config: Mapping[str, Any], architecture: Architecture, notes: list[str]) -> int:
    window = config.get("sliding_window")
    if architecture.model_type == "mistral" and isinstance(window, int) and window < architecture.max_positions:
        notes.append(f"llama.cpp knows no sliding window here: the context ends at the window, {window} tokens")
        return window
    return architecture.max_positions


def _tensors(
    architecture: Architecture,
    layers: tuple[LayerSizes, ...],
    target: _Target,
    kind: str,
    stored: Mapping[str, tuple[int, ...]],
    notes: list[str],
) -> Iterator[GgufTensor]:
    hidden, vocab = architecture.hidden_size, architecture.vocab_size
    outer = "Q8_0" if kind == "Q4_0" else kind  # the tables, finer than the layers, as llama.cpp's own quantiser has it
    yield _matrix("token_embd", "model.embed_tokens", (vocab, hidden), (vocab, hidden), outer, notes)
    for i, sizes in enumerate(layers):
        yield from _layer(architecture, i, sizes, target, kind, stored, notes)
    yield _vector("output_norm", "model.norm", hidden)
    if not architecture.tied:
        yield _matrix("output", "lm_head", (vocab, hidden), (vocab, hidden), outer, notes)


def _layer(
    architecture: Architecture,
    i: int,
    sizes: LayerSizes,
    target: _Target,
    kind: str,
    stored: Mapping[str, tuple[int, ...]],
    notes: list[str],
) -> Iterator[GgufTensor]:
    """Decoder layer `i` with the sizes that are written; no attention at all where it has no heads."""
    before = architecture.matrix_shapes(i)
    after = architecture.with_layers((sizes,)).matrix_shapes(0)
    here, there, hidden = f"blk.{i}", f"model.layers.{i}", architecture.hidden_size
    for part, path in _NORMS.items():
        there_is, whole = (sizes.mlp, before["gate"][0]) if part == "ffn_norm" else (sizes.heads, before["q"][0])
        norm = _vector(f"{here}.{part}", f"{there}.{path}", hidden)
        if there_is:  # a part that is gone may have taken its norm with it
            yield norm if whole or norm.source in stored else replace(norm, source=None)
    for part, path in _MATRICES.items():
        role = _ROLES[part]
        if 0 in after[role]:
            continue
        heads = {"q": sizes.heads, "k": sizes.kv_heads}.get(role, 0) if target.neighbours else 0
        weight = _matrix(f"{here}.{part}", f"{there}.{path}", after[role], before[role], kind, notes)
        yield replace(weight, heads=heads, source=None if 0 in before[role] else weight.source)
        bias = f"{there}.{path}.bias"
        if bias in stored:
            yield GgufTensor(f"{here}.{part}.bias", bias, after[role][:1], before[role][:1], "F32", heads)
    if architecture.qk_norm:
        for part, path in _HEAD_NORMS.items():
            yield _vector(f"{here}.{part}", f"{there}.{path}", architecture.head_dim)


def _vector(name: str, source: str, n: int) -> GgufTensor:
    return GgufTensor(f"{name}.weight", f"{source}.weight", (n,), (n,), "F32")


def _matrix(
    name: str, source: str, shape: tuple[int, int], held: tuple[int, int], kind: str, notes: list[str]
) -> GgufTensor:
    if kind in ("Q8_0", "Q4_0") and shape[1] % BLOCK:
        notes.append(f"rows of {shape[1]} weights are kept in float16: blocks hold {BLOCK}")
        kind = "F16"
    return GgufTensor(f"{name}.weight", f"{source}.weight", shape, held, kind)


def _nothing_left_over(
    tensors: tuple[GgufTensor, ...], stored: Mapping[str, tuple[int, ...]], architecture: Architecture
) -> None:
    """ModelError if a weight is missing, has another size than config.json says, or would not be in the file."""
    needed = {each.source: each.held for each in tensors if each.source is not None}
    for source, shape in needed.items():
        if source not in stored:
            raise ModelError(f"The model's files lack the weight {source}.", "Copy or download the whole folder.")
        if tuple(stored[source]) != shape:
            raise ModelError(
                f"{source} has the shape {tuple(stored[source])}, but config.json says {shape}.",
                "The folder is damaged: make the model again.",
            )
    # a layer without attention has no use for the norm before it
    useless = [f"model.layers.{i}.input_layernorm.weight" for i, s in enumerate(architecture.layers) if not s.heads]
    ignored = ("rotary_emb.inv_freq", *useless, *(("lm_head.weight",) if architecture.tied else ()))
    over = sorted(name for name in stored if name not in needed and not name.endswith(ignored))
    if over:
        raise ModelError(
            f"llama.cpp has no place for {len(over)} weights of this model, {over[0]} among them.",
            "Export it in Hugging Face form (--to hf) instead.",
        )
