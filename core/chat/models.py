"""Loading a model into the inference worker, and how much memory it will need: asked before it is loaded."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from core import device as hardware
from core.chat.decoding import Kept
from core.chat.protocol import ModelInfo, Source
from core.chat.sources import choice, params
from core.models import loading
from core.models.gguf_rounded import load_rounded
from core.progress import Progress

RESERVE = {"cpu": 256 << 20, "cuda": 512 << 20}
"""Bytes left free beside the weights: activations, the conversation's keys and values."""
NO_LIMIT = 1 << 20
"""Context of a model whose config names none."""


@dataclass
class Held:
    """A loaded model and what the last conversation left in its cache."""

    model: Any
    tokenizer: Any
    info: ModelInfo
    kept: Kept = field(default_factory=Kept)


def weight_bytes(source: Source, device: str) -> int:
    """Bytes of the model's weights once loaded, from its config alone."""
    dtype: torch.dtype = getattr(torch, hardware.resolve_dtype(source.dtype, device))
    return params(source) * dtype.itemsize


def load(source: Source, device: str, progress: Progress) -> Held:
    """Load `source` onto `device`. Raises what core.models.loading raises."""
    start = time.monotonic()
    dtype = hardware.resolve_dtype(source.dtype, device)
    if source.directory is not None and source.quantised is not None:
        folder = Path(source.directory)
        model, tokenizer = load_rounded(choice(source), folder, device=device, dtype=dtype, progress=progress)
    elif source.directory is not None:
        model, tokenizer = loading.load_directory(Path(source.directory), device=device, dtype=dtype)
    else:
        loaded = loading.load(choice(source), device=device, dtype=dtype, progress=progress)
        model, tokenizer = loaded.model, loaded.tokenizer
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}.values()
    info = ModelInfo(
        key=source.key,
        title=source.title,
        params=sum(parameter.numel() for parameter in model.parameters()),
        memory_bytes=sum(t.numel() * t.element_size() for t in tensors),
        dtype=dtype,
        device=device,
        context=int(getattr(model.config, "max_position_embeddings", 0) or NO_LIMIT),
        chat_template=bool(getattr(tokenizer, "chat_template", None)),
        load_seconds=time.monotonic() - start,
    )
    return Held(model, tokenizer, info)


def free_bytes(device: str) -> int:
    """Room for further weights on `device`: free memory less the reserve."""
    if device == "cpu":
        return psutil.virtual_memory().available - RESERVE["cpu"]
    return int(torch.cuda.mem_get_info(device)[0]) - RESERVE["cuda"]


def reclaim() -> None:
    """Give the memory of dropped models back to the device and the system, so that `free_bytes` sees it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
