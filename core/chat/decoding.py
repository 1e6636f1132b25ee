"""One answer, one step at a time: prompt tokens in chunks, then a token a step, with a key-value cache.

The loop is our own and not `generate()`, because several answers share a device: between any two steps the engine may
turn to another answer, or stop this one.
"""

import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from core.chat.protocol import Message, Sampling
from core.errors import InputError, NumericalError

CHUNK = {"cpu": 64, "cuda": 512}
"""Prompt tokens of one step: few enough that a stop, or the other side, never waits long."""
WORTH_REUSING = 16
LIKELIEST = 1024
"""Tokens that are looked at first where one is drawn."""

Reason = Literal["stop", "length", "context"]


@dataclass
class Kept:
    """Keys and values of the last conversation a model held, and the tokens they belong to. Thread-safe."""

    ids: list[int] = field(default_factory=list)
    cache: Any = None
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def take(self, ids: Sequence[int], model: Any) -> tuple[Any, int]:
        """A cache for `ids` and how many of them it already holds; at least the last one is left to compute."""
        with self._lock:
            cache, held = self.cache, self.ids
            self.cache, self.ids = None, []
        common = 0
        for mine, wanted in zip(held, ids[:-1], strict=False):
            if mine != wanted:
                break
            common += 1
        if cache is None or common < WORTH_REUSING:
            return DynamicCache(config=model.config), 0
        cache.crop(common - cache.get_seq_length())  # negative: tokens to remove
        return cache, common

    def give(self, ids: list[int], cache: Any) -> None:
        """Keep `cache` for the next turn, where its layers can be shortened (a sliding window cannot)."""
        if all(type(layer) is DynamicLayer for layer in cache.layers):
            with self._lock:
                self.cache, self.ids = cache, ids[: cache.get_seq_length()]


