"""What the benchmarks share: models, texts, a clock for CPU seconds, the peak of memory."""

import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from core.data.texts import passage_documents
from core.experiment import BUILTIN_MODEL, ModelChoice, Pruning
from core.models.body import Body
from core.models.loading import LoadedModel, load
from core.models.sizes import Architecture
from core.pruning.prune import PruneOutcome, prune

TINYLLAMA: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048,
}  # fmt: skip


def smollm2() -> LoadedModel:
    """The built-in model in float32 on the CPU."""
    return load(ModelChoice(name=BUILTIN_MODEL), device="cpu", dtype="float32")


def tinyllama(dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> Any:
    """TinyLlama-1.1B's architecture with random weights, made on `device`: a CPU takes half a minute."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**TINYLLAMA)).eval()
    finally:
        torch.set_default_dtype(before)


def tinyllama_folder(folder: Path, device: str = "cpu") -> Path:
    """TinyLlama-1.1B's architecture with random bfloat16 weights as a folder in Hugging Face form; made if not there.

    Its tokenizer has 32,000 tokens, learned from the built-in passages: what is measured is time and memory.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if (folder / "config.json").is_file():
        return folder
    special = ["<unk>", "<s>", "</s>"]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TINYLLAMA["vocab_size"], special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    passages = [text for found in passage_documents().values() for text in found]
    words.train_from_iterator(passages, trainer)
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="</s>", **names).save_pretrained(folder)
    model = tinyllama(torch.bfloat16, device=device)
    model.config.bos_token_id, model.config.eos_token_id = 1, 2
    model.save_pretrained(folder)
    return folder


def token_stream(path: Path, tokenizer: Any) -> Tensor:
    """All tokens of a file read as one string, without special tokens: (n,)."""
    text = path.read_text(encoding="utf-8")
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def drawn_windows(tokens: Tensor, samples: int, length: int, seed: int = 0) -> Tensor:
    """Windows (samples, length) at random places of a token stream."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(tokens) - length, (samples,), generator=generator)
    return torch.stack([tokens[start : start + length] for start in starts.tolist()])


def random_windows(samples: int, length: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Random token ids (samples, length): what is measured on them is time and memory, not quality."""
    return torch.randint(0, vocabulary, (samples, length), generator=torch.Generator().manual_seed(seed))


def cut(model: Any, pruning: Pruning, windows: Tensor | None, device: str = "cpu", **more: Any) -> PruneOutcome:
    """Prune a model, or the body that holds it, in place."""
    config = model.model.config if isinstance(model, Body) else model.config
    architecture = Architecture.from_config(config.to_dict())
    return prune(model, pruning, architecture=architecture, windows=windows, seed=0, device=device, **more)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process, all threads, that `work` takes."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


@dataclass
class Peak:
    """Peak resident memory of this process while something ran, in bytes; `before` when it began."""

    before: int = 0
    peak: int = 0

    @property
    def above(self) -> int:
        """Bytes above the beginning."""
        return self.peak - self.before


@contextmanager
def peak_memory(every_s: float = 0.02) -> Iterator[Peak]:
    """Watch the resident set from a thread."""
    process, found, over = psutil.Process(), Peak(), threading.Event()
    found.before = found.peak = process.memory_info().rss

    def watch() -> None:
        while not over.wait(every_s):
            found.peak = max(found.peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found.peak = max(found.peak, process.memory_info().rss)


def highest_memory() -> int:
    """Peak resident memory of this process in all its life, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def row(name: str, *cells: object) -> None:
    """One line of a Markdown table."""
    sys.stdout.write(f"| {name} | {' | '.join(map(str, cells))} |\n")
    sys.stdout.flush()
