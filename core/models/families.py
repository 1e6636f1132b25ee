"""Model families: where each one keeps its linear layers, norms and tables. The only place that knows module names.

A family is chosen by `model_type` of config.json. Algorithms ask for roles (`q`, `k`, `v`, `o`, `gate`, `up`, `down`)
and never spell a module path. No torch at import, so that pages can ask whether a model is known and how it will be
saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from core.errors import ModelError, UnknownNameError
from core.models.sizes import Architecture, LayerSizes

if TYPE_CHECKING:
    from torch import Tensor, nn

Layout = Literal["stock", "per_layer"]

_LLAMA_PATHS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


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
    """Adapter of one `model_type`. Paths are dotted module names, from the model or from a decoder layer."""

    model_type: str
    title: str
    stock_class: str
    per_layer_module: str
    per_layer_class: str
    paths: Mapping[str, str] = field(default_factory=lambda: dict(_LLAMA_PATHS))
    backbone_path: str = "model"
    layers_path: str = "model.layers"
    embedding_path: str = "model.embed_tokens"
    final_norm_path: str = "model.norm"
    head_path: str = "lm_head"
    attention_path: str = "self_attn"
    heads_divide_hidden: bool = False

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

    def matrices(self, layer: "nn.Module") -> dict[str, Matrix]:
        """Weight matrices of one decoder layer by role, in the order of the forward pass; weights are (out, in)."""
        return {role: Matrix(linear) for role, linear in self.linears(layer).items()}

    def linears(self, layer: "nn.Module") -> "dict[str, nn.Linear]":
        """Linear layers of one decoder layer by role, in the order of the forward pass; weights are (out, in)."""
        from torch import nn

        found: dict[str, nn.Linear] = {}
        for role, path in self.paths.items():
            module = self._module(layer, path)
            if not isinstance(module, nn.Linear):
                raise ModelError(
                    f"{path} of this {self.title} model is a {type(module).__name__}, not a plain linear layer.",
                    "Load the model without quantisation or adapters.",
                )
            found[role] = module
        return found

    def sizes(self, layer: "nn.Module", head_dim: int) -> LayerSizes:
        """Query heads, KV heads and MLP channels as the weights have them."""
        linears = self.linears(layer)
        heads, kv_heads = (linears[role].weight.shape[0] // head_dim for role in ("q", "k"))
        return LayerSizes(heads, kv_heads, linears["gate"].weight.shape[0])

    def keep_books(self, layer: "nn.Module", sizes: LayerSizes) -> None:
        """Tell the layer's modules what they hold now, after rows and columns have been cut.

        Modules of these families read head_dim, not head counts, from themselves; only the number of query heads per KV
        head is stored, and attention repeats keys and values by it.
        """
        attention = self._module(layer, self.attention_path)
        attention.num_key_value_groups = sizes.heads // sizes.kv_heads  # type: ignore[assignment]

    def layout(self, architecture: Architecture) -> Layout:
        """How a model of these sizes is saved: by the stock class where it can hold them, else with per-layer sizes."""
        first = architecture.layers[0]
        divides = architecture.hidden_size % first.heads == 0 if first.heads else False
        return "stock" if architecture.uniform and (divides or not self.heads_divide_hidden) else "per_layer"

    def _module(self, root: "nn.Module", path: str) -> "nn.Module":
        try:
            return root.get_submodule(path)
        except AttributeError:
            raise ModelError(
                f"This {type(root).__name__} has no module {path!r}, where a {self.title} model keeps it.",
                f"Looked for: {self.layers_path}, {', '.join(self.paths.values())}.",
            ) from None


_FAMILIES = {
    each.model_type: each
    for each in (
        # LlamaConfig rejects head counts that do not divide hidden_size, even where head_dim is given.
        Family(
            "llama",
            "Llama",
            "LlamaForCausalLM",
            "per_layer_llama",
            "PerLayerLlamaForCausalLM",
            heads_divide_hidden=True,
        ),
        Family("mistral", "Mistral", "MistralForCausalLM", "per_layer_mistral", "PerLayerMistralForCausalLM"),
    )
}


def families() -> dict[str, Family]:
    """All families by `model_type`."""
    return dict(_FAMILIES)


def family(model_type: str) -> Family:
    """The family of a `model_type`. UnknownNameError lists what there is."""
    try:
        return _FAMILIES[model_type]
    except KeyError:
        raise UnknownNameError("model family", model_type, _FAMILIES) from None


def loads_in(architecture: Architecture) -> list[str]:
    """Where a saved model of these sizes loads, in words for people."""
    if family(architecture.model_type).layout(architecture) == "stock":
        return ["transformers", "vLLM"]
    return ["transformers with trust_remote_code=True"]
