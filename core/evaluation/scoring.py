"""Log-likelihoods of scored token sequences: what sequences share is computed once, the head only where it is asked.

Sequences become trees (core.evaluation.prefixes), trees rows of one length or nearly so. Families whose attention and
positions are known exactly (core.models.families) run trees with branches, under a mask of their own; any other model
runs rows without branches, as its own forward expects them.
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.evaluation.forward import Meter, NextTokenLogits, watched
from core.evaluation.prefixes import Rows, Scored, Tree, grow, total_length
from core.models.families import families
from core.progress import Progress, silent

MOST_TOKENS = {"cpu": 1024, "cuda": 65536}  # padded tokens in one pass: more brings no speed, only later progress
ENOUGH_TOKENS = {"cpu": 256, "cuda": 16384}  # padded tokens from which a pass runs at nearly full speed
_TIGHT = 0.95  # rows shorter than this share of the longest wait for the next pass
_SHARE_OF_MEMORY = 0.5  # of what is free, for one pass
_MULTIPLE = {"cpu": 1, "cuda": 8}  # row lengths that kernels like


class Answers(NamedTuple):
    """Of each sequence: the sum of its scored log-probabilities, and whether each scored token was the likeliest."""

    log_likelihoods: NDArray[np.float64]  # (sequences,)
    greedy: NDArray[np.bool_]  # (sequences,)


class Scorer:
    """Scores sequences of token ids with one causal model. Log-softmax is in float32, sums in float64.

    batch_size: trees in one pass, or auto for as many as memory and the kind of device suit. tokens: ran through the
    model so far, padding included.
    """

    def __init__(self, model: Any, *, batch_size: int | str = "auto") -> None:
        self.model = model
        self.tokens = 0
        self._device: torch.device = model.device
        self._logits = NextTokenLogits(model)
        self._asked = batch_size
        self._most: int | None = None  # tokens in one pass, once a pass did not fit
        self._shares = _exact_in_trees(model)
        self._long = _long_from(model.config)

    def score(self, sequences: Sequence[Scored], progress: Progress = silent) -> Answers:
        """Answers in the order of the sequences; nan and inf are left to the caller.

        A pass that does not fit into memory is repeated in halves; torch.OutOfMemoryError if one row does not fit.
        `progress` counts tokens. Raises what it raises.
        """
        trees = grow(sequences, share=self._shares, apart_from=self._long)
        meter = Meter(progress, total_length(trees), "tokens")
        sums = np.zeros(len(sequences))
        misses = np.zeros(len(sequences), np.int64)
        start = 0
        with watched(self.model, meter) as layers, torch.inference_mode():
            while start < len(trees):
                batch = self._batch(trees, start)
                rows = Rows.of(batch, _MULTIPLE.get(self._device.type, 1))
                found = self._tried(rows, meter, layers, total_length(batch))
                if found is None:
                    self._shrink(rows)
                    continue
                logs, hits = found
                sums += np.bincount(rows.owners, weights=logs, minlength=len(sums))
                misses += np.bincount(rows.owners[~hits], minlength=len(sums))
                start += len(batch)
                meter.end()
        return Answers(sums, misses == 0)

    # ---------------------------------------------------------------------------------------------------- what fits

    def _batch(self, trees: list[Tree], start: int) -> list[Tree]:
        """Trees of one pass, from the longest that is left; as many as asked for, or as fit."""
        length = trees[start].length
        count = self._asked if isinstance(self._asked, int) else max(1, self._room(length) // length)
        if self._most is not None:
            count = max(1, min(count, self._most // length))
        batch = trees[start : start + count]
        if self._asked == "auto":
            batch = batch[: self._before_padding(batch)]
        if self._long is None:
            return batch
        alike = [(tree.depth > self._long) == (batch[0].depth > self._long) for tree in batch]
        return batch[: alike.index(False)] if False in alike else batch

    def _before_padding(self, batch: list[Tree]) -> int:
        """How many trees, the longest first, before a pass that is large enough would begin to pad much."""
        length = batch[0].length
        enough = -(-ENOUGH_TOKENS.get(self._device.type, ENOUGH_TOKENS["cpu"]) // length)
        padded = (n for n in range(enough, len(batch)) if batch[n].length < _TIGHT * length)
        return next(padded, len(batch))

    def _room(self, length: int) -> int:
        """Padded tokens, in rows of `length`, that one pass should have at most."""
        most = MOST_TOKENS.get(self._device.type, MOST_TOKENS["cpu"])
        free = _free_bytes(self._device) * _SHARE_OF_MEMORY
        return int(min(most, free // self._bytes_a_token(length)))

    def _bytes_a_token(self, length: int) -> int:
        """About what a pass holds at once for each token of rows of `length`, the chunk of logits left out."""
        config, element = self.model.config, int(self.model.dtype.itemsize)
        hidden = int(getattr(config, "hidden_size", 1024))
        wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        heads = int(getattr(config, "num_attention_heads", 1) or 1)
        eager = getattr(config, "_attn_implementation", "") == "eager"
        pairs = length * (2 * element + (heads * (4 + 2 * element) if eager else 0))
        whole = 0 if self._logits.plain_head else self._logits.vocabulary * (element + 4)
        return element * (12 * hidden + 4 * wide) + pairs + whole

    def _tried(
        self, rows: Rows, meter: Meter, layers: int, units: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
        """What `_answer` gives, or None where memory did not do."""
        try:
            meter.begin(units, layers + 1)  # the head is the last step
            found = self._answer(rows)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or len(rows.tokens) == 1:
                raise
            return None  # what the error held on to is free once it is left
        self.tokens += rows.tokens.size
        return found

    def _shrink(self, rows: Rows) -> None:
        self._most = max(1, rows.tokens.size // 2)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------------------ one pass

    def _answer(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(log-probability, whether none is higher) of each score of the rows."""
        tokens = self._there(rows.tokens)
        named = self._tree_arguments(rows) if rows.branches else {}
        places, which = np.unique(rows.sources, return_inverse=True)
        if self._logits.plain_head:
            hidden = self.model.base_model(input_ids=tokens, use_cache=False, **named).last_hidden_state
            wanted = hidden.flatten(0, 1)[self._there(places)]  # (places, d)
            logits: Callable[[Tensor], Tensor] = self._logits.of_hidden
        else:
            wanted = self.model(input_ids=tokens, use_cache=False, **named).logits.flatten(0, 1)[self._there(places)]
            logits = torch.Tensor.float  # of what is logits already
        # scores in the order of their places, so that a chunk of places has a chunk of scores
        order = np.argsort(which, kind="stable")
        which = which[order]
        targets = self._there(rows.targets[order])
        step = self._logits.rows_at_once()
        logs, hits = [], []
        for first in range(0, len(places), step):
            begin, stop = np.searchsorted(which, (first, first + step))
            made = logits(wanted[first : first + step])
            log, hit = _scores(made, self._there(which[begin:stop] - first), targets[begin:stop])
            logs.append(log)
            hits.append(hit)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return torch.cat(logs).cpu().numpy()[back], torch.cat(hits).cpu().numpy()[back]

    def _there(self, numbers: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def _tree_arguments(self, rows: Rows) -> dict[str, Any]:
        """Positions, and who sees whom, in the form that the family's backbone takes."""
        positions, end = self._there(rows.positions), self._there(rows.end)
        place = torch.arange(end.shape[1], device=self._device)
        sees = (place[None, None, :] <= place[None, :, None]) & (place[None, :, None] < end[:, None, :])  # (B, T, T)
        config = self.model.config
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        masks = {}
        if not kinds or "full_attention" in kinds:
            masks["full_attention"] = self._additive(sees)
        if window is not None and (not kinds or "sliding_attention" in kinds):
            near = positions[:, :, None] - positions[:, None, :] < window
            masks["sliding_attention"] = self._additive(sees & near)
        if kinds:
            return {"position_ids": positions, "attention_mask": masks}
        mask = masks["sliding_attention" if window is not None else "full_attention"]
        return {"position_ids": positions, "attention_mask": mask}

    def _additive(self, sees: Tensor) -> Tensor:
        """(B, 1, T, T) in the model's dtype, 0 where a token is seen: what each kind of attention takes."""
        mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=self._device)
        return mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)[:, None]


