"""Token streams: a text tokenised whole, once per tokenizer, kept in the cache."""

import hashlib
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core import settings
from core.errors import DataError
from core.files import write_atomic

if TYPE_CHECKING:
    import torch


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Names what a tokenizer does to a text: equal for equal vocabularies and rules, wherever they were loaded from.

    Padding and truncation, which callers switch on and off, are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
    else:
        state = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def token_stream(key: str, read: Callable[[], str], tokenizer: Any) -> "torch.Tensor":
    """The tokens of a text, without special tokens, int64 (tokens,).

    `key` names the text: the same key must always stand for the same text. `read` gives it, and is only called when the
    cache does not hold its tokens.
    """
    import numpy as np
    import torch

    name = hashlib.sha256(f"{tokenizer_fingerprint(tokenizer)} {key}".encode()).hexdigest()[:32]
    path = settings.cache() / "tokens" / f"{name}.npy"
    try:
        stored = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or damaged: made again
        ids = tokenizer(read(), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        stored = np.asarray(ids, dtype=np.uint32)
        buffer = io.BytesIO()
        np.save(buffer, stored, allow_pickle=False)
        write_atomic(path, buffer.getvalue())
    if stored.ndim != 1 or stored.size == 0:
        raise DataError("The text gives no tokens.", "Choose a text with more in it.")
    return torch.from_numpy(stored.astype(np.int64))


def tokens_sha256(tokens: "torch.Tensor") -> str:
    """Names a tensor of token ids by its content, whatever the machine's byte order."""
    return hashlib.sha256(tokens.contiguous().numpy().astype("<i8").tobytes()).hexdigest()
