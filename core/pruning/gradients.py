"""Gradients of the language-model loss on calibration text, for chosen weight matrices only.

L is the mean next-token loss over all windows. Micro-batches add up to its exact gradient before anything else is done
with it, so the result does not depend on their size. Everything that is not asked for is frozen, so that neither its
gradient nor the activations below the first chosen layer are ever kept; the logits exist for a few hundred tokens
at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import NumericalError
from core.pruning.calibration import on_layer_entry
from core.pruning.units import WeightGradients

Key = tuple[int, str]  # layer, role

_LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**26}  # elements of the widest tensor, tokens × vocabulary
_TOKENS_A_BATCH = {"cpu": 512, "cuda": 1024}  # their activations are held until the backward pass reaches them
_FIRST_SCALE = 2.0**16  # float16 activations' gradients underflow without one
_TRIES = 4


class _Accumulator:
    """Takes each parameter's gradient as soon as it is complete, and frees it: one gradient is in flight at a time."""

    def __init__(self, linears: Mapping[Key, nn.Linear], fisher: bool, tick: Callable[[], None]) -> None:
        self._keys = {id(linear.weight): key for key, linear in linears.items()}
        self._tick = tick
        self._with_fisher = fisher
        self.share = 1.0  # of the windows in the running micro-batch
        self.scale = 1.0
        self.reset()

    def reset(self) -> None:
        self.gradient: dict[Key, Tensor] = {}
        self.fisher: dict[Key, Tensor] = {}
        self.checksum: Tensor | float = 0.0  # nan or inf once any gradient held one; read once a micro-batch

    @property
    def finite(self) -> bool:
        return math.isfinite(float(self.checksum))

    def take(self, parameter: Tensor) -> None:
        """Post-accumulate hook: add this micro-batch's share of the mean gradient, in float32."""
        assert parameter.grad is not None
        key = self._keys[id(parameter)]
        g, parameter.grad = parameter.grad.float(), None
        if self.scale != 1.0:
            g = g / self.scale
        self.checksum = self.checksum + g.sum()
        if self._with_fisher:
            _add(self.fisher, key, g.square(), self.share)
        _add(self.gradient, key, g, self.share)
        self._tick()


def _add(sums: dict[Key, Tensor], key: Key, value: Tensor, share: float) -> None:
    if key in sums:
        sums[key].add_(value, alpha=share)
    else:
        sums[key] = value.mul_(share)


