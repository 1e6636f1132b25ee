"""What the kinds of pruning share: one experiment's method, plan, model and calibration text, and its report."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from core.experiment import Pruning
from core.models.body import Body
from core.models.families import Matrix
from core.models.plans import LayerCut, Plan
from core.models.surgery import Kept
from core.progress import Progress
from core.pruning.anatomy import Anatomy
from core.pruning.calibration import Gather, Stream, Walk
from core.pruning.registry import Method, Options
from core.pruning.scores import ScoreCache, stream


@dataclass
class LayerReport:
    """One decoder layer as it was left."""

    nonzero: dict[str, int]  # by role
    size: dict[str, int]
    nonzero_in_all: int
    kept: Kept | None = None


@dataclass
class Job:
    """Everything that the steps of one cut share."""

    body: Body
    pruning: Pruning
    method: Method
    options: Options
    plan: Plan
    windows: Tensor | None
    seed: int
    calibrate_progress: Progress
    progress: Progress
    cache: ScoreCache | None = None
    store: torch.device | str | None = None
    anatomy: Anatomy | None = None
    tick: Callable[[], None] = lambda: None  # between any two batches or rounds; raises where the work is to end
    reports: dict[int, LayerReport] = field(default_factory=dict)
    removed_layers: tuple[int, ...] = ()
    layer_scores: dict[int, float] = field(default_factory=dict)  # of depth methods, by layer
    warnings: list[str] = field(default_factory=list)
    span: tuple[float, float] = (0.0, 1.0)  # of the calibration, that is told of next
    _share: float = 0.0

    @cached_property
    def needs(self) -> frozenset[str]:
        """What calibration gathers for the method, allocation and reconstruction apart."""
        return frozenset(self.method.needs_for(self.pruning.options))

    @property
    def keeps(self) -> bool:
        """Whether scores of this method are kept for the next run: those that read text, where there is a place."""
        return self.cache is not None and bool(self.needs)

    def kept_scores(self, names: Sequence[str], compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The scores of all `names`, from an earlier run that asked the same; else computed, and kept."""
        if self.cache is None or not self.keeps:
            found = compute()
        else:
            what = self._determines()
            held = self.cache.read(what, names)
            if held is not None:
                return held
            found = compute()
            self.cache.write(what, found)
        return {name: found[name] for name in names}

    def _determines(self) -> dict[str, Any]:
        """Everything that decides the scores, the model apart."""
        assert self.windows is not None
        tokens = hashlib.sha256(self.windows.cpu().contiguous().numpy().tobytes()).hexdigest()
        found: dict[str, Any] = {
            "method": self.method.name,
            "options": self.pruning.options,
            "heads": self.pruning.heads,
            "tokens": tokens,
            "windows": list(self.windows.shape),
            "batch_size": self.pruning.calibration.batch_size,
            "passes": str(self.walk.dtype),
        }
        return found | ({"seed": self.seed} if self.method.seeded_for(self.pruning.options) else {})

    @cached_property
    def gather(self) -> tuple[Gather, ...]:
        """What the walk sums up of inputs beyond their norms."""
        return tuple(each for each in ("moments", "gram") if each in self.needs)

    @cached_property
    def walk(self) -> Walk:
        """Passes over the calibration windows."""
        assert self.windows is not None
        return Walk.over(self.body, self.windows, self.pruning.calibration.batch_size, store=self.store, tick=self.tick)

    def enter(self, share: float = 1.0) -> Stream:
        """What enters the first layer; `share` of the calibration's progress when it is done."""
        assert self.windows is not None
        total = len(self.windows)
        return self.walk.enter(lambda done: self.calibrated(share * done / total))

    def calibrated(self, share: float) -> None:
        """Tell how much of the calibration is done, 0 to 1; it never goes back where there are several passes."""
        assert self.windows is not None
        total = len(self.windows)
        start, stop = self.span
        self._share = max(self._share, start + (stop - start) * min(share, 1.0))
        self.calibrate_progress(total * self._share, total, "windows")

    def call(self, layer: int, name: str, **offered: Any) -> Any:
        """Call the method with those of `offered`, its `options`, random `generator` and `tick` that it declares."""
        offered = {"tick": self.tick, **offered, "options": self.options, "generator": stream(self.seed, layer, name)}
        wanted = inspect.signature(self.method.function).parameters
        return self.method.function(**{key: offered[key] for key in wanted})

    def matrices(self, layer: nn.Module) -> dict[str, Matrix]:
        """Weight matrices of a decoder layer by role."""
        return self.body.family.matrices(layer)

    def report(self, index: int, layer: nn.Module, kept: Kept | None = None) -> None:
        """Note what is left of a layer, while its weights are at hand."""
        found = self.matrices(layer)
        self.reports[index] = LayerReport(
            {role: int(torch.count_nonzero(each.weight)) for role, each in found.items()},
            {role: each.weight.numel() for role, each in found.items()},
            count_nonzero(layer.parameters()),
            kept,
        )


def count_nonzero(tensors: Iterable[Tensor]) -> int:
    """Elements that are not zero, in all of them."""
    return sum(int(torch.count_nonzero(each)) for each in tensors)


def parts_cut(cut: LayerCut) -> tuple[str, ...]:
    """Parts of a layer that lose at least one unit."""
    parts: list[str] = []
    if (cut.before.heads, cut.before.kv_heads) != (cut.after.heads, cut.after.kv_heads):
        parts.append("attention")
    if cut.before.mlp != cut.after.mlp:
        parts.append("mlp")
    return tuple(parts)
