"""How far a pruned model's next-token distribution is from the dense model's, on the same text.

    KL(dense ‖ pruned) = Σ_v p(v) · (log p(v) − log q(v)),   p dense, q pruned, in nats,

averaged over the positions of every window whose next token is in the window (t = 1…L−1, the same that perplexity
scores), and the share of those positions where both models' most likely token is the same one. The same passes give
the relative error of the hidden states after each layer (core.evaluation.layer_errors), where layers compare.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import InputError, NumericalError
from core.evaluation.forward import Meter, NextTokenLogits, batch_rows, watched
from core.evaluation.layer_errors import LayerErrors, Streams, why_not
from core.evaluation.layer_kl import LayerDivergences, layer_divergences
from core.evaluation.metrics import Metric, standard_error
from core.evaluation.precision import dtype_name, in_float32_if_it_fails
from core.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from core.data.corpora import Windows


@dataclass(frozen=True)
class FidelityResult:
    """Means over all positions, with standard errors from the spread of the windows' means (None for one window)."""

    kl: float
    kl_stderr: float | None
    agreement: float
    agreement_stderr: float | None
    tokens: int
    windows: int
    dtype: str
    layers: LayerErrors | None = None
    """None where layers do not compare; `no_layers` then says why."""
    no_layers: str = ""
    divergences: LayerDivergences | None = None

    def metrics(self, windows: "Windows", stage: str = "pruned") -> list[Metric]:
        """As they stand in results.json: task `fidelity/<corpus>`, metrics `kl_per_token` and `top1_agreement`."""
        protocol = {**windows.info, "dtype": self.dtype, "direction": "dense‖pruned"}
        task = f"fidelity/{windows.info['corpus']}"
        return [
            Metric(stage, task, "kl_per_token", self.kl, self.kl_stderr, self.windows, protocol),
            Metric(stage, task, "top1_agreement", self.agreement, self.agreement_stderr, self.windows, protocol),
        ]

    def layer_errors(self, windows: "Windows") -> dict[str, Any]:
        """As in results.json: `protocol`, `layers` (layer, error, stderr, removed, kl, kl_stderr), or why not."""
        protocol = {**windows.info, "dtype": self.dtype}
        if self.layers is None:
            return {"protocol": protocol, "layers": [], "reason": self.no_layers}
        rows, found = self.layers.rows(), self.divergences
        protocol |= {"positions": self.layers.positions}
        if found is not None:
            protocol |= {"kl_windows": found.windows, "kl_positions": found.positions}
            for row, value, error in zip(rows, found.values, found.stderr, strict=True):
                row |= {"kl": value, "kl_stderr": error}
        return {"protocol": protocol, "layers": rows, "reason": ""}


def fidelity(
    model: Any,
    dense: Any,
    windows: "Windows | torch.Tensor",
    *,
    kept: Sequence[int] | None = None,
    batch_size: int | str = "auto",
    progress: Progress = silent,
) -> FidelityResult:
    """Compare two loaded causal models of one vocabulary on token windows (windows, L ≥ 2), in float32 from the logits.

    kept: which layers of the dense model the model's own were; None where all are there. The models may be on different
    devices. NumericalError when a distribution is not finite. `progress` counts windows.
    """
    import torch

    tokens = windows if isinstance(windows, torch.Tensor) else windows.tokens
    pair = (NextTokenLogits(model), NextTokenLogits(dense))
    if pair[0].vocabulary != pair[1].vocabulary:
        raise InputError(
            f"The models have {pair[0].vocabulary} and {pair[1].vocabulary} tokens; only equal ones compare.",
            "Choose the dense model that the pruned one was made from.",
        )
    # A model held against itself has one set of hooks for two passes: its layers are left out.
    reason = "It is the dense model itself." if model is dense else why_not(model, dense, kept)

    def means() -> tuple[list[float], list[float], LayerErrors | None, LayerDivergences | None]:
        streams = None if reason else Streams(model, dense, kept)
        with streams.watched() if streams else contextlib.nullcontext():
            kl, same = _window_means(*pair, tokens, batch_size, progress)
        if streams is None:
            return kl, same, None, None
        by_layer = layer_divergences(*pair, tokens, kept, lambda: progress(len(tokens), len(tokens), "windows"))
        return kl, same, streams.result(), by_layer

    # Whichever of the two overflows in float16 is taken in float32.
    ((kl, same, layers, by_layer), _), dtype = in_float32_if_it_fails(
        model, lambda: in_float32_if_it_fails(dense, means)
    )
    n = len(tokens)
    return FidelityResult(
        kl=math.fsum(kl) / n,
        kl_stderr=standard_error(kl),
        agreement=math.fsum(same) / n,
        agreement_stderr=standard_error(same),
        tokens=n * (tokens.shape[1] - 1),
        windows=n,
        dtype=dtype,
        layers=layers,
        no_layers=reason,
        divergences=by_layer,
    )


def _window_means(
    pruned: NextTokenLogits, dense: NextTokenLogits, tokens: "torch.Tensor", batch_size: int | str, progress: Progress
) -> tuple[list[float], list[float]]:
    """Mean KL and mean agreement of each window."""
    import torch

    rows = batch_rows(tokens.shape[1], str(pruned.model.device), batch_size)
    meter = Meter(progress, len(tokens), "windows")
    kl: list[float] = []
    same: list[float] = []
    with torch.inference_mode(), watched(pruned.model, meter) as own, watched(dense.model, meter) as others:
        for start in range(0, len(tokens), rows):
            batch = tokens[start : start + rows]
            meter.begin(len(batch), own + others + pruned.chunk_count(*batch.shape))
            divergence, agrees = _compare(pruned, dense, batch, meter)
            kl += divergence[:, :-1].mean(dim=1).tolist()
            same += agrees[:, :-1].mean(dim=1).tolist()
            if not all(map(math.isfinite, kl)):
                names = f"{dtype_name(pruned.model)}, {dtype_name(dense.model)}"
                raise NumericalError(
                    f"The divergence of the models is no finite number ({names}).",
                    "Choose float32 or bfloat16 for the model's dtype, or prune less.",
                )
            meter.end()
    return kl, same


def _compare(
    pruned: NextTokenLogits, dense: NextTokenLogits, ids: "torch.Tensor", meter: Meter
) -> "tuple[torch.Tensor, torch.Tensor]":
    """KL(dense ‖ pruned) and top-1 agreement at every position of ids (B, T): two float64 tensors (B, T)."""
    import torch
    from torch.nn import functional

    kl = torch.empty(ids.numel(), dtype=torch.float64)
    same = torch.empty(ids.numel(), dtype=torch.float64)
    rows = pruned.rows_at_once()
    reference = dense.chunks(ids.to(dense.model.device), rows)
    own = pruned.chunks(ids.to(pruned.model.device), rows)
    for (positions, q_logits), (_, p_logits) in zip(own, reference, strict=True):
        log_q = functional.log_softmax(q_logits, dim=-1)
        log_p = functional.log_softmax(p_logits.to(log_q.device), dim=-1)
        divergence = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        kl[positions] = divergence.clamp(min=0).double().cpu()  # rounding may push that of equal models below zero
        same[positions] = (log_q.argmax(-1) == log_p.argmax(-1)).double().cpu()
        meter.step()
    return kl.view(ids.shape), same.view(ids.shape)
