"""Perplexity over token windows.

    perplexity = exp( mean over windows and t = 2…L of −log p(x_t | x_1 … x_{t−1}) )

Windows do not overlap and each starts with an empty context, so the value falls as the windows grow: values are only
comparable at the same window length, corpus, split and BOS handling, which `Windows.info` holds.

The 95 % interval is a percentile bootstrap over windows (tokens of one window depend on each other, windows hardly):
windows are drawn with replacement, as many as there are, and the perplexity of each such draw taken. It says how much
the value depends on which windows of this text were read, not how another text would do.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import NumericalError
from core.evaluation.forward import Meter, NextTokenLogits, batch_rows, watched
from core.evaluation.metrics import Metric, standard_error, text_key
from core.evaluation.paired import bootstrap_mean
from core.evaluation.precision import dtype_name, in_float32_if_it_fails
from core.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from core.data.corpora import Windows


BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class PerplexityResult:
    """A perplexity and what it was made from.

    `stderr` is that of `value`, by the delta method from the spread of the windows' means (tokens of one window are not
    independent), `interval` its 95 % bootstrap interval; None for a single window. `window_nll` holds each window's
    mean NLL in nats, `dtype` what it was measured in.
    """

    value: float
    nll_mean: float
    stderr: float | None
    tokens: int
    windows: int
    window_nll: list[float]
    dtype: str
    interval: tuple[float, float] | None = None

    def metric(self, windows: "Windows", stage: str = "pruned", **details: Any) -> Metric:
        """As it stands in results.json: task `perplexity/<corpus>`, metric `perplexity`; with more `details`."""
        protocol = {**windows.info, "dtype": self.dtype}
        if self.interval is not None and all(map(math.isfinite, self.interval)):
            how = f"bootstrap over windows, {BOOTSTRAP_DRAWS} draws, seed {BOOTSTRAP_SEED}"
            details = {"interval": list(self.interval), "interval_by": how, **details}
        task = _task(windows)
        return Metric(stage, task, "perplexity", self.value, self.stderr, self.windows, protocol, details)

    def samples(self, windows: "Windows", stage: str = "pruned") -> list[dict[str, Any]]:
        """One row a window, as core.evaluation.tasks has them for documents; `score` is its mean NLL in nats."""
        task, text = _task(windows), text_key(windows.info)
        rows = enumerate(self.window_nll)
        return [{"stage": stage, "task": task, "doc": place, "doc_hash": text, "score": nll} for place, nll in rows]


def _task(windows: "Windows") -> str:
    return f"perplexity/{windows.info['corpus']}"


def perplexity(
    model: Any, windows: "Windows | torch.Tensor", *, batch_size: int | str = "auto", progress: Progress = silent
) -> PerplexityResult:
    """Perplexity of a causal model on token windows (windows, L ≥ 2); log-softmax in float32, sums in float64.

    A float16 model whose loss overflows is measured again in float32, and `dtype` says so. NumericalError when the loss
    is no finite number. `progress` counts windows.
    """
    import torch

    tokens = windows if isinstance(windows, torch.Tensor) else windows.tokens
    nll, dtype = in_float32_if_it_fails(model, lambda: _window_nll(model, tokens, batch_size, progress))
    mean = math.fsum(nll) / len(nll)
    value = math.exp(mean) if mean < 700 else math.inf
    error = standard_error(nll)
    return PerplexityResult(
        value=value,
        nll_mean=mean,
        stderr=None if error is None else value * error,
        tokens=tokens.shape[0] * (tokens.shape[1] - 1),
        windows=tokens.shape[0],
        window_nll=nll,
        dtype=dtype,
        interval=interval(nll) if error is not None else None,
    )


def interval(nll: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the perplexity, from the windows' mean NLL in nats."""
    low, high = bootstrap_mean(nll, draws=BOOTSTRAP_DRAWS, seed=BOOTSTRAP_SEED)
    return (math.exp(low), math.exp(high)) if high < 700 else (math.exp(min(low, 700)), math.inf)


def _window_nll(model: Any, tokens: "torch.Tensor", batch_size: int | str, progress: Progress) -> list[float]:
    """Mean NLL of each window, in nats."""
    import torch

    device = model.device
    logits = NextTokenLogits(model)
    rows = batch_rows(tokens.shape[1], str(device), batch_size)
    meter = Meter(progress, len(tokens), "windows")
    result: list[float] = []
    with torch.inference_mode(), watched(model, meter) as layers:
        for start in range(0, len(tokens), rows):
            batch = tokens[start : start + rows].to(device)
            meter.begin(len(batch), layers + logits.chunk_count(*batch.shape))
            result += _batch_nll(logits, batch, meter).mean(dim=1).tolist()
            if not all(map(math.isfinite, result[-len(batch) :])):
                raise NumericalError(
                    f"The loss of window {len(result) - len(batch)} or one soon after is no finite number"
                    f" in {dtype_name(model)}.",
                    "Choose float32 or bfloat16 for the model's dtype, or prune less.",
                )
            meter.end()
    return result


def _batch_nll(logits: NextTokenLogits, ids: "torch.Tensor", meter: Meter) -> "torch.Tensor":
    """NLL of tokens 2…L of each row, float64 (B, L − 1)."""
    import torch
    from torch.nn import functional

    targets = torch.cat([ids[:, 1:], ids[:, :1]], dim=1).flatten()  # the last of each row has none: dropped below
    nll = torch.empty(ids.numel(), dtype=torch.float64, device=ids.device)
    for positions, chunk in logits.chunks(ids):
        nll[positions] = functional.cross_entropy(chunk, targets[positions], reduction="none").double()
        meter.step()
    return nll.view(ids.shape)[:, :-1]
