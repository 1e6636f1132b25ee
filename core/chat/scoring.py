"""The token lens: an answer, read again by the model that gave it and by the dense model, token by token.

With s = log p of the speaker and d = log p of the dense model over the vocabulary in one place, given the same text
before it: the token's surprise is s[t] − d[t], and KL(s ‖ d) = Σ exp(s) · (s − d) says how far apart the two are there,
whatever was said. Natural logarithms; sums in float32.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from core.chat.decoding import CHUNK, TextStream, encode
from core.chat.models import Held
from core.chat.protocol import Guess, Message, TokenScore
from core.errors import InputError, NumericalError

GUESSES = 5
ROWS = 64
"""Places whose distributions are held at once: 64 of 128,000 entries take 33 MB a model."""


class Scoring:
    """One answer's scores, made in steps between which other work may run. `speaker` may be `dense` itself."""

    def __init__(self, speaker: Held, dense: Held, messages: Sequence[Message], ids: Sequence[int]) -> None:
        if speaker is not dense and speaker.tokenizer.get_vocab() != dense.tokenizer.get_vocab():
            raise InputError(
                f"{speaker.info.title} and {dense.info.title} do not share a vocabulary.",
                "The token lens compares models that were made from the same dense model.",
            )
        prompt = encode(speaker.tokenizer, messages)
        longest = min(speaker.info.context, dense.info.context)
        if len(prompt) + len(ids) > longest:
            raise InputError(
                f"Prompt and answer are {len(prompt) + len(ids):,} tokens long, but these models hold {longest:,}.",
                "Start a new conversation.",
            )
        self.tokens: list[TokenScore] = []
        self._held = (speaker, dense) if speaker is not dense else (speaker,)
        self._ids, self._begin = [*prompt, *ids], len(prompt)
        self._tokenizer = dense.tokenizer
        self._text = TextStream(dense.tokenizer)

    def steps(self) -> Iterator[None]:
        """One step a chunk of the text; `tokens` is complete when it ends."""
        caches = [DynamicCache(config=held.model.config) for held in self._held]
        first = self._begin - 1  # the place that predicts the answer's first token
        size = CHUNK.get(_device(self._held[0]).type, 256)
        for start in range(0, first, size):
            for held, cache in zip(self._held, caches, strict=True):
                _read(held, cache, self._ids[start : min(start + size, first)], 1)
                yield None
        for start in range(first, len(self._ids) - 1, ROWS):
            end = min(start + ROWS, len(self._ids) - 1)
            logs = []
            for held, cache in zip(self._held, caches, strict=True):
                logs.append(_read(held, cache, self._ids[start:end], end - start))
                yield None
            self._score(logs, self._ids[start + 1 : end + 1])
        left = self._text.flush()
        if left and self.tokens:
            last = self.tokens[-1]
            self.tokens[-1] = last.model_copy(update={"text": last.text + left})

    def _score(self, logs: list[torch.Tensor], targets: list[int]) -> None:
        speaker, dense = logs[0], logs[-1]  # (rows, vocab)
        places = torch.arange(len(targets))
        wanted = torch.tensor(targets)
        said, expected = speaker[places, wanted], dense[places, wanted]
        apart = (speaker.exp() * (speaker - dense)).sum(-1).clamp(min=0.0)
        top = dense.topk(min(GUESSES, dense.shape[-1]), dim=-1)
        for row, target in enumerate(targets):
            likeliest = zip(top.indices[row].tolist(), top.values[row].exp().tolist(), strict=True)
            self.tokens.append(
                TokenScore(
                    text=self._text.push(target),
                    log_probability=float(said[row]),
                    dense_log_probability=float(expected[row]),
                    divergence=float(apart[row]),
                    guesses=tuple(Guess(text=self._tokenizer.decode([i]), probability=p) for i, p in likeliest),
                )
            )


def _device(held: Held) -> torch.device:
    device: torch.device = next(held.model.parameters()).device
    return device


def _read(held: Held, cache: Any, ids: list[int], rows: int) -> torch.Tensor:
    """Log-probabilities (rows, vocab) after the last `rows` of `ids`, float32 on the CPU; `ids` go into the cache."""
    batch = torch.tensor([ids], device=_device(held))  # (1, T)
    logits = held.model(input_ids=batch, past_key_values=cache, use_cache=True).logits[0, -rows:]
    logs = torch.log_softmax(logits.float(), dim=-1).cpu()
    if not bool(torch.isfinite(logs).all()):
        raise NumericalError(f"The output of {held.info.title} is not finite (nan or inf).", "Load it in float32.")
    return logs
