"""What a layer's output is worth to the loss: second moments of the loss's gradients at what o and down make.

With g_t the gradient, at token t, of the summed loss by the output of a matrix, G = E[g·gᵀ] is the Gauss-Newton matrix
of the loss there, if the next tokens are drawn from the model's own distribution: an error e of the output then costs
about ½·eᵀ·G·e nats. Gathered in the same backward pass: H = E[x·xᵀ] of what the matrix reads. Both leave out the first
token of each window, whose activations are like no other's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.models.body import Body
from core.models.families import Matrix
from core.pruning.calibration import Walk, add_gram
from core.pruning.gradients import Backwards, Sums, micro_batch, run_backwards
from core.pruning.linalg import exact_products
from core.pruning.scores import stream


@dataclass(frozen=True)
class Curvature:
    """Of one matrix: `inputs` H = E[x·xᵀ] (in, in) and `outputs` G = E[g·gᵀ] (out, out), float32, symmetric."""

    inputs: Tensor
    outputs: Tensor


@dataclass
class _CurvatureSums(Sums):
    """Sums over the tokens, blocks below the diagonal left out."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def add_rows(self, role: str, x: Tensor, g: Tensor) -> None:
        """Take in x (tokens, in) and g (tokens, out)."""
        for sums, rows in ((self.inputs, x), (self.outputs, g)):
            if role not in sums:
                sums[role] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
            add_gram(sums[role], rows)
        self.tokens[role] = self.tokens.get(role, 0) + len(x)

    def finite(self) -> bool:
        return all(bool(torch.isfinite(each).all()) for each in (*self.inputs.values(), *self.outputs.values()))

    def finished(self) -> dict[str, Curvature]:
        def mean(sums: dict[str, Tensor], role: str) -> Tensor:
            upper = sums.pop(role) / self.tokens[role]
            return upper.triu() + upper.triu(1).T

        return {role: Curvature(mean(self.inputs, role), mean(self.outputs, role)) for role in list(self.inputs)}


@dataclass
class _Curvatures(Backwards):
    """Asks for the outputs of whole matrices in place of weights."""

    by_outputs: ClassVar[bool] = True
    _seen: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def empty(self) -> Sums:
        return _CurvatureSums()

    def held_bytes(self, matrix: Matrix) -> int:
        out, width = matrix.weight.shape
        return 4 * (out**2 + width**2)

    @contextmanager
    def watching(self, wanted: Mapping[str, Matrix]) -> Iterator[None]:
        def see(role: str, _module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            self._seen[role] = (arguments[0].detach(), output)

        handles = [each.linear.register_forward_hook(partial(see, role)) for role, each in wanted.items()]
        try:
            yield
        finally:
            self._seen.clear()
            for handle in handles:
                handle.remove()

    def asked(self, wanted: Mapping[str, Matrix]) -> list[Tensor]:
        return [self._seen[role][1] for role in wanted]

    def take_in(self, into: Sums, wanted: Mapping[str, Matrix], found: Sequence[Tensor], share: float) -> None:  # noqa: ARG002
        assert isinstance(into, _CurvatureSums)
        for role, gradient in zip(wanted, found, strict=True):
            x, _ = self._seen[role]
            losses = x.shape[0] * (x.shape[1] - 1)  # the pass starts from their mean, G is of their sum
            g = gradient[:, 1:].flatten(0, 1).float() * (losses / self.precision.scale)
            with exact_products():
                into.add_rows(role, x[:, 1:].flatten(0, 1), g)
        self._seen.clear()

    def draws(self, tokens: Tensor) -> Tensor:
        """Always the same for the same window, whatever the batch: scores depend on the text, not on a seed."""
        each = [torch.rand(len(window) - 1, generator=stream(0, 0, repr(window.tolist()))) for window in tokens]
        return torch.stack(each)


def curvatures(
    body: Body,
    wanted: Mapping[int, Sequence[str]],
    windows: Tensor,
    take: Callable[[int, Mapping[str, Curvature]], None],
    *,
    batch_size: int | str = "auto",
    progress: Callable[[float], None] = lambda _done: None,
) -> None:
    """H and G of the wanted roles (o, down) of each layer.

    windows: token ids (n, length). take(layer, curvature by role) is called once a layer, with the layer at its place
    on the device. progress(done windows). NumericalError if the loss or a gradient is not finite.
    """
    wanted = {index: roles for index, roles in wanted.items() if roles}
    if not wanted:
        return
    batch = micro_batch(batch_size, windows.shape[1], False, body.device)

    def pass_of(walk: Walk, precision: Any) -> Backwards:
        return _Curvatures(walk, wanted, precision, take, progress)

    run_backwards(Walk.over(body, windows, batch), pass_of)
