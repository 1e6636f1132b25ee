"""Refitting o and down after their inputs were cut, by least squares on the calibration text.

Two streams of hidden states go through the layers side by side: x_d of the dense model, x_p of the pruned one. With K
the columns that stay and R those that go, and H = Σ x_p x_pᵀ over the tokens,

    W_K' = W_K + (W_R·H_RK + Q_K)·(H_KK + λ·mean(diag H_KK)·I)⁻¹
    Q    = Σ (α·(y_d − y_p) + β·(h_d − h_p))·x_pᵀ

W_R·H_RK makes the kept columns do what the removed ones did; Q moves them towards the dense model: y is what the whole
matrix makes of its inputs, h the residual stream that it is added to. The ridge holds the weights where they were, not
at zero. The first token of each window is left out: it attends to itself alone, and in many models its activations are
a thousand times as large as any other's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from core.errors import NumericalError
from core.models import surgery
from core.models.surgery import Kept
from core.pruning.calibration import Stream, add_gram, kept_on
from core.pruning.job import Job
from core.pruning.linalg import Warn, damped_cholesky, exact_products

# On SmolLM2 at 77.8 % of its parameters: all the way to the dense outputs (α = 1) fits the calibration text and not
# others; without the dense model perplexity is 3 % higher, without the residual stream 2 %.
ALPHA = 0.25
BETA = 0.25
RIDGE = 0.09


class _Seen(Exception):
    """Ends a forward pass once nothing more is asked of it; raised and caught in this module only."""


@dataclass
class Sums:
    """Sums over the tokens of what a matrix reads, x (in,), and of what it should gain, r (out,): float32.

    gram: Σ x·xᵀ (in, in). gain: Σ r·xᵀ (out, in). The first token of each window is left out.
    """

    gram: Tensor
    gain: Tensor

    @classmethod
    def empty(cls, weight: Tensor) -> "Sums":
        """Nothing seen yet of a matrix (out, in)."""
        out, width = weight.shape
        return cls(
            weight.new_zeros(width, width, dtype=torch.float32), weight.new_zeros(out, width, dtype=torch.float32)
        )

    def add(self, x: Tensor, r: Tensor | None = None) -> None:
        """Take in x (B, T, in) and r (B, T, out), of any float dtype."""
        with exact_products():
            add_gram(self.gram, x[:, 1:].flatten(0, 1))
            if r is not None:
                add_gram(self.gain, r[:, 1:].flatten(0, 1).float(), x[:, 1:].flatten(0, 1))

    def refitted(self, weight: Tensor, kept: Tensor, warn: Warn) -> Tensor:
        """W_K' (out, kept) in float64 for the columns `kept` of W (out, in).

        NumericalError if the sums are not finite, or if the Gram matrix could not be factorised in three tries.
        """
        if not bool(torch.isfinite(self.gram).all() & torch.isfinite(self.gain).all()):
            raise NumericalError(
                "the inputs of o or down, or what they should gain, hold nan or inf on the calibration text.",
                "Load the model as float32 or bfloat16.",
            )
        kept = kept.to(weight.device)
        gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        gone[kept] = False
        gram = self.gram.triu() + self.gram.triu(1).T  # add_gram leaves out what is below the diagonal
        right = weight[:, gone].double() @ gram[gone][:, kept].double() + self.gain[:, kept].double()
        factor = damped_cholesky(gram[kept][:, kept].double(), RIDGE, warn)
        return weight[:, kept].double() + torch.cholesky_solve(right.T, factor).T


def columns_of(job: Job, stays: Kept) -> dict[str, Tensor]:
    """Columns (n,) that stay of o and of down, where some go."""
    found: dict[str, Tensor] = {}
    if stays.query_heads is not None:
        found["o"] = surgery.expand(stays.query_heads, job.plan.before.head_dim)
    if stays.channels is not None:
        found["down"] = stays.channels
    return found


@dataclass
class Refit:
    """One walk over the layers: cut each, refit what reads the cut units, hand the refitted layer's outputs on.

    Layers that lose nothing keep every bit; those above the last cut are not run.
    """

    job: Job
    kept: Mapping[int, Kept]
    _steps: int = 0
    _all_steps: int = 1
    _pruned: Stream = field(init=False)
    _dense: Stream | None = None

    def run(self) -> None:
        """Cut and refit. NumericalError where the calibration text gives nan or inf, or a Gram matrix too singular."""
        job, last = self.job, max(self.kept)
        self._pruned = job.walk.enter(lambda _done: self._tick(0))
        passes = sum(2 + len(columns_of(job, self.kept[i])) if i in self.kept else 1 for i in range(last + 1))
        self._all_steps = passes * len(self._pruned)
        for index in range(last + 1):
            stays = self.kept.get(index)
            with job.body.at(index, final=stays is not None) as layer:
                if stays is not None:
                    self._layer(index, layer, stays)
                    job.report(index, layer, stays)
                    continue
                job.walk.advance(index, layer, self._pruned, lambda _done: self._tick())
                if self._dense is not None:
                    job.walk.advance(index, layer, self._dense)

    def _tick(self, steps: int = 1) -> None:
        self._steps += steps
        total = len(self.kept)
        self.job.progress(total * min(self._steps / self._all_steps, 1.0), total, "layers")

    def _layer(self, index: int, layer: nn.Module, stays: Kept) -> None:
        columns = columns_of(self.job, stays)
        if self._dense is None:
            self._dense = self._pruned.fork()
        wanted = self._targets(index, layer, self._dense, columns)
        if "o" in columns:
            here = Kept(stays.query_heads, stays.kv_heads)
            self._part(index, layer, "o", columns["o"], here, wanted["o"])
        if "down" in columns:
            self._part(index, layer, "down", columns["down"], Kept(channels=stays.channels), wanted["down"])
        self.job.walk.advance(index, layer, self._pruned, lambda _done: self._tick())

    def _targets(
        self, index: int, layer: nn.Module, dense: Stream, roles: Mapping[str, Tensor]
    ) -> dict[str, list[Tensor]]:
        """α·y_d + β·h_d of each role, batch by batch; the dense stream moves on."""
        walk = self.job.walk
        found: dict[str, list[Tensor]] = {role: [] for role in roles}

        def take(role: str, _x: Tensor, target: Tensor) -> None:
            found[role].append(kept_on(walk.store, target))

        working = walk.at_work(layer)
        for i in range(len(dense)):
            hidden = dense.get(i)
            with self._watching(working, hidden, roles, take), torch.no_grad():
                dense.put(i, walk.run(index, working, hidden))
            self._tick()
        return found

    def _part(
        self, index: int, layer: nn.Module, role: str, columns: Tensor, stays: Kept, wanted: list[Tensor]
    ) -> None:
        """Sum up what the matrix of a role reads in the pruned stream, cut the layer, and refit the matrix."""
        job, walk = self.job, self.job.walk
        working = walk.at_work(layer)
        weight = job.matrices(layer)[role].weight
        sums = Sums.empty(weight)
        for i in range(len(self._pruned)):
            hidden = self._pruned.get(i)
            take = partial(self._take, sums, wanted[i].to(hidden.device))
            with suppress(_Seen), torch.no_grad(), self._watching(working, hidden, (role,), take):
                walk.run(index, working, hidden)
            self._tick()
        wanted.clear()
        del working
        warn: Warn = lambda message: job.warnings.append(f"Layer {index}, refit of {role}: {message}")  # noqa: E731
        new = sums.refitted(weight, columns, warn)
        surgery.cut_layer(job.body.model, job.body.family, index, stays)
        job.matrices(layer)[role].weight.copy_(new)

    @staticmethod
    def _take(sums: Sums, wanted: Tensor, _role: str, x: Tensor, present: Tensor) -> None:
        sums.add(x, wanted - present)
        raise _Seen

    @contextmanager
    def _watching(
        self,
        working: nn.Module,
        hidden: Tensor,
        roles: "Mapping[str, Tensor] | tuple[str, ...]",
        take: Callable[[str, Tensor, Tensor], None],
    ) -> Iterator[None]:
        """While open, take(role, x, α·y + β·h) is called with what the matrix of a role reads and makes in the pass
        that starts from `hidden`, in float32."""
        family = self.job.body.family
        matrices = family.matrices(working)
        # with four norms a layer (Gemma) what is added is not what o and down make, but a norm of it
        beta = BETA if len(family.norm_paths) == 2 else 0.0
        stream = hidden

        def seen(role: str, _module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal stream
            before = stream
            if role == "o":
                stream = stream + output  # what down's output will be added to
            if role in roles:
                take(role, arguments[0], ALPHA * output.float() + beta * before.float())

        handles = [matrices[role].linear.register_forward_hook(partial(seen, role)) for role in ("o", "down")]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