class TextStream:
    """Text of a growing token sequence, in pieces that never end inside a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # where decoding begins: a few tokens back, as a token's text depends on the one before
        self._shown = 0

    def push(self, token: int) -> str:
        """Text that this token completes; '' while a character is still unfinished."""
        self._ids.append(token)
        return self._new(finished=False)

    def flush(self) -> str:
        """What is left when the answer ends, an unfinished character included."""
        return self._new(finished=True)

    def _new(self, *, finished: bool) -> str:
        before = self._decode(self._ids[self._start : self._shown])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or (now.endswith("\ufffd") and not finished):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Until:
    """Text up to the first of `stops`. What may be the beginning of one is held back until it is known."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.reached = False

    def push(self, text: str) -> str:
        """What can be said now; `reached` says whether a stop was met, and then nothing more comes."""
        if not self._stops or self.reached:
            return "" if self.reached else text
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        self.reached = bool(found)
        end = min(found) if found else len(self._held) - max(_overlap(self._held, stop) for stop in self._stops)
        said, self._held = self._held[:end], "" if found else self._held[end:]
        return said

    def flush(self) -> str:
        """What was held back when the answer ends otherwise."""
        said, self._held = self._held, ""
        return said


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def encode(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation, ready to be answered.

    With a chat template: as the model was trained. Without (a base model): the texts one after the other, to be
    continued. InputError where the template refuses the conversation.
    """
    if getattr(tokenizer, "chat_template", None):
        turns = [message.model_dump() for message in messages]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            raise InputError(f"This model's chat template refuses the conversation: {error}") from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer("\n".join(message.content for message in messages))["input_ids"])


def stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and all that the generation config lists."""
    config = getattr(model, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])}
    return frozenset(int(token) for token in found if token is not None)


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from `logits (vocab,)`: the likeliest at temperature 0, else drawn from the nucleus of mass
    `top_p`.

    One uniform number a token, mapped through the sorted cumulative probabilities: sides with the same seed draw the
    same numbers, on any device. NumericalError where the logits are not finite.
    """
    logits = logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise NumericalError("The model's output is not finite (nan or inf).", "Load it in float32, or prune less.")
    if sampling.temperature == 0:
        return int(logits.argmax())
    drawn = torch.rand((), generator=generator, dtype=torch.float64)
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    token = _draw(probabilities, sampling.top_p, drawn, LIKELIEST) if len(logits) > LIKELIEST else None
    if token is None:
        token = _draw(probabilities, sampling.top_p, drawn, len(logits))
        assert token is not None
    return token


def _draw(probabilities: torch.Tensor, top_p: float, drawn: torch.Tensor, count: int) -> int | None:
    """The token at `drawn` (0 to 1) of the nucleus, whose tokens stand by falling probability and then by id.

    Only the `count` likeliest are sorted, as a whole vocabulary takes milliseconds; None where it may be another token.
    """
    some = count < len(probabilities)
    if some:
        found, ids = (each.cpu() for each in probabilities.topk(count, sorted=False))
        ids, by_id = ids.sort()
        found = found[by_id]
    else:
        found, ids = probabilities.cpu(), torch.arange(count)
    found, order = found.sort(descending=True, stable=True)
    cumulative = found.double().cumsum(-1)
    if top_p < 1:
        last = int((cumulative < top_p).sum())  # the nucleus ends with the token that reaches top_p
        if some and last == count:
            return None
        mass = cumulative[min(last, count - 1)]
    else:
        mass = probabilities.double().sum().cpu()
    place = int(torch.searchsorted(cumulative, drawn * mass, right=True))
    if some and (place == count or found[place] == found[-1]):  # among equals topk takes any
        return None
    return int(ids[order[min(place, count - 1)]])


class Answer:
    """The state of one answer. `steps()` does the work; between two of its steps anything else may run."""

    def __init__(
        self, model: Any, tokenizer: Any, ids: list[int], sampling: Sampling, kept: Kept, context: int
    ) -> None:
        if len(ids) >= context:
            raise InputError(
                f"The conversation is {len(ids):,} tokens long, but this model holds {context:,}.",
                "Start a new conversation.",
            )
        self.reason: Reason = "length"
        self.ids: list[int] = []
        self.prompt_tokens = len(ids)
        self._model, self._kept, self._ids, self._sampling, self._context = model, kept, list(ids), sampling, context
        self._cache, self.reused_tokens = kept.take(ids, model)
        self._text = TextStream(tokenizer)
        self._until = Until(sampling.stop)
        self._stops = stop_ids(model, tokenizer)
        self._device = next(model.parameters()).device
        accepted = inspect.signature(model.forward).parameters
        self._extra = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._generator = torch.Generator().manual_seed(sampling.seed)

    @property
    def tokens(self) -> int:
        """How many were chosen so far."""
        return len(self.ids)

    def cache_bytes(self) -> int:
        """Bytes of the keys and values of this conversation."""
        parts = (part for layer in self._cache.layers for part in (layer.keys, layer.values) if part is not None)
        return sum(part.numel() * part.element_size() for part in parts)

    def steps(self) -> Iterator[str | None]:
        """None after a chunk of the prompt; after each token the text it completed (perhaps '')."""
        try:
            yield from self._run()
        except GeneratorExit:  # stopped between two steps: the cache is whole
            self._kept.give(self._ids, self._cache)
            raise
        self._kept.give(self._ids, self._cache)

    def _run(self) -> Iterator[str | None]:
        size = CHUNK.get(self._device.type, 256)
        for start in range(self.reused_tokens, self.prompt_tokens, size):
            if start > self.reused_tokens:
                yield None
            logits = self._forward(self._ids[start : min(start + size, self.prompt_tokens)])
        while True:
            token = choose(logits, self._sampling, self._generator)
            self.ids.append(token)
            if token in self._stops:
                self.reason = "stop"
                break
            self._ids.append(token)
            yield self._until.push(self._text.push(token))
            if self._until.reached:
                self.reason = "stop"
                return
            if self.tokens >= self._sampling.max_tokens:
                break
            if len(self._ids) >= self._context:
                self.reason = "context"
                break
            logits = self._forward([token])
        yield self._until.push(self._text.flush()) + self._until.flush()

    def _forward(self, ids: list[int]) -> torch.Tensor:
        """Logits (vocab,) after `ids`, which go into the cache."""
        batch = torch.tensor([ids], device=self._device)  # (1, T)
        output = self._model(input_ids=batch, past_key_values=self._cache, use_cache=True, **self._extra)
        logits: torch.Tensor = output.logits[0, -1]
        return logits
