"""Text that the dense model writes itself, where other text is scarce: sampled, seeded, kept in the cache.

Each document begins with the first words of a built-in passage, so that they are about many things, and goes on as the
model would, at temperature 1.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from core.data import texts
from core.device import info, resolve_dtype
from core.files import write_atomic
from core.progress import Progress

DOCUMENTS = 2048  # where nobody asks for a number
PROMPT = 16  # tokens taken from a passage
VERSION = "v2"
WAIT_S = 0.5
_AT_ONCE = {"cpu": 16, "cuda": 1024}


def generated(
    model: Any,
    tokenizer: Any,
    *,
    fingerprint: str,
    documents: int,
    length: int,
    seed: int,
    folder: Path,
    progress: Progress,
) -> list[list[int]]:
    """Token ids of documents of at most `length` tokens by the model; from `folder` if it wrote them before.

    The same model, device, dtype and seed give the same text. Of several runs that want the same text one writes it.
    """
    device = str(model.device)
    what = [VERSION, fingerprint, device.partition(":")[0], str(model.dtype), documents, length, PROMPT, seed]
    file = folder / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file, progress, documents):
        if file.is_file():
            found: list[list[int]] = json.loads(file.read_text(encoding="utf-8"))
            return found
        made = _written(model, tokenizer, documents, length, seed, progress)
        write_atomic(file, json.dumps(made))
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


def _written(model: Any, tokenizer: Any, documents: int, length: int, seed: int, progress: Progress) -> list[list[int]]:
    prompts = _prompts(tokenizer, documents, seed)
    made: list[list[int]] = []
    writer = _writer(model)
    at_once = _rows(writer, length)
    ends = tokenizer.eos_token_id
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        for start in range(0, documents, at_once):
            some = torch.tensor(prompts[start : start + at_once], device=model.device)

            def step(ids: torch.Tensor, _scores: Any, start: int = start, **_: Any) -> torch.Tensor:
                progress(start + len(ids) * (ids.shape[1] - PROMPT) / length, documents, "documents")
                return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

            with torch.inference_mode():
                answers = writer.generate(
                    input_ids=some,
                    attention_mask=torch.ones_like(some),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=max(1, length - PROMPT),
                    pad_token_id=ends if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                    # One that grows is allocated anew at each token, in sizes that never fit again.
                    cache_implementation="static",
                    disable_compile=True,
                    stopping_criteria=[step],
                )
            made += [_cut(row, ends) for row in answers.tolist()]
    finally:
        torch.set_rng_state(state)
    progress(documents, documents, "documents")
    return made


def _writer(model: Any) -> Any:
    """The model in the half precision that its GPU has, which writes twice as fast; itself where that does not fit."""
    if model.device.type == "cpu" or model.dtype != torch.float32:
        return model
    size = sum(each.nbytes for each in model.parameters())
    if info(str(model.device)).free_bytes < size:
        return model
    return copy.deepcopy(model).to(getattr(torch, resolve_dtype("auto", str(model.device))))


def _prompts(tokenizer: Any, count: int, seed: int) -> list[list[int]]:
    """First tokens of passages that calibration and recovery may read, drawn with the seed."""
    passages = [
        text for name, found in texts.passage_documents().items() if not texts.is_held_out(name) for text in found
    ]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randint(len(passages), (4 * count,), generator=generator).tolist()
    starts: list[list[int]] = []
    for each in order:
        ids = tokenizer(passages[each][: 12 * PROMPT], add_special_tokens=False)["input_ids"][:PROMPT]
        if len(ids) == PROMPT:
            starts.append(ids)
        if len(starts) == count:
            break
    return starts


def _rows(model: Any, length: int) -> int:
    """Documents written side by side: what a key-value cache in half of the free memory holds."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * config.num_hidden_layers * heads * size * length * model.dtype.itemsize + 8 * config.vocab_size
    kind = "cpu" if model.device.type == "cpu" else "cuda"
    return max(1, min(_AT_ONCE[kind], int(info(str(model.device)).free_bytes / 2 // row)))


def _cut(ids: Sequence[int], end: "int | None") -> list[int]:
    """Up to the end token, if the model wrote one."""
    rows = list(ids)
    if end is not None and end in rows[PROMPT:]:
        return rows[: rows.index(end, PROMPT)]
    return rows
