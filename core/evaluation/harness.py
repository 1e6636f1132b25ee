"""lm-eval's own Hugging Face model, faster, and watched: it says where it stands, and stops when asked.

What is answered is what the stock class answers. Log-likelihoods are computed by core.evaluation.packed where that is
exact for the model, else as the stock class does, batched by length; texts are tokenised many at once. Imported lazily,
by core.evaluation.tasks: importing lm-eval takes seconds.
"""

import contextlib
import copy
import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import lm_eval.api.model
import lm_eval.api.task
from lm_eval.models.huggingface import HFLM

from core.errors import NumericalError
from core.evaluation.forward import Meter, batch_rows, watched
from core.evaluation.packed import PackedScorer, Scored
from core.evaluation.precision import dtype_name
from core.progress import Progress

GENERATION_LENGTH = 1024  # tokens that a prompt and its answer are taken to have, for the batch size
_ALL_AT_ONCE = 1 << 30
_TEXTS_AT_ONCE = 4096
_INTERVAL = 0.25  # seconds between two progress calls while requests are made


class WatchedLM(HFLM):  # type: ignore[misc]
    """HFLM on a loaded model. Log-softmax is in float32 whatever the weights are in."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int | str, progress: Progress) -> None:
        with quiet_harness():
            super().__init__(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # HFLM sets its pad token
                backend="causal",
                batch_size="auto",
                softmax_dtype="float32",
            )
        self._asked = batch_size
        self._progress = progress
        self._rows_of_generation = batch_rows(GENERATION_LENGTH, str(model.device), batch_size)
        self._detected = self._rows_of_generation
        self._meter: Meter | None = None
        self._layers = 0
        scorer = PackedScorer(model, batch_size=batch_size)
        self._packed = scorer if scorer.exact() else None
        self.packed_tokens = 0  # run through the model, of log-likelihoods so far

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:  # noqa: ARG002 (the stock signature)
        return self._detected

    # -------------------------------------------------------------------------------------------------- log-likelihoods

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Stock, with all windows handed over at once, so that progress knows their number."""
        self._detected = _ALL_AT_ONCE
        try:
            result: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
            return result
        finally:
            self._detected = self._rows_of_generation

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Stock, with all texts tokenised together where the tokeniser can."""
        pairs = [request.args for request in requests]
        if not getattr(self.tokenizer, "is_fast", False) or any(context == "" for context, _ in pairs):
            result: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
            return result
        moved = [_spaces_moved(context, continuation) for context, continuation in pairs]
        whole = self._encoded([context + continuation for context, continuation in moved])
        alone = self._encoded([context for context, _ in moved])
        encoded = [(pair, before, both[len(before) :]) for pair, before, both in zip(pairs, alone, whole, strict=True)]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, as `tok_encode` gives them; equal texts are tokenised once."""
        distinct = list(dict.fromkeys(texts))
        prefix = self.tokenizer.decode(self.prefix_token_id)
        known: dict[str, list[int]] = {}
        groups: dict[bool, list[str]] = {}
        for text in distinct:
            groups.setdefault(bool(prefix) and text.startswith(prefix), []).append(text)
        for started, members in groups.items():
            how = {"add_special_tokens": False} if started else {}
            if not started and self.add_bos_token is not None:
                how = {"add_special_tokens": self.add_bos_token}
            for start in range(0, len(members), _TEXTS_AT_ONCE):
                some = members[start : start + _TEXTS_AT_ONCE]
                self._progress(start, len(members), "texts")
                known |= zip(some, self.tokenizer(some, **how)["input_ids"], strict=True)
        return [known[text] for text in texts]

    def _loglikelihood_tokens(
        self,
        requests: list[Any],
        disable_tqdm: bool = False,  # noqa: ARG002 (the stock signature)
        override_bs: int | None = None,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each (text pair, context tokens, continuation tokens)."""
        if self._packed is not None:
            found = self._scored(self._packed, requests)
            if found is not None:
                return found
        rows = _rows(requests)
        self.packed_tokens += sum(length for length, _ in rows)
        meter = Meter(self._progress, sum(length for length, _ in rows), "tokens")
        answers: list[tuple[float, bool] | None] = [None] * len(requests)
        with watched(self.model, meter) as layers:
            for batch in self._batches(rows):
                meter.begin(
                    sum(length for length, _ in batch), layers + 1
                )  # the head and log-softmax are the last step
                members = [index for _, indices in batch for index in indices]
                found = super()._loglikelihood_tokens(
                    [requests[index] for index in members], disable_tqdm=True, override_bs=len(batch)
                )
                for index, answer in zip(members, found, strict=True):
                    answers[index] = self._finite(answer)
                meter.end()
        return [answer for answer in answers if answer is not None]

    def _scored(self, packed: PackedScorer, requests: list[Any]) -> list[tuple[float, bool]] | None:
        """By packing; None where a sequence is longer than the model attends to in full."""
        most = self.max_length + 1
        sequences = [
            Scored(tuple((context + continuation)[-most:]), len(continuation)) for _, context, continuation in requests
        ]
        if not packed.fits(max((len(each.tokens) for each in sequences), default=0)):
            return None
        total = packed.tokens_in(sequences)
        self.packed_tokens += total
        answers = packed.score(sequences, Meter(self._progress, total, "tokens"))
        return [self._finite(answer) for answer in answers]

    def _batches(self, rows: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
        start = 0
        while start < len(rows):
            stop = start + batch_rows(rows[start][0], str(self.device), self._asked)
            yield rows[start:stop]
            start = stop

    def _finite(self, answer: tuple[float, bool]) -> tuple[float, bool]:
        if not math.isfinite(answer[0]):
            raise NumericalError(
                f"A log-likelihood is {answer[0]} in {dtype_name(self.model)}.",
                "Choose float32 or bfloat16 for the model's dtype, or prune less.",
            )
        return answer

    # ------------------------------------------------------------------------------------------------------- generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Stock, counted in answers."""
        self._meter = Meter(self._progress, len(requests), "answers")
        with watched(self.model, self._meter) as self._layers:
            result: list[str] = super().generate_until(requests, disable_tqdm=True)
            return result

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
        if self._meter is not None:
            self._meter.begin(len(context), self._layers * max(1, max_length - context.shape[1]))
        result = super()._model_generate(context, max_length, stop, **kwargs)
        if self._meter is not None:
            self._meter.end()
        return result


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the context's end belong to the continuation, as in the stock class."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _rows(requests: list[Any]) -> list[tuple[int, list[int]]]:
    """(length, indices of requests) of each row to compute, longest first.

    Requests that differ in their last token alone share a row, as in the stock class.
    """
    shared: dict[tuple[int, ...], list[int]] = {}
    for index, (_, context, continuation) in enumerate(requests):
        shared.setdefault(tuple(context + continuation[:-1]), []).append(index)
    return sorted(((len(tokens), indices) for tokens, indices in shared.items()), key=lambda row: -row[0])


@contextlib.contextmanager
def quiet_harness() -> Iterator[None]:
    """Leave out what the harness warns about a model object and a data function as such; later warnings stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def watched_preparation(progress: Progress) -> Iterator[None]:
    """While the harness makes prompts and tokenises them, say so instead of drawing bars into the log.

    Its loops over documents are plain `tqdm(…)` calls; for full sets they take long enough that a run must be able to
    stop inside them.
    """

    def bar(items: Iterable[Any], **_: Any) -> Iterator[Any]:
        everything = list(items)
        said = time.monotonic()
        for number, item in enumerate(everything):
            now = time.monotonic()
            if now - said >= _INTERVAL:
                said = now
                progress(number, len(everything), "prompts")
            yield item

    modules: list[Any] = [lm_eval.api.task, lm_eval.api.model]
    stock = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = bar
    try:
        yield
    finally:
        for module, original in zip(modules, stock, strict=True):
            module.tqdm = original
