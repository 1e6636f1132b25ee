"""lm-eval's own Hugging Face model, with what takes the time replaced: tokenising in batches, scoring by trees.

Tasks, prompts, metrics and generation are the stock ones; log-likelihoods come from core.evaluation.scoring. It says
where it stands and stops when asked. Imported lazily, by core.evaluation.tasks: importing lm-eval takes seconds.
"""

import contextlib
import copy
import gc
import logging
import os
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import lm_eval.api.model
import lm_eval.api.task
import lm_eval.utils
import numpy as np
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix

from core.errors import NumericalError
from core.evaluation.forward import Meter, batch_rows, watched
from core.evaluation.precision import dtype_name
from core.evaluation.prefixes import Scored
from core.evaluation.scoring import Scorer
from core.evaluation.word_bounds import separable, words_stand_alone
from core.progress import Progress

GENERATION_LENGTH = 1024  # tokens that a prompt and its answer are taken to have, for the batch size
_ALL_AT_ONCE = 1 << 30
_TEXTS_AT_ONCE = 2048  # tokenised between two looks at whether to stop
_TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"
_INTERVAL = 0.25  # seconds between two progress calls while requests are made


class WatchedLM(HFLM):  # type: ignore[misc]
    """HFLM on a loaded model. Log-softmax is in float32 whatever the weights are in.

    scorer: how many tokens ran through the model for log-likelihoods stands there.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int | str, progress: Progress) -> None:
        with quiet_harness():
            super().__init__(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # HFLM sets its pad token
                backend="causal",
                batch_size="auto",
                softmax_dtype="float32",
            )
        self.scorer = Scorer(model, batch_size=batch_size)
        self._words_stand_alone = words_stand_alone(self.tokenizer)
        self._progress = progress
        self._rows_of_generation = batch_rows(GENERATION_LENGTH, str(model.device), batch_size)
        self._detected = self._rows_of_generation
        self._meter: Meter | None = None
        self._layers = 0

    def _detect_batch_size(self, requests: Any = None, pos: int = 0) -> int:  # noqa: ARG002 (the stock signature)
        return self._detected

    # -------------------------------------------------------------------------------------------------- log-likelihoods

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002
        """(log-likelihood, is greedy) of each (context, continuation); tokens as the stock class makes them."""
        pairs = [_words_whole(*request.args) for request in requests]
        apart = [self._words_stand_alone and separable(*pair) for pair in pairs]
        contexts = self._tokens_of([context for context, _ in pairs if context])
        wholes = self._tokens_of([a + b for (a, b), cut in zip(pairs, apart, strict=True) if a and not cut])
        words = self._tokens_of([b for (_, b), cut in zip(pairs, apart, strict=True) if cut], dressed=False)
        encoded = []
        for (context, continuation), cut in zip(pairs, apart, strict=True):
            if not context:
                encoded.append((None, *self._after_nothing(continuation)))
            else:
                start = contexts[context]
                rest = words[continuation] if cut else wholes[context + continuation][len(start) :]
                encoded.append((None, start, rest))
        return self._loglikelihood_tokens(encoded)

    def _after_nothing(self, continuation: str) -> tuple[list[int], list[int]]:
        """(context, continuation) where the context is empty: the prefix token stands in for it."""
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        return (tokens[:1], tokens[1:]) if tokens[0] == self.prefix_token_id else ([self.prefix_token_id], tokens)

    def _tokens_of(self, texts: list[str], *, dressed: bool = True) -> dict[str, list[int]]:
        """Token ids by text, as `tok_encode` gives them one by one; each text once, many at a time.

        Not dressed, a text has no special tokens around it.
        """
        found: dict[str, list[int]] = {}
        texts = list(dict.fromkeys(texts))
        bos = self.tokenizer.decode(self.prefix_token_id)
        given = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        given = given if dressed else {"add_special_tokens": False}
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            self._progress(start, len(texts), "prompts")
            part = texts[start : start + _TEXTS_AT_ONCE]
            begun = [text for text in part if has_bos_prefix(text, bos)]
            plain = [text for text in part if not has_bos_prefix(text, bos)]
            for group, how in ((begun, {"add_special_tokens": False}), (plain, given)):
                if group:
                    with _all_cores(enabled=self.device.type == "cuda"):
                        found.update(zip(group, self._encoded(group, how), strict=True))
        return found

    def _encoded(self, texts: list[str], how: dict[str, bool]) -> list[list[int]]:
        """Token ids; by the tokenizer's own library, which is faster, where that gives what the tokenizer gives."""
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if hasattr(backend, "encode_batch_fast"):
            first = self.tokenizer(texts[0], **how)["input_ids"]  # sets padding and the like, too
            fast = [each.ids for each in backend.encode_batch_fast(texts, **{"add_special_tokens": True, **how})]
            if fast[0] == first:
                return fast
        ids: list[list[int]] = self.tokenizer(texts, return_attention_mask=False, **how)["input_ids"]
        return ids

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Stock, with all windows handed over at once, so that progress knows their number."""
        self._detected = _ALL_AT_ONCE
        try:
            result: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
            return result
        finally:
            self._detected = self._rows_of_generation

    def _loglikelihood_tokens(
        self,
        requests: list[Any],
        disable_tqdm: bool = False,  # noqa: ARG002 (the stock signature)
        override_bs: int | None = None,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each (text pair, context tokens, continuation tokens)."""
        most = self.max_length
        answers = self.scorer.score(
            [_scored(context, continuation, most) for _, context, continuation in requests], self._progress
        )
        strange = np.flatnonzero(~np.isfinite(answers.log_likelihoods))
        if len(strange):
            raise NumericalError(
                f"A log-likelihood is {answers.log_likelihoods[strange[0]]} in {dtype_name(self.model)}.",
                "Choose float32 or bfloat16 for the model's dtype, or prune less.",
            )
        return list(zip(answers.log_likelihoods.tolist(), answers.greedy.tolist(), strict=True))

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


def _words_whole(context: str, continuation: str) -> tuple[str, str]:
    """Spaces that end the context begin the continuation, as in the stock class: words keep their tokens."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _scored(context: list[int], continuation: list[int], most: int) -> Scored:
    """What is too long for a model of `most` positions is cut from the left, as in the stock class."""
    if not context or not 0 < len(continuation) <= most:
        raise ValueError(f"{len(context)} tokens and {len(continuation)} to score, of {most} at most")
    tokens = context + continuation
    return Scored(tokens if len(tokens) <= most + 1 else tokens[-(most + 1) :], len(continuation))


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


@contextlib.contextmanager
def hurried_harness() -> Iterator[None]:
    """While open, the harness compiles each template of a task once, not once a document and use.

    Python also looks for unreachable cycles less often: it finds none among the tens of thousands of requests.
    """
    environment: Any = lm_eval.utils.env
    environment.from_string = lru_cache(maxsize=None)(environment.from_string)
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        del environment.from_string  # the class's own again


@contextlib.contextmanager
def _all_cores(*, enabled: bool) -> Iterator[None]:
    """Let the tokenizer use all cores while a GPU waits for it; workers keep it to one otherwise."""
    before = os.environ.get(_TOKENIZER_THREADS)
    if not enabled:
        yield
        return
    os.environ[_TOKENIZER_THREADS] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TOKENIZER_THREADS]
        else:
            os.environ[_TOKENIZER_THREADS] = before