@contextmanager
def _only(model: nn.Module, linears: Mapping[Key, nn.Linear], accumulator: _Accumulator) -> Iterator[None]:
    """Freeze all parameters but the chosen weights, and hand the gradients of those to the accumulator."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(False)
    handles = []
    for linear in linears.values():
        linear.weight.requires_grad_(True)
        handles.append(linear.weight.register_post_accumulate_grad_hook(accumulator.take))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, wanted in before:
            parameter.grad = None
            parameter.requires_grad_(wanted)


@contextmanager
def _float32_masters(model: nn.Module) -> Iterator[bool]:
    """Hold float16 weights as float32 meanwhile: float16 gradients underflow. There and back loses nothing.

    Yields whether there were any. Buffers stay as they are.
    """
    halves = [parameter for parameter in model.parameters() if parameter.dtype == torch.float16]
    for parameter in halves:
        parameter.data = parameter.data.float()
    try:
        yield bool(halves)
    finally:
        for parameter in halves:
            parameter.data = parameter.data.half()


def _head_gradient(
    head: nn.Module, hidden: Tensor, tokens: Tensor, scale: float, tick: Callable[[], None]
) -> tuple[Tensor, float]:
    """Gradient of scale · (mean loss of predicting tokens 2…T) by the hidden states (B, T, d), and that loss."""
    d = hidden.shape[-1]
    rows = hidden[:, :-1].reshape(-1, d)  # (B·(T−1), d)
    targets = tokens[:, 1:].reshape(-1)
    gradient, loss = torch.zeros_like(rows), 0.0
    step = max(1, _LOGITS_AT_ONCE.get(hidden.device.type, 2**23) // getattr(head, "out_features", 2**16))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].detach().requires_grad_(True)
        total = F.cross_entropy(head(part).float(), targets[start : start + step], reduction="sum")
        (gradient[start : start + step],) = torch.autograd.grad(total * (scale / len(rows)), part)
        loss += total.item() / len(rows)
        tick()
    whole = torch.zeros_like(hidden)
    whole[:, :-1] = gradient.view(hidden.shape[0], -1, d)
    return whole, loss


def micro_batch(batch_size: int | str, length: int, fisher: bool, device: torch.device) -> int:
    """Windows in one backward pass: one where squared gradients of single windows are wanted, else as asked for."""
    if fisher:
        return 1
    return int(batch_size) if batch_size != "auto" else max(1, _TOKENS_A_BATCH.get(device.type, 512) // length)


def weight_gradients(
    model: nn.Module,
    backbone: nn.Module,
    layers: Sequence[nn.Module],
    head: nn.Module,
    linears: Mapping[Key, nn.Linear],
    windows: Tensor,
    *,
    fisher: bool,
    batch_size: int | str,
    progress: Callable[[float], None],
) -> dict[Key, WeightGradients]:
    """∂L/∂W of the chosen linear layers, and the Fisher diagonal if asked for, in float32.

    backbone: input ids → hidden states after the final norm, through `layers`; head: those → logits; windows: token ids
    (n, length). progress(done windows) is called at every layer of the forward pass and moves with every finished
    weight of the backward pass. NumericalError if the loss or a gradient is not finite.
    """
    batch = micro_batch(batch_size, windows.shape[1], fisher, windows.device)
    state = {"done": 0, "weights": 0}

    def tick(weights: int = 1) -> None:
        state["weights"] += weights
        progress(min(state["done"] + batch * state["weights"] / len(linears), len(windows)))

    accumulator = _Accumulator(linears, fisher, tick)
    with _float32_masters(model) as masters, _only(model, linears, accumulator), torch.enable_grad():
        on_gpu = windows.device.type == "cuda"
        accumulator.scale = _FIRST_SCALE if masters and on_gpu else 1.0
        for _ in range(_TRIES):
            precision = torch.autocast("cuda", torch.float16) if masters and on_gpu else nullcontext()
            with on_layer_entry(layers, lambda _: tick(0)):
                _all_windows(backbone, head, windows, batch, accumulator, precision, state, lambda: tick(0))
            if accumulator.finite:
                return {key: WeightGradients(accumulator.gradient[key], accumulator.fisher.get(key)) for key in linears}
            if accumulator.scale == 1.0:
                break
            accumulator.scale /= 64  # too large a scale overflows just as none underflows
            accumulator.reset()
    raise NumericalError(
        "the loss or its gradients are nan or inf on the calibration text.",
        "Load the model as float32 or bfloat16, and check that its weights are finite.",
    )


def _all_windows(
    backbone: nn.Module,
    head: nn.Module,
    windows: Tensor,
    batch: int,
    accumulator: _Accumulator,
    precision: AbstractContextManager[Any],
    state: dict[str, int],
    waiting: Callable[[], None],
) -> None:
    """One forward and backward pass per micro-batch; stops early once something is not finite."""
    state["done"] = 0
    for tokens in torch.split(windows, batch):
        state["weights"] = 0
        accumulator.share = len(tokens) / len(windows)
        with precision:
            hidden = backbone(input_ids=tokens, use_cache=False).last_hidden_state
            gradient, loss = _head_gradient(head, hidden.detach(), tokens, accumulator.scale, waiting)
        hidden.backward(gradient)
        accumulator.checksum = accumulator.checksum + loss
        if not accumulator.finite:
            return
        state["done"] += len(tokens)
