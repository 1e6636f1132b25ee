"""Text that the dense model writes itself, where other text is scarce: sampled, seeded, kept in the cache.

Each document begins with the first words of a built-in passage, so that they are about many things and stay near to
what people write, and goes on as the model would, at temperature 1.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from core.data import texts
from core.device import info, resolve_dtype
from core.errors import DataError
from core.files import write_atomic
from core.progress import Progress

DOCUMENTS = 2048  # where nobody asks for others
VERSION = "v5"
WAIT_S = 0.5
_TRIES = 16  # passages drawn for each document, as some are too short
_LETTERS_A_TOKEN = 12  # more than any text has
_AT_ONCE = {"cpu": 16, "cuda": 2048}


def generated(
    model: Any,
    tokenizer: Any,
    *,
    fingerprint: str,
    documents: int,
    length: int,
    prompt: int,
    seed: int,
    folder: Path,
    progress: Progress,
) -> list[list[int]]:
    """Token ids of documents of at most `length` tokens by the model; from `folder` if it wrote them before.

    Each begins with `prompt` tokens of a passage, fewer than `length`. DataError where no passage has that many. The
    same model, number format, seed and number of rows at once give the same text on the same device. Of several runs
    that want the same text one writes it. What was written before a kill is not written again.
    """
    prompts = _prompts(tokenizer, documents, prompt, seed)
    dtype = _dtype(model)
    at_once = _rows(model, dtype, length)
    told = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    device = str(model.device).partition(":")[0]
    what = [VERSION, fingerprint, device, str(dtype), at_once, sorted(_ends(model, tokenizer)), length, seed, told]
    file = folder / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file, progress, documents):
        if file.is_file():
            found: list[list[int]] = json.loads(file.read_text(encoding="utf-8"))
            return found
        with _writer(model, dtype) as writer:
            made = _written(writer, tokenizer, prompts, length, at_once, seed, file.with_suffix(".part"), progress)
        write_atomic(file, json.dumps(made))
        file.with_suffix(".part").unlink(missing_ok=True)
    return made


@contextmanager
def _alone(file: Path, progress: Progress, documents: int) -> Iterator[None]:
    """Hold the lock beside the file; while another run holds it, this one waits and can be cancelled."""
    lock = FileLock(f"{file}.lock")
    while True:
        try:
            lock.acquire(timeout=WAIT_S)
            break
        except Timeout:
            progress(0, documents, "documents")
    try:
        yield
    finally:
        lock.release()


def _written(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    length: int,
    at_once: int,
    seed: int,
    part: Path,
    progress: Progress,
) -> list[list[int]]:
    """Documents for all prompts; on from the whole batches that `part` holds, where each is kept when it is written."""
    made: list[list[int]] = json.loads(part.read_text(encoding="utf-8")) if part.is_file() else []
    given = len(prompts[0])
    documents, ends = len(prompts), _ends(model, tokenizer)
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, *sorted(ends))
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for start in range(len(made), documents, at_once):
            torch.manual_seed(
                (seed + (start << 32)) % 2**63
            )  # each batch by itself: whichever is the first to be written
            some = torch.tensor(prompts[start : start + at_once], device=model.device)

            def step(ids: torch.Tensor, _scores: Any, start: int = start, **_: Any) -> torch.Tensor:
                progress(start + len(ids) * (ids.shape[1] - given) / length, documents, "documents")
                return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

            with torch.inference_mode():
                answers = model.generate(
                    input_ids=some,
                    attention_mask=torch.ones_like(some),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=max(1, length - given),
                    eos_token_id=sorted(ends) or None,
                    pad_token_id=next((each for each in pads if each is not None), None),
                    stopping_criteria=[step],
                    **_cache(model, max(length, given + 1)),
                )
            made += [_cut(row, ends, given) for row in answers.tolist()]
            write_atomic(part, json.dumps(made))
    progress(documents, documents, "documents")
    return made


class _Roomy(DynamicLayer):  # type: ignore[misc]
    """Keys and values in room that is there from the start: one that grows by a token is allocated anew at each, in
    sizes that never fit again, and transformers' static one has each token read all its room through a mask."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._all = [each.new_empty(*each.shape[:2], self._room, each.shape[3]) for each in (key_states, value_states)]
        self.keys, self.values = (each[:, :, :0] for each in self._all)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in (rows, heads, tokens, size) of each; all that is held, without a copy."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        for room, new in zip(self._all, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._all)
        return self.keys, self.values


def _cache(model: Any, length: int) -> dict[str, Any]:
    """generate()'s arguments for keys and values of `length` tokens; its own static one where layers have windows."""
    cache = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return {"cache_implementation": "static", "disable_compile": True}
    cache.layers = [_Roomy(length) for _ in cache.layers]
    return {"past_key_values": cache}


def _dtype(model: Any) -> torch.dtype:
    """The half precision that a GPU has, which writes twice as fast; the model's own where a copy does not fit."""
    own: torch.dtype = model.dtype
    if model.device.type == "cpu" or own != torch.float32:
        return own
    if info(str(model.device)).free_bytes < sum(each.nbytes for each in model.parameters()):
        return own
    half: torch.dtype = getattr(torch, resolve_dtype("auto", str(model.device)))
    return half


@contextmanager
def _writer(model: Any, dtype: torch.dtype) -> Iterator[Any]:
    """The model in that format, without its own settings for answers: a repetition penalty bends its distribution."""
    writer = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
    usual = writer.generation_config
    writer.generation_config = GenerationConfig(eos_token_id=usual.eos_token_id)
    try:
        yield writer
    finally:
        writer.generation_config = usual


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a text: the tokenizer's, and those that the model's settings name."""
    named = model.generation_config.eos_token_id
    several = named if isinstance(named, list) else [named]
    return {int(each) for each in (*several, tokenizer.eos_token_id) if each is not None}


def _prompts(tokenizer: Any, count: int, length: int, seed: int) -> list[list[int]]:
    """First tokens of passages that calibration and recovery may read, drawn with the seed."""
    passages = [
        text for name, found in texts.passage_documents().items() if not texts.is_held_out(name) for text in found
    ]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randint(len(passages), (_TRIES * count,), generator=generator).tolist()
    known: dict[int, list[int]] = {}
    starts: list[list[int]] = []
    for each in order:
        if each not in known:
            text = passages[each][: _LETTERS_A_TOKEN * length]
            known[each] = tokenizer(text, add_special_tokens=False)["input_ids"][:length]
        if len(known[each]) == length:
            starts.append(known[each])
        if len(starts) == count:
            break
    if not starts:
        raise DataError(
            f"No passage has {length} tokens to begin a document with.", "Lower recovery.data.prompt_tokens."
        )
    return starts


def _rows(model: Any, dtype: torch.dtype, length: int) -> int:
    """Documents written side by side, a power of two: what a key-value cache in a quarter of the memory holds.

    A quarter of all of it, so that the number, and with it the text, does not hang on what else runs; less where that
    is not free.
    """
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * config.num_hidden_layers * heads * size * length * dtype.itemsize + 8 * config.vocab_size
    kind = "cpu" if model.device.type == "cpu" else "cuda"
    memory = info(str(model.device))
    fits = int(min(memory.total_bytes / 4, memory.free_bytes / 2) // row)
    return 1 << (max(1, min(_AT_ONCE[kind], fits)).bit_length() - 1)


def _cut(ids: Sequence[int], ends: Set[int], given: int) -> list[int]:
    """Up to the end token, if the model wrote one behind the tokens it was given."""
    return list(ids[: next((place for place in range(given, len(ids)) if ids[place] in ends), len(ids))])
