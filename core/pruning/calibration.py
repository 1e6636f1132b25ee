"""What calibration text tells of a model: statistics of each linear layer's inputs, layer by layer.

Every calibrated method that works on one layer at a time goes through the same loop: catch what enters the first layer
of the range once, then for each layer run it with hooks, cut it, and run it again, so that the next layer is judged on
what the already pruned ones hand it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import NumericalError

# Roles that read the same tensor: one set of statistics serves them all.
READS = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "gate", "up": "gate", "down": "down"}

# Tokens in one batch of the layer loop: small enough on a CPU that progress moves every half second or so.
_TOKENS_A_BATCH = {"cpu": 2048, "cuda": 8192}


@dataclass
class InputStats:
    """Running statistics of one linear layer's inputs X (tokens, in), summed in float64."""

    square_sum: Tensor  # (in,) Σ_t x_tj²
    tokens: int = 0

    @classmethod
    def empty(cls, linear: nn.Linear) -> "InputStats":
        """No tokens seen yet."""
        return cls(torch.zeros(linear.in_features, dtype=torch.float64, device=linear.weight.device))

    def add(self, x: Tensor) -> None:
        """Take in x (…, in) of any float dtype."""
        rows = x.detach().reshape(-1, x.shape[-1])
        norms = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float32)
        self.square_sum += norms.double().square()
        self.tokens += rows.shape[0]

    @property
    def norm(self) -> Tensor:
        """‖X_j‖₂ (in,) in float32."""
        return self.square_sum.sqrt().float()


@dataclass
class LayerInputs:
    """What enters one decoder layer: hidden states (windows, tokens, d) batch by batch, and the other arguments."""

    hidden: list[Tensor]
    arguments: list[Mapping[str, Any]]
    positional: list[tuple[Any, ...]] = field(default_factory=list)


class _Caught(Exception):
    """Ends a forward pass early; raised and caught in this module only."""


def windows_a_batch(batch_size: int | str, length: int, device: torch.device) -> int:
    """Windows in one batch of the layer loop; `auto` fits the tokens to the device."""
    if batch_size != "auto":
        return int(batch_size)
    return max(1, _TOKENS_A_BATCH.get(device.type, 2048) // length)


@contextmanager
def on_layer_entry(layers: Sequence[nn.Module], call: Callable[[int], None]) -> Iterator[None]:
    """Call `call(i)` just before layers[i] runs. What `call` raises, a cancellation for one, ends the forward pass."""

    def watch(i: int) -> Callable[..., None]:
        return lambda _module, _arguments: call(i)

    handles = [layer.register_forward_pre_hook(watch(i)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def catch_inputs(
    backbone: nn.Module,
    layers: Sequence[nn.Module],
    index: int,
    windows: Tensor,
    batch: int,
    progress: Callable[[float], None],
) -> LayerInputs:
    """Run windows (n, length) up to the entry of layers[index] and keep what would enter it.

    progress(done windows) is called at every layer on the way.
    """
    caught = LayerInputs([], [])

    def catch(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        named = dict(named)
        hidden = arguments[0] if arguments else named.pop("hidden_states")
        caught.hidden.append(hidden.detach())
        caught.positional.append(arguments[1:])
        # batches of the same shape share their masks and positions: keep one copy of them
        twin = caught.arguments[0] if caught.arguments and caught.hidden[0].shape == hidden.shape else named
        caught.arguments.append(twin)
        raise _Caught

    handle = layers[index].register_forward_pre_hook(catch, with_kwargs=True)
    done = 0.0
    try:
        for tokens in torch.split(windows, batch):
            tell = partial(_part_done, progress, done, tokens.shape[0] / (index + 1))
            with on_layer_entry(layers[:index], tell), suppress(_Caught):
                backbone(input_ids=tokens, use_cache=False)
            done += tokens.shape[0]
            progress(done)
    finally:
        handle.remove()
    return caught


def _part_done(progress: Callable[[float], None], done: float, share: float, layers: int) -> None:
    progress(done + layers * share)


def _run(layer: nn.Module, inputs: LayerInputs, i: int) -> Tensor:
    """Output hidden states of batch i. A layer returns a tensor, or (custom ones) a tuple that starts with it."""
    output = layer(inputs.hidden[i], *inputs.positional[i], **inputs.arguments[i])
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@torch.no_grad()
def input_statistics(
    layer: nn.Module,
    linears: Mapping[str, nn.Linear],
    inputs: LayerInputs,
    progress: Callable[[int], None],
) -> dict[str, InputStats]:
    """Run the layer on all batches and gather statistics of the inputs of `linears`, by role.

    Roles that read the same tensor share one object. progress(done batches). NumericalError on nan or inf.
    """
    sources: dict[str, nn.Linear] = {}
    for role, linear in linears.items():
        sources.setdefault(READS[role], linear)
    stats = {source: InputStats.empty(linear) for source, linear in sources.items()}

    def watch(source: str) -> Callable[..., None]:
        return lambda _module, arguments: stats[source].add(arguments[0])

    handles = [linear.register_forward_pre_hook(watch(source)) for source, linear in sources.items()]
    try:
        for i in range(len(inputs.hidden)):
            _run(layer, inputs, i)
            progress(i + 1)
    finally:
        for handle in handles:
            handle.remove()
    for source, found in stats.items():
        if not bool(torch.isfinite(found.square_sum).all()):
            raise NumericalError(
                f"the inputs of {source} hold nan or inf on the calibration text.",
                "Load the model as float32 or bfloat16.",
            )
    return {role: stats[READS[role]] for role in linears}


@torch.no_grad()
def advance(layer: nn.Module, inputs: LayerInputs, progress: Callable[[int], None]) -> None:
    """Run the layer and put its outputs in place of its inputs, batch by batch: they are the next layer's inputs."""
    for i in range(len(inputs.hidden)):
        inputs.hidden[i] = _run(layer, inputs, i)
        progress(i + 1)
