"""Model families: where each one keeps its weight matrices, norms and tables. The only place that knows module names.

A family is chosen by `model_type` of config.json. Algorithms ask for roles (`q`, `k`, `v`, `o`, `gate`, `up`, `down`)
and never spell a module path. No torch at import, so that pages can ask whether a model is known and how it will be
saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from core.errors import ModelError, UnknownNameError
from core.models.per_layer import OwnHeads
from core.models.sizes import Architecture, LayerSizes

if TYPE_CHECKING:
    from torch import Tensor, nn

Layout = Literal["stock", "per_layer"]

# Roles whose input, or whose output, is the residual stream: what pruning of hidden channels cuts.
READS_STREAM = ("q", "k", "v", "gate", "up")
WRITES_STREAM = ("o", "down")

_SEPARATE = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_FUSED = {
    "q": "self_attn.qkv_proj",
    "k": "self_attn.qkv_proj",
    "v": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_up_proj",
    "up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
}
_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Matrix:
    """The weight matrix of one role: a whole linear layer, or consecutive rows of one that several roles share.

    `linear` is the module that runs, so hooks and gradients belong to it; `rows` are this role's output rows in it.
    """

    linear: "nn.Linear"
    rows: slice = field(default_factory=lambda: slice(None))

    @property
    def weight(self) -> "Tensor":
        """(out, in), a view without gradient: what is written into it is written into the model."""
        return self.linear.weight.detach()[self.rows]

    @property
    def bias(self) -> "Tensor | None":
        """(out,), a view without gradient, or None."""
        return None if self.linear.bias is None else self.linear.bias.detach()[self.rows]


@dataclass(frozen=True)
class Family:
    """Adapter of one `model_type`. Paths are dotted module names, from the model or from a decoder layer.

    `paths`: roles that name the same module share it, in the order of the roles. `norm_paths`: norms over the hidden
    channels. `heads_divide_hidden`: the config class rejects other head counts. `attention_reads_heads`: the forward
    pass takes the number of query heads from the config. `scales_embedding`: by √hidden_size. `norm_offset`: norms
    multiply by offset + weight. `attention`: transformers' name of the kernel that computes this family exactly.
    `any_head_dim`: vLLM reads head_dim rather than hidden_size / heads. `rope_type_key`: how transformers 4 names the
    kind inside `rope_scaling`. `published_code`: code files that checkpoints still name, though transformers has long
    taken them in; they are never run.
    """

    model_type: str
    title: str
    stock_class: str
    per_layer_module: str
    per_layer_class: str
    paths: Mapping[str, str]
    norm_paths: tuple[str, ...] = _TWO_NORMS
    backbone_path: str = "model"
    layers_path: str = "model.layers"
    embedding_path: str = "model.embed_tokens"
    final_norm_path: str = "model.norm"
    head_path: str = "lm_head"
    attention_path: str = "self_attn"
    heads_divide_hidden: bool = False
    attention_reads_heads: bool = False
    scales_embedding: bool = False
    norm_offset: float = 0.0
    attention: str = "sdpa"
    any_head_dim: bool = True
    rope_type_key: str = "rope_type"
    published_code: frozenset[str] = frozenset()

    # --- modules of a model

    def backbone(self, model: "nn.Module") -> "nn.Module":
        """The model without its LM head: token ids → hidden states (batch, tokens, hidden)."""
        return self._module(model, self.backbone_path)

    def layers(self, model: "nn.Module") -> "list[nn.Module]":
        """Decoder layers in order; index = layer number of every range in this program."""
        return list(self._module(model, self.layers_path).children())

    def embedding(self, model: "nn.Module") -> "nn.Module":
        """Token embedding; its weight is (vocab, hidden)."""
        return self._module(model, self.embedding_path)

    def final_norm(self, model: "nn.Module") -> "nn.Module":
        """Norm between the last decoder layer and the head."""
        return self._module(model, self.final_norm_path)

    def head(self, model: "nn.Module") -> "nn.Module":
        """LM head; its weight is (vocab, hidden), the embedding's own where the two are tied."""
        return self._module(model, self.head_path)

    def tied(self, model: "nn.Module") -> bool:
        """Whether embedding and head are one parameter."""
        return self.embedding(model).weight is self.head(model).weight

    # --- names of tensors in safetensors files

    def layer_prefix(self, index: int) -> str:
        """What the names of all tensors of decoder layer `index` begin with, and of no other."""
        return f"{self.layers_path}.{index}."

    def outside_names(self, *, tied: bool) -> tuple[str, ...]:
        """Names of all tensors outside the decoder layers, as a file has them: a tied head is not stored."""
        paths = [self.embedding_path, self.final_norm_path, *([] if tied else [self.head_path])]
        return tuple(f"{path}.weight" for path in paths)

    # --- parts of a decoder layer

    def matrices(self, layer: "nn.Module") -> dict[str, Matrix]:
        """Weight matrices of one decoder layer by role, in the order of the forward pass; weights are (out, in).

        Rows of a shared linear layer follow from the layer's present sizes: take the matrices anew after a cut.
        """
        linears = {role: self._linear(layer, path) for role, path in self.paths.items()}
        rows = {role: slice(None) for role in linears}
        if linears["q"] is linears["k"]:
            queries, total = linears["o"].weight.shape[1], linears["q"].weight.shape[0]
            middle = (queries + total) // 2
            rows |= {"q": slice(0, queries), "k": slice(queries, middle), "v": slice(middle, total)}
        if linears["gate"] is linears["up"]:
            total = linears["gate"].weight.shape[0]
            rows |= {"gate": slice(0, total // 2), "up": slice(total // 2, total)}
        return {role: Matrix(linear, rows[role]) for role, linear in linears.items()}

    def linears(self, layer: "nn.Module") -> "dict[str, nn.Linear]":
        """Whole linear layers by role. ModelError for a family whose roles share them: use `matrices`."""
        if len(set(self.paths.values())) < len(self.paths):
            raise ModelError(f"Roles of a {self.title} layer share linear layers: ask for its matrices.")
        return {role: matrix.linear for role, matrix in self.matrices(layer).items()}

    def norms(self, layer: "nn.Module") -> "list[nn.Module]":
        """Norms of one decoder layer over the hidden channels, weight (hidden,); norms of q and k heads are no part."""
        return [self._module(layer, path) for path in self.norm_paths]

    def sizes(self, layer: "nn.Module", head_dim: int) -> LayerSizes:
        """Query heads, KV heads and MLP channels as the weights have them."""
        out = {role: matrix.weight.shape[0] for role, matrix in self.matrices(layer).items()}
        return LayerSizes(out["q"] // head_dim, out["k"] // head_dim, out["gate"])

    def head_dim(self, config: Any) -> int:
        """Channels of a head; config classes without that key mean hidden_size / heads."""
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def keep_books(self, layer: "nn.Module", sizes: LayerSizes) -> None:
        """Tell the layer's modules what they hold now, after rows and columns have been cut.

        Modules read head_dim, not head counts, from themselves; only the number of query heads per KV head is stored,
        and attention repeats keys and values by it. Phi-3 splits its fused rows by the head counts.
        """
        attention: Any = self._module(layer, self.attention_path)
        attention.num_key_value_groups = sizes.heads // sizes.kv_heads
        if self.attention_reads_heads:
            attention.num_key_value_heads = sizes.kv_heads
            config = attention.config.shared if isinstance(attention.config, OwnHeads) else attention.config
            own = config.num_attention_heads != sizes.heads
            attention.config = OwnHeads(config, sizes.heads) if own else config

    # --- how a model of some sizes is saved, and what loads it

    def layout(self, architecture: Architecture) -> Layout:
        """How a model of these sizes is saved: by the stock class where it can hold them, else with per-layer sizes."""
        heads = architecture.layers[0].heads
        holds = heads > 0 and self.accepts(architecture.hidden_size, heads, architecture)
        return "stock" if architecture.uniform and holds else "per_layer"

    def accepts(self, hidden_size: int, heads: int, architecture: Architecture) -> bool:
        """Whether the config class takes this hidden size with this many query heads at the top level."""
        if architecture.longrope and hidden_size // heads != architecture.head_dim:
            return False  # Phi3Config counts the factors of longrope by hidden_size / heads
        return not self.heads_divide_hidden or hidden_size % heads == 0

    def loads_in(self, architecture: Architecture) -> list[str]:
        """Where a saved model of these sizes loads, in words for people."""
        if self.layout(architecture) == "per_layer":
            return ["transformers with trust_remote_code=True"]
        plain = architecture.layers[0].heads * architecture.head_dim == architecture.hidden_size
        return ["transformers", "vLLM"] if plain or self.any_head_dim else ["transformers"]

    def _linear(self, layer: "nn.Module", path: str) -> "nn.Linear":
        from torch import nn

        module = self._module(layer, path)
        if not isinstance(module, nn.Linear):
            raise ModelError(
                f"{path} of this {self.title} model is a {type(module).__name__}, not a plain linear layer.",
                "Load the model without quantisation or adapters.",
            )
        return module

    def _module(self, root: "nn.Module", path: str) -> "nn.Module":
        try:
            return root.get_submodule(path)
        except AttributeError:
            raise ModelError(
                f"This {type(root).__name__} has no module {path!r}, where a {self.title} model keeps it.",
                f"Looked for: {self.looks_for}.",
            ) from None

    @property
    def looks_for(self) -> str:
        """Module names that a model of this family must have, in words for people."""
        return ", ".join([self.layers_path, *dict.fromkeys(self.paths.values())])


def _family(model_type: str, title: str, name: str, module: str, paths: Mapping[str, str], **rest: Any) -> Family:
    return Family(
        model_type, title, f"{name}ForCausalLM", f"per_layer_{module}", f"PerLayer{name}ForCausalLM", paths, **rest
    )


_GEMMA: dict[str, Any] = {
    "norm_paths": _FOUR_NORMS,
    "heads_divide_hidden": True,
    "scales_embedding": True,
    "norm_offset": 1.0,
}

_FAMILIES = {
    each.model_type: each
    for each in (
        _family("llama", "Llama", "Llama", "llama", _SEPARATE, heads_divide_hidden=True),
        _family("mistral", "Mistral", "Mistral", "mistral", _SEPARATE),
        _family("qwen2", "Qwen2", "Qwen2", "qwen2", _SEPARATE, any_head_dim=False),
        _family("qwen3", "Qwen3", "Qwen3", "qwen3", _SEPARATE),
        # scaled-dot-product attention leaves out the soft cap on attention scores
        _family("gemma2", "Gemma 2", "Gemma2", "gemma2", _SEPARATE, attention="eager", **_GEMMA),
        _family("gemma3_text", "Gemma 3", "Gemma3", "gemma3", _SEPARATE, **_GEMMA),
        _family(
            "phi3",
            "Phi-3",
            "Phi3",
            "phi3",
            _FUSED,
            attention_reads_heads=True,
            rope_type_key="type",
            published_code=frozenset({"configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"}),
        ),
    )
}


def families() -> dict[str, Family]:
    """All families by `model_type`."""
    return dict(_FAMILIES)


def titles() -> dict[str, str]:
    """Families that can be pruned, for people: `model_type` → title. Loads no torch."""
    return {model_type: each.title for model_type, each in _FAMILIES.items()}


def family(model_type: str) -> Family:
    """The family of a `model_type`. UnknownNameError lists what there is, and the module names that they have."""
    try:
        return _FAMILIES[model_type]
    except KeyError:
        error = UnknownNameError("model family", model_type, _FAMILIES)
        names = "; ".join(dict.fromkeys(each.looks_for for each in _FAMILIES.values()))
        error.advice += f" They keep their weights under these module names: {names}."
        raise error from None


def brings_code(config: Mapping[str, Any]) -> bool:
    """Whether a model of this config.json needs Python code that comes with it.

    Code that transformers has taken in since the model was published does not count: it is never run.
    """
    if "auto_map" not in config:
        return False
    known = _FAMILIES.get(str(config.get("model_type", "")))
    named = config["auto_map"]
    wanted = {named.get(name) for name in ("AutoConfig", "AutoModelForCausalLM")} if isinstance(named, dict) else {None}
    return known is None or not wanted <= known.published_code


def loads_in(architecture: Architecture) -> list[str]:
    """Where a saved model of these sizes loads, in words for people."""
    return family(architecture.model_type).loads_in(architecture)
