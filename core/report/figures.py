"""Figures of a report as data: curves of quality by size, before and after recovery, quality against speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from core.charts_frames import MOST_DECADES, Quality
from core.report.document import Axis, Figure, Level, Point, Series
from core.report.material import Group, Value
from core.report.numbers import scale
from core.report.tables import Sheet, times_dense

LOG_FROM = 8
"""From this factor between the largest and the smallest perplexity on, the axis is logarithmic (as on Compare)."""
At = Callable[[Group], float]


def curve(sheet: Sheet, quality: Quality, label: str, *, masks: bool = False) -> Figure | None:
    """Quality against the share of the whole model that is gone, a line for each method and its settings.

    None where fewer than two groups have a value: a table says it as well.
    """
    groups = [
        group
        for group in sheet.numbers.of("cut", "depth", "mask", "recovered")
        if group.masked == masks and math.isfinite(group.removed)
    ]
    series = _series(sheet, groups, quality, lambda group: 100 * group.removed)
    if sum(len(each.points) for each in series) < 2:
        return None
    say = sheet.words.say
    title = sheet.names.quality(quality)
    caption = say("c_curve_masks", quality=title) if masks else say("c_curve", quality=title, done=say("done_removed"))
    series, beyond = _within(sheet, quality, series)
    caption = " ".join([caption, *beyond])
    x = Axis(f"{say('x_zeros' if masks else 'x_removed')} [%]")
    return Figure(label, (caption,), _alt(sheet, caption, series), x, _axis(sheet, quality, series),
                  tuple(series), _levels(sheet, quality))  # fmt: skip


def tradeoff(sheet: Sheet, quality: Quality, speed: Quality, label: str, batch: str, device: str) -> Figure | None:
    """Quality against decoding speed as a multiple of dense, of every family: zeros are as fast as they are."""

    def at(group: Group) -> float:
        return times_dense(sheet, group, speed)

    groups = [group for group in sheet.numbers.groups if math.isfinite(at(group))]
    series = _series(sheet, groups, quality, at, lines=False)
    if sum(len(each.points) for each in series) < 2:
        return None
    say = sheet.words.say
    series, beyond = _within(sheet, quality, series)
    caption = " ".join([say("c_tradeoff", quality=sheet.names.quality(quality), batch=batch, device=device), *beyond])
    return Figure(label, (caption,), _alt(sheet, caption, series), Axis(say("x_decode"), from_zero=False),
                  _axis(sheet, quality, series), tuple(series))  # fmt: skip


def pairs(sheet: Sheet, quality: Quality, label: str) -> Figure | None:
    """Before and after recovery, a row each."""
    known = [
        (group, value)
        for group in sheet.numbers.of("recovered")
        if (value := sheet.numbers.value(group, quality)) is not None and math.isfinite(value.before)
    ]
    if not known:
        return None
    say = sheet.words.say
    names = tuple(sheet.names.label(group) for group, _ in known)
    points: dict[str, list[Point]] = {"before": [], "after": []}
    for place, (group, value) in enumerate(known):
        for which, mean, error in (("before", value.before, value.before_stderr), ("after", value.mean, value.stderr)):
            low, high = _bar(mean, error, quality)
            apart = place + (-0.1 if which == "before" else 0.1)
            points[which].append(Point(scale(quality) * mean, apart, low, high, names[place], group.runs))
    series = (
        Series(say("before"), "taylor", tuple(points["before"]), line=False, hollow=True),
        Series(say("after"), "taylor", tuple(points["after"]), line=False),
    )
    caption = say("c_pairs", quality=sheet.names.quality(quality))
    values = [point.x for each in series for point in each.points]
    log = _logarithmic(quality, [*values, *(scale(quality) * value.dense for _, value in known)])
    dense = {value.dense for _, value in known if math.isfinite(value.dense)}
    levels = tuple(Level(scale(quality) * value, say("dense")) for value in sorted(dense))
    return Figure(label, (caption,), _alt(sheet, caption, list(series), by="x"),
                  Axis(sheet.names.axis(quality), "log" if log else "linear", note=_way(sheet, quality, log)),
                  Axis("", "names", names), series, levels, bars="x")  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- parts


def _series(sheet: Sheet, groups: Iterable[Group], quality: Quality, at: At, *, lines: bool = True) -> list[Series]:
    """Groups with a value, by method and settings, the points from left to right."""
    found: dict[str, list[tuple[Group, Value]]] = {}
    for group in groups:
        value = sheet.numbers.value(group, quality)
        if value is not None and math.isfinite(value.mean):
            found.setdefault(sheet.names.series_key(group), []).append((group, value))
    several = len({str(group.settings.get("model.dtype")) for members in found.values() for group, _ in members}) > 1
    variants: dict[str, int] = {}
    series = []
    for members in found.values():
        first = members[0][0]
        variant = variants.get(first.method, 0)
        variants[first.method] = variant + 1
        points = sorted((_point(sheet, group, value, quality, at(group)) for group, value in members),
                        key=lambda point: point.x)  # fmt: skip
        series.append(
            Series(
                sheet.names.series(first, dtype=several),
                first.method,
                tuple(points),
                variant,
                lines and len(points) > 1,
            )
        )
    return series


def _within(sheet: Sheet, quality: Quality, series: list[Series]) -> tuple[list[Series], list[str]]:
    """(what is drawn, a sentence that names what lies beyond the end of a logarithmic axis, if anything does)."""
    known = [point.y for each in series for point in each.points]
    known += [level.value for level in _levels(sheet, quality)]
    if not _logarithmic(quality, known):
        return series, []
    end = min(known) * 10**MOST_DECADES
    beyond = [point for each in series for point in each.points if point.y > end]
    if not beyond:
        return series, []
    kept = [
        replace(each, points=points, line=each.line and len(points) > 1)
        for each in series
        if (points := tuple(point for point in each.points if point.y <= end))
    ]
    values = "; ".join(f"{point.label}: {sheet.names.figures.fixed(point.y, 0)}" for point in beyond)
    return kept, [sheet.words.say("c_beyond", values=values)]


def _point(sheet: Sheet, group: Group, value: Value, quality: Quality, x: float) -> Point:
    low, high = _bar(value.mean, value.stderr, quality)
    return Point(x, scale(quality) * value.mean, low, high, sheet.names.label(group), value.runs)


def _bar(mean: float, stderr: float, quality: Quality) -> tuple[float, float]:
    """From one standard error below to one above; shares end at 0 and 100 %."""
    if not math.isfinite(stderr):
        return math.nan, math.nan
    low, high = mean - stderr, mean + stderr
    if quality.fraction:
        low, high = max(low, 0.0), min(high, 1.0)
    return scale(quality) * low, scale(quality) * high


def _levels(sheet: Sheet, quality: Quality) -> tuple[Level, ...]:
    """Where the dense models stand, and guessing."""
    say, found = sheet.words.say, []
    for group in sheet.numbers.of("dense"):
        value = sheet.numbers.value(group, quality)
        if value is not None and math.isfinite(value.mean):
            shown = sheet.names.figures.measured(value.mean, math.nan, quality)
            found.append(Level(scale(quality) * value.mean, f"{sheet.names.short(group)} {shown}"))
    if quality.is_task and quality.chance is not None:
        found.append(Level(scale(quality) * quality.chance, say("guessing")))
    return tuple(found)


def _axis(sheet: Sheet, quality: Quality, series: Sequence[Series]) -> Axis:
    values = [point.y for each in series for point in each.points]
    values += [level.value for level in _levels(sheet, quality)]
    log = _logarithmic(quality, values)
    return Axis(sheet.names.axis(quality), "log" if log else "linear", note=_way(sheet, quality, log))


def _logarithmic(quality: Quality, values: Sequence[float]) -> bool:
    known = [value for value in values if math.isfinite(value)]
    return quality.lower_is_better and bool(known) and min(known) > 0 and max(known) / min(known) > LOG_FROM


def _way(sheet: Sheet, quality: Quality, log: bool) -> str:
    """`lower is better, logarithmic`."""
    say = sheet.words.say
    return ", ".join([say("lower" if quality.lower_is_better else "higher"), *([say("log")] if log else [])])


def _alt(sheet: Sheet, caption: str, series: Sequence[Series], by: str = "y") -> str:
    """The figure in words, with its values."""
    fixed = sheet.names.figures.fixed
    said = [
        f"{point.label}{'' if by == 'y' else f' ({each.name})'}: {fixed(getattr(point, by), 2)}"
        for each in series
        for point in each.points
    ]
    more = f"; {sheet.words.say('more', count=len(said) - 30)}" if len(said) > 30 else ""
    return f"{caption} {'; '.join(said[:30])}{more}."
