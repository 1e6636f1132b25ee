"""What loads a saved model, and whether it gets smaller or faster there: one table of facts, no torch.

Only what was tried here, or what docs/exports.md names a source for, is said. vLLM was not run on the test machines.
"""

from typing import NamedTuple

from core.models.gguf_layout import gguf_architecture
from core.models.plans import parse_pattern
from core.models.sizes import Architecture

_PER_LAYER_DECI = (
    "not as saved: its DeciLMForCausalLM takes layers that differ in MLP width, or in KV heads under the same query "
    "heads, but not this file form"
)


class Engine(NamedTuple):
    """One engine: `how` it loads the model, in words for people; `loads` is False where it does not."""

    name: str
    how: str
    loads: bool = True


def stock(architecture: Architecture) -> bool:
    """Whether the export in Hugging Face form needs no code of its own."""
    from core.models.families import families

    family = families().get(architecture.model_type)
    if family is None:
        return False
    return family.layout(architecture) == "stock" or as_mistral(architecture)


def as_mistral(architecture: Architecture) -> bool:
    """Whether a Llama that LlamaConfig refuses is saved as a Mistral: the same arithmetic, without that check.

    LlamaConfig wants head counts that divide hidden_size, even where head_dim is given; MistralConfig does not.
    """
    biased = architecture.attention_bias or architecture.mlp_bias
    heads = architecture.layers[0].heads
    uneven = bool(heads) and architecture.hidden_size % heads != 0
    return architecture.model_type == "llama" and architecture.uniform and uneven and not biased


def loads_in(architecture: Architecture, pattern: str | None = None) -> list[Engine]:
    """Every engine that is spoken of, with how it loads a model of these sizes, exported by this program.

    `pattern`: of the mask, where there is one (`2:4`, `4:8`, `unstructured`).
    """
    plain = stock(architecture)
    zeros = ""
    if pattern is not None and parse_pattern(pattern) == (2, 4):
        zeros = ", as a dense model: it has no 2:4 kernels any more"
    elif pattern is not None:
        zeros = ", as a dense model"
    vllm = Engine("vLLM", f"stock class{zeros}") if plain else Engine("vLLM", _PER_LAYER_DECI, False)
    return [
        Engine("transformers", "stock class, no remote code" if plain else "with trust_remote_code=True"),
        vllm,
        _llama_cpp(architecture),
    ]


def _llama_cpp(architecture: Architecture) -> Engine:
    name = gguf_architecture(architecture)
    if name is not None:
        return Engine("llama.cpp", f"as GGUF, architecture {name}")
    if gguf_architecture(architecture.with_layers(architecture.layers[:1])) is not None:
        return Engine("llama.cpp", f"no architecture for a {architecture.model_type} whose layers differ", False)
    return Engine("llama.cpp", f"no GGUF is written of a {architecture.model_type} model", False)


def zeros_in_words(pattern: str) -> str:
    """What zeros do not do, and who gains from 2:4: for the card and wherever a mask is chosen."""
    plain = "The zeros are stored and multiplied like other numbers: the model is not smaller and not faster."
    if parse_pattern(pattern) != (2, 4):
        return f"{plain} No common engine gains from {'unstructured zeros' if pattern == 'unstructured' else pattern}."
    return (
        f"{plain} Two zeros in each four weights can be used by NVIDIA GPUs from Ampere on, through PyTorch's "
        "semi-structured sparse tensors or TensorRT, after a conversion that this program does not do. vLLM removed "
        "its 2:4 kernels and loads the model as a dense one; llama.cpp has none."
    )
