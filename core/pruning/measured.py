"""How much each layer loses, by what it costs: each part of each layer is cut alone, at several widths.

The cost is the divergence KL(dense ‖ cut) of the next-token distributions on a few calibration windows. Only the layers
above the cut are run again. Costs between the measured widths are interpolated, and costs of several cuts are taken to
add up: then the cheapest way to remove a number of parameters has one price per parameter in all layers.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.models.plans import params_of
from core.models.sizes import Architecture, LayerSizes
from core.models.surgery import Kept
from core.pruning.allocation import shrunk
from core.pruning.calibration import Stream
from core.pruning.head import head_of
from core.pruning.job import Job
from core.pruning.reconstruction import Sums, columns_of
from core.pruning.units import reader_role

MLP_SHARES = (7 / 8, 3 / 4, 1 / 2, 5 / 16, 1 / 6)  # of the channels, that stay where an MLP is measured
HEAD_SHARES = (3 / 4, 1 / 2, 1 / 4)
FLOOR = 1 / 6  # of an MLP's channels stay at least, unless the goal cannot be met so: costs do not add up below
_TOKENS = {"cpu": 1024, "cuda": 8192}  # in the windows that a cut is measured on
_EVERY = 2  # one in so many positions is compared: neighbours say nearly the same, and the head is dear

Key = tuple[int, str]  # layer, part
Points = Mapping[int, float]  # units left (of each KV group, if query heads go) → cost in nats a token
Pick = Callable[[int, LayerSizes], Kept]  # what stays of a layer that is to have these sizes


def measured_sizes(job: Job, pick: Pick) -> dict[int, LayerSizes]:
    """Sizes of each selected layer after the plan's goal was shared out by measured costs.

    pick(layer, sizes): the units that stay, by the method's scores. With a refit, cuts are measured refitted.
    """
    curves = _Measuring(job, pick).run()
    return share_out(job.plan.before, curves, job.plan.goal, heads=job.pruning.heads, round_to=job.pruning.round_to)


# ----------------------------------------------------------------------------------------------------------- measuring


def _units(sizes: LayerSizes, part: str, heads: str) -> int:
    """How many steps a part can lose: channels, KV groups, or query heads of each KV group."""
    if part == "mlp":
        return sizes.mlp
    return sizes.kv_heads if heads == "kv_groups" else sizes.heads // sizes.kv_heads


def points(sizes: LayerSizes, part: str, heads: str) -> list[int]:
    """Units left at which a part is measured, most first."""
    n = _units(sizes, part, heads)
    if part == "attention" and n <= len(HEAD_SHARES) + 1:
        return list(range(n - 1, 0, -1))
    shares = MLP_SHARES if part == "mlp" else HEAD_SHARES
    return sorted({left for share in shares if 0 < (left := round(share * n)) < n}, reverse=True)


class _Measuring:
    """One walk over the dense model; at each selected layer, all cuts of it go on to the end side by side."""

    def __init__(self, job: Job, pick: Pick) -> None:
        self.job, self.pick, self.walk = job, pick, job.walk
        assert job.windows is not None
        few = max(1, _TOKENS.get(job.body.device.type, 1024) // job.windows.shape[1])
        self.windows = job.windows[:few]
        self.layers = len(job.body.layers())
        self.done = 0.0
        parts = len(job.pruning.parts) * len(MLP_SHARES)
        ratio = len(job.windows) / len(self.windows) if job.pruning.reconstruct else 0.0
        self.all = self.layers * (2 + ratio) + sum(parts * (self.layers - i + 1) for i in job.plan.selected)

    def _tick(self, layers: float) -> None:
        """A few windows went through so many layers."""
        self.done += layers
        self.job.calibrated(min(self.done / self.all, 1.0))

    def run(self) -> dict[Key, dict[int, float]]:
        job, walk = self.job, self.walk
        last = job.plan.selected[-1]
        dense = walk.enter(windows=self.windows)
        entering = dense.fork()
        every = walk.enter() if job.pruning.reconstruct else None  # a refit needs the sums over all windows
        for index in range(self.layers):
            with job.body.at(index) as layer:
                walk.advance(index, layer, dense)
            self._tick(1)
        costs: dict[Key, dict[int, float]] = {}
        for index in range(last + 1):
            with job.body.at(index) as layer:
                if index in job.plan.selected:
                    sums = None if every is None else sums_of(job, index, layer, every)
                    names, outputs = self._cuts(index, layer, entering, sums)
                elif every is not None:
                    walk.advance(index, layer, every)
                walk.advance(index, layer, entering)
            self._tick(1 if every is None else 1 + len(job.walk.windows) / len(self.windows))
            if index in job.plan.selected:
                for (part, left), cost in zip(names, self._divergences(index, outputs, dense), strict=True):
                    costs.setdefault((index, part), {})[left] = cost
        self.job.calibrated(1.0)
        return costs

    def _cuts(
        self, index: int, layer: nn.Module, entering: Stream, sums: Mapping[str, Sums] | None
    ) -> tuple[list[tuple[str, int]], Stream]:
        """What leaves the layer after each cut of it alone: (part, units left) of each, and all their batches."""
        job, before = self.job, self.job.plan.before.layers[index]
        working = self.walk.at_work(layer)
        names: list[tuple[str, int]] = []
        batches: list[Tensor] = []
        outputs = Stream(batches, entering.device, entering.store)

        def warn(message: str) -> None:
            job.warnings.append(f"Layer {index}, measuring {role}: {message}")

        for part in job.pruning.parts:
            role = reader_role(part)
            weight = job.matrices(working)[role].weight
            own = weight.clone()
            try:
                for left in points(before, part, job.pruning.heads):
                    stays = self.pick(index, shrunk(before, part, left, job.pruning.heads))
                    columns = columns_of(job, stays)[role].to(weight.device)
                    new = own[:, columns] if sums is None else sums[role].refitted(own, columns, warn)
                    weight.zero_()
                    weight[:, columns] = new.to(weight.dtype)
                    names.append((part, left))
                    for i in range(len(entering)):
                        batches.append(entering.batches[i])
                        with torch.no_grad():
                            outputs.put(len(batches) - 1, self.walk.run(index, working, entering.get(i)))
                    self._tick(1)
            finally:
                weight.copy_(own)
        return names, outputs

    def _divergences(self, index: int, outputs: Stream, dense: Stream) -> list[float]:
        """Mean KL(dense ‖ cut) in nats a token of each cut, whose hidden states leave layer `index`."""
        cuts = len(outputs) // len(dense)
        for later in range(index + 1, self.layers):
            with self.job.body.at(later) as layer:
                self.walk.advance(later, layer, outputs)
            self._tick(cuts)
        totals = torch.zeros(cuts, dtype=torch.float64, device=dense.device)
        count = 0
        with torch.no_grad(), head_of(self.walk) as head:
            for i in range(len(dense)):
                rows = dense.get(i)[:, 1::_EVERY].flatten(0, 1)
                ours = [outputs.get(cut * len(dense) + i)[:, 1::_EVERY].flatten(0, 1) for cut in range(cuts)]
                for piece in head.pieces(rows):
                    expected = F.log_softmax(head.logits(rows[piece]), dim=-1)
                    for cut, each in enumerate(ours):
                        self.job.tick()
                        found = F.log_softmax(head.logits(each[piece]), dim=-1)
                        totals[cut] += F.kl_div(found, expected, reduction="sum", log_target=True).double()
                count += len(rows)
        self._tick(cuts)
        return [float(each) for each in totals / count]


def sums_of(job: Job, index: int, layer: nn.Module, every: Stream) -> dict[str, Sums]:
    """What the readers of the selected parts read in the dense model; the stream moves on."""
    working = job.walk.at_work(layer)
    matrices = job.matrices(working)
    roles = [reader_role(part) for part in job.pruning.parts]
    sums = {role: Sums.empty(matrices[role].weight) for role in roles}
    with torch.no_grad(), job.walk.watching({role: sums[role].add for role in roles}, matrices):
        for i in range(len(every)):
            every.put(i, job.walk.run(index, working, every.get(i)))
    return sums


# --------------------------------------------------------------------------------------------------------- sharing out


@dataclass
class _Curve:
    """One part of one layer: from whole to smallest, units left, parameters removed, cost. All (n,)."""

    left: list[int]
    removed: Tensor
    cost: Tensor
    at: int = 0


def share_out(
    architecture: Architecture, costs: Mapping[Key, Points], goal: int, *, heads: str, round_to: int
) -> dict[int, LayerSizes]:
    """Sizes of each measured layer that remove `goal` parameters, to within half a step, at the least sum of costs.

    costs: (layer, part) → cost at some numbers of units left. MLP channels go `round_to` at a time, at least one unit
    of attention and one such step of the MLP stay.
    """
    sizes = {layer: architecture.layers[layer] for layer, _ in costs}
    curves = {key: _curve(architecture, key, each, heads, round_to, FLOOR) for key, each in costs.items()}
    if sum(int(curve.removed[-1]) for curve in curves.values()) < goal:
        curves = {key: _curve(architecture, key, each, heads, round_to, 0.0) for key, each in costs.items()}
    low, high = -80.0, 20.0  # log of the price of a parameter
    for _ in range(80):
        price = (low + high) / 2
        if _removed_at(curves.values(), math.exp(price)) < goal:
            low = price
        else:
            high = price
    too_many = _removed_at(curves.values(), math.exp(high)) - goal
    while (move := _nearer(curves.values(), too_many)) is not None:
        curve, at = move
        too_many += int(curve.removed[at] - curve.removed[curve.at])
        curve.at = at
    for (layer, part), curve in curves.items():
        if curve.at:
            sizes[layer] = shrunk(sizes[layer], part, curve.left[curve.at], heads)
    return sizes


def _removed_at(curves: Collection[_Curve], price: float) -> int:
    """Parameters that go if each costs so much to keep; notes where that puts each curve."""
    total = 0
    for curve in curves:
        curve.at = int((curve.cost - price * curve.removed).argmin())
        total += int(curve.removed[curve.at])
    return total


def _nearer(curves: Collection[_Curve], too_many: int) -> tuple[_Curve, int] | None:
    """The curve, and where on it, at which one step leads nearer to the goal at the best price a parameter."""
    found, best = None, math.inf
    step = -1 if too_many > 0 else 1
    for curve in curves:
        at = curve.at + step
        if not 0 <= at < len(curve.left):
            continue
        size = abs(int(curve.removed[at] - curve.removed[curve.at]))
        price = float(curve.cost[at] - curve.cost[curve.at]) / max(size, 1)
        if size < 2 * abs(too_many) and price < best:
            found, best = (curve, at), price
    return found


def _curve(architecture: Architecture, key: Key, costs: Points, heads: str, round_to: int, floor: float) -> _Curve:
    layer, part = key
    sizes = architecture.layers[layer]
    n, step = _units(sizes, part, heads), round_to if part == "mlp" else 1
    least = max(step, math.ceil(floor * n)) if part == "mlp" else 1
    left = [n, *(each for each in range((n - 1) // step * step, 0, -step) if each >= least)] if costs else [n]
    whole = params_of(architecture, sizes)
    one = whole - params_of(architecture, shrunk(sizes, part, left[-1], heads))
    shares = torch.tensor([(n - each) / n for each in left], dtype=torch.float64)
    removed = (shares * (one / float(shares[-1]))).round() if len(left) > 1 else torch.zeros(1, dtype=torch.float64)
    return _Curve(left, removed, interpolated(shares, {1 - each / n: cost for each, cost in costs.items()}))


def interpolated(shares: Tensor, costs: Mapping[float, float]) -> Tensor:
    """Cost (n,) of losing the `shares` of a part (n,), from costs of some of them; 0 where nothing is lost.

    Between two of them the cost is a power of the share, and so it is outside: that through the first two of them, or
    the last two. Never falls.
    """
    if not costs:
        return torch.zeros_like(shares)
    x = torch.tensor(sorted(costs), dtype=torch.float64)
    y = torch.tensor([costs[float(each)] for each in sorted(costs)], dtype=torch.float64)
    y = y.clamp_min(1e-12).cummax(dim=0).values.log()
    if len(x) == 1:
        return y.exp() * shares / x
    x, at = x.log(), shares.clamp_min(1e-300).log()
    i = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    power = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
    between = y[i] + (at - x[i]) * power[i - 1]
    below = y[0] + (at - x[0]) * power[0].clamp(1.0, 3.0)  # small cuts are never dearer a parameter than larger ones
    return torch.where(at < x[0], below, between).exp().where(shares > 0, 0.0)
