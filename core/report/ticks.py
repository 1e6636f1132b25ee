"""Scales of a drawn axis: where ticks stand and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.report.document import Axis, Figure
from core.report.numbers import Numbers

_PAD = 0.06


@dataclass(frozen=True)
class Scale:
    """An axis from low to high, with ticks and what stands at them. `log`: equal factors are equal lengths."""

    low: float
    high: float
    ticks: tuple[float, ...]
    texts: tuple[str, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one; beyond the ends for what is outside."""
        if self.log:
            value, low, high = (math.log(max(each, 1e-300)) for each in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return (value - low) / ((high - low) or 1.0)


def scale_of(axis: Axis, values: Sequence[float], numbers: Numbers, *, ticks: int = 6) -> Scale:
    """The scale that holds all values."""
    known = [value for value in values if math.isfinite(value)]
    if axis.kind == "names":
        count = len(axis.names)
        return Scale(count - 0.5, -0.5, tuple(map(float, range(count))), axis.names)
    if not known:
        known = [0.0, 1.0]
    low, high = min(known), max(known)
    if axis.kind == "log" and low > 0:
        return _log(low, high, numbers)
    pad = _PAD * ((high - low) or abs(high) or 1.0)
    low, high = (0.0 if low >= 0 > low - pad else low - pad), high + pad
    step = _step((high - low) / ticks)
    places = [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
    digits = next((count for count in range(12) if abs(step - round(step, count)) < step * 1e-9), 12)
    return Scale(low, high, tuple(places), tuple(numbers.fixed(place, digits) for place in places))


def _log(low: float, high: float, numbers: Numbers) -> Scale:
    low, high = low / 1.15, high * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = high / low > 2000
    steps = (1,) if wide else (1, 2, 5)
    places = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
    texts = tuple(numbers.fixed(place, max(0, -math.floor(math.log10(place) + 1e-9))) for place in places)
    return Scale(low, high, tuple(places), texts, log=True)


def _step(rough: float) -> float:
    decade = 10.0 ** math.floor(math.log10(rough))
    return next(step * decade for step in (1, 2, 2.5, 5, 10) if step * decade >= rough * (1 - 1e-9))


def scales(figure: Figure, numbers: Numbers) -> tuple[Scale, Scale]:
    """The scales of a figure's two axes: marks, bars and levels are inside."""
    xs = [point.x for series in figure.series for point in series.points]
    ys = [point.y for series in figure.series for point in series.points]
    along = ys if figure.bars == "y" else xs
    along += [end for series in figure.series for point in series.points for end in (point.low, point.high)]
    along += [level.value for level in figure.levels]
    axis = figure.y if figure.bars == "y" else figure.x
    if axis.kind == "log":  # a bar that reaches zero ends at the axis
        least = min((value for value in along if value > 0), default=1.0)
        along[:] = [value for value in along if not math.isfinite(value) or value > least / 3]
    if figure.bars == "y" and figure.x.kind == "linear" and figure.x.from_zero and xs and min(xs) >= 0:
        xs = [*xs, 0.0]
    return scale_of(figure.x, xs, numbers), scale_of(figure.y, ys, numbers)
