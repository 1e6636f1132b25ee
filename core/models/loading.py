"""Loading weights: a chosen model, or the folder that a run saved. safetensors only; foreign code only where ticked."""

import importlib
import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.device import resolve_dtype, torch_device
from core.errors import EspalierError, ModelError
from core.models.builtin import builtin_directory
from core.models.catalogue import ModelSource, gated, read_config, require_safetensors, resolve
from core.models.families import brings_code, families, family
from core.models.sizes import PER_LAYER_KEY
from core.progress import Progress, silent, while_it_lasts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from core.experiment import ModelChoice

_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on `device`, computing in `dtype`; `source_dtype` is the format that its files have."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    source: ModelSource
    device: str
    dtype: str
    source_dtype: str


def load(choice: "ModelChoice", *, device: str, dtype: str, progress: Progress = silent) -> LoadedModel:
    """Load what an Experiment names. device: cpu or cuda:N; dtype: a torch name, or auto for the device's.

    ModelError where it cannot be had or read.
    """
    source = resolve(choice)
    directory = weights_directory(source, choice.trust_remote_code, progress)
    model, tokenizer = load_directory(
        directory, device=device, dtype=dtype, trust_remote_code=choice.trust_remote_code, progress=progress
    )
    return LoadedModel(model, tokenizer, source, device, resolve_dtype(dtype, device), stored_dtype(directory))


def load_directory(
    path: Path | str, *, device: str, dtype: str, trust_remote_code: bool = False, progress: Progress = silent
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a folder in Hugging Face form; one with `espalier_layers` through this program's class, never its own.

    device: cpu or cuda:N; dtype: a torch name, or auto for the device's. ModelError where it cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = Path(path)
    config = read_config(directory)
    require_safetensors(directory)
    own = PER_LAYER_KEY in config
    code = {} if own else {"trust_remote_code": trust_remote_code and brings_code(config)}
    known = families().get(str(config.get("model_type", "")))
    loader: Any = per_layer_class(config) if own else AutoModelForCausalLM
    target = torch_device(device)
    progress(0, 2, "steps")
    try:
        model, info = loader.from_pretrained(
            str(directory),
            dtype=getattr(torch, resolve_dtype(dtype, device)),
            attn_implementation=known.attention if known else None,
            use_safetensors=True,
            output_loading_info=True,
            **code,
        )
        progress(1, 2, "steps")
        tokenizer = AutoTokenizer.from_pretrained(str(directory), **({} if own else code))
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, EspalierError | torch.OutOfMemoryError):
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"The model in {directory} cannot be loaded: {reason.strip()}",
            "It must be a whole causal language model in Hugging Face form: copy or download the folder again.",
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"The model in {directory} lacks {len(missing)} weights, {missing[0]} among them.",
            "The files are incomplete: copy or download the folder again.",
        )
    model = model.to(target).eval()
    progress(2, 2, "steps")
    return model, tokenizer


def stored_dtype(directory: Path) -> str:
    """The floating-point format that most bytes of the folder's safetensors files have, read from their headers."""
    held: Counter[str] = Counter()
    for path in sorted(directory.glob("*.safetensors")):
        for entry in _header(path).values():
            name = _DTYPES.get(entry.get("dtype", ""))
            if name:
                first, last = entry["data_offsets"]
                held[name] += last - first
    if not held:
        raise ModelError(f"The safetensors files in {directory} hold no floating-point weights.")
    return held.most_common(1)[0][0]


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        if length > 100_000_000:
            raise ModelError(f"{path.name} is not a safetensors file: its header would be {length} bytes long.")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header


def per_layer_class(config: dict[str, Any]) -> Any:
    """This program's own class for a folder whose config.json has sizes per layer."""
    adapter = family(str(config.get("model_type", "")))
    return getattr(importlib.import_module(f"core.models.{adapter.per_layer_module}"), adapter.per_layer_class)


def weights_directory(source: ModelSource, trust_remote_code: bool = False, progress: Progress = silent) -> Path:
    """The folder of a source: converted, downloaded (safetensors and text files only), or simply there."""
    if source.name.startswith("builtin:"):
        return builtin_directory(progress)
    if source.directory is not None:
        return source.directory
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_PATTERNS, "*.py"] if trust_remote_code else _PATTERNS
    progress(0, 1, "download")
    name, revision = str(source.hub_id), source.revision
    try:
        folder = while_it_lasts(
            lambda: snapshot_download(name, revision=revision, allow_patterns=patterns),
            lambda: progress(0, 1, "download"),
        )
        return Path(folder)
    except GatedRepoError as error:
        raise gated(source.name) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{source.name} is not on this machine, and the hub did not give it: {error}",
            "Connect to the network, or choose the built-in model or a local folder.",
        ) from error