def _scores(logits: Tensor, rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probability, is the argmax) of `targets` (n,) in `rows` (n,) of float32 logits (rows, vocabulary).

    The logits are overwritten.
    """
    highest = logits.amax(dim=-1)
    own = logits[rows, targets]
    hits = own == highest[rows]
    tied = hits.nonzero()[:, 0]  # of several equal ones the argmax is one
    hits[tied] = logits[rows[tied]].argmax(dim=-1) == targets[tied]
    total = logits.sub_(highest[:, None]).exp_().sum(dim=-1).log_() + highest
    return own - total[rows], hits


def _exact_in_trees(model: Any) -> bool:
    """Whether the model's forward is one whose masks and positions are known, so that trees give the same answers."""
    known = families().get(str(getattr(model.config, "model_type", "")))
    names = {each.stock_class for each in families().values()} | {each.per_layer_class for each in families().values()}
    kinds = set(getattr(model.config, "layer_types", None) or ())
    return (
        known is not None
        and type(model).__name__ in names
        and getattr(model.config, "_attn_implementation", "") in ("sdpa", "eager")
        and kinds <= {"full_attention", "sliding_attention"}
    )


def _long_from(config: Any) -> int | None:
    """Inputs beyond this number make longrope and dynamic RoPE rotate all rows of a pass otherwise; else None."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [each for each in (rope, *rope.values()) if isinstance(each, dict)]
    if not any(each.get("rope_type") in ("longrope", "dynamic") for each in kinds):
        return None
    given = (each.get("original_max_position_embeddings") for each in kinds)
    return int(next((each for each in given if each), None) or config.max_position_embeddings)


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _total = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
