"""A method that makes models smaller against one that writes zeros, at equal size and at equal speed: Taylor and Wanda,
which the first study set out to compare."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.charts_frames import Z95, Quality
from core.report.document import Text
from core.report.facts import named, value_words
from core.report.material import Family, Group, Value
from core.report.tables import Sheet, times_dense

CUT, MASK = "taylor", "wanda"


def versus(sheet: Sheet, quality: Quality, decode: Quality | None) -> list[Text]:
    """Sentences on one quality: at each size of the cuts, and for each that was timed. None without both methods."""
    cuts, masks = _judged(sheet, "cut", CUT, quality), _judged(sheet, "mask", MASK, quality)
    found: list[Text] = []
    for model in dict.fromkeys(group.model for group in cuts):
        own = [group for group in cuts if group.model == model]
        others = [group for group in masks if group.model == model]
        found += [*_equal_size(sheet, own, others, quality), *_equal_speed(sheet, own, others, quality, decode)]
    return found


def _judged(sheet: Sheet, family: Family, method: str, quality: Quality) -> list[Group]:
    groups = [group for group in sheet.numbers.of(family) if group.method == method]
    return [group for group in groups if math.isfinite(_mean(sheet, group, quality))]


def _mean(sheet: Sheet, group: Group, quality: Quality) -> float:
    value = sheet.numbers.value(group, quality)
    return math.nan if value is None else value.mean


def _equal_size(sheet: Sheet, cuts: Sequence[Group], masks: Sequence[Group], quality: Quality) -> list[Text]:
    """Each size of the cuts against the next share of zeros that is no smaller, the best row of each."""
    sign = 1 if quality.lower_is_better else -1

    def rank(group: Group) -> tuple[float, float]:
        return round(group.removed, 3), sign * _mean(sheet, group, quality)

    best = {rank(cut)[0]: cut for cut in sorted(cuts, key=rank, reverse=True)}  # the last of a size is its best
    pairs = [
        (cut, min(rest, key=rank))
        for size, cut in sorted(best.items(), key=lambda each: each[0])
        if (rest := [mask for mask in masks if rank(mask)[0] >= size])
    ]
    if not pairs:
        return []
    figures, names = sheet.names.figures, sheet.names
    said = [
        sheet.words.say(
            "d_versus_pair", removed=figures.percent(cut.removed, 1), reached=value_words(sheet, cut, quality),
            zeros=figures.percent(mask.removed, 1), kept=value_words(sheet, mask, quality),
        )
        for cut, mask in pairs
    ]  # fmt: skip
    better = sum(rank(mask)[1] < rank(cut)[1] for cut, mask in pairs)
    return [
        sheet.words.fill(
            "d_versus_size", quality=", ".join(filter(None, (names.quality(quality), *names.model(cuts[0])))),
            cut=names.method(cuts[0]), mask=names.method(masks[0]), count=str(better), all=str(len(pairs)),
            pairs=named(sheet, said), small=_disk(sheet, [cut for cut, _ in pairs]),
            large=_disk(sheet, [mask for _, mask in pairs]),
        )
    ]  # fmt: skip


def _disk(sheet: Sheet, groups: Sequence[Group]) -> str:
    """`395–521 MB`."""
    ends = [sheet.names.figures.fixed(1e-6 * end([group.bytes for group in groups]), 0) for end in (min, max)]
    return f"{'–'.join(dict.fromkeys(ends))} MB"


def _equal_speed(
    sheet: Sheet, cuts: Sequence[Group], masks: Sequence[Group], quality: Quality, decode: Quality | None
) -> list[Text]:
    """Each cut that was timed against the timed mask that is nearest in speed, as multiples of dense in their runs."""
    if decode is None:
        return []
    timed = [mask for mask in masks if _error(sheet.numbers.value(mask, decode)) is not None]
    found: list[Text] = []
    for cut in cuts:
        fast = times_dense(sheet, cut, decode)
        error = _error(sheet.numbers.value(cut, decode))
        if error is None or not timed:
            continue
        mask = min(timed, key=lambda each: abs(math.log(times_dense(sheet, each, decode) / fast)))
        other = times_dense(sheet, mask, decode)
        reach = math.exp(Z95 * math.hypot(error, _error(sheet.numbers.value(mask, decode)) or 0.0))
        ratio, fixed = fast / other, sheet.names.figures.fixed
        verdict = "s_holds_one" if ratio / reach <= 1 <= ratio * reach else "s_not_one"
        found.append(
            sheet.words.fill(
                "d_versus_speed", quality=sheet.names.quality(quality), cut=sheet.names.label(cut),
                mask=sheet.names.label(mask), fast=fixed(fast, 2), other=fixed(other, 2), ratio=fixed(ratio, 2),
                low=fixed(ratio / reach, 2), high=fixed(ratio * reach, 2), verdict=sheet.words.say(verdict),
                reached=value_words(sheet, cut, quality), kept=value_words(sheet, mask, quality),
            )
        )  # fmt: skip
    return found


def _error(value: Value | None) -> float | None:
    """Relative standard error of how many times dense a speed is; None where it was not timed so."""
    if value is None or not (value.mean > 0 and value.dense > 0 and math.isfinite(value.delta_stderr)):
        return None
    of_dense = math.sqrt(max(0.0, value.delta_stderr**2 - value.stderr**2))
    return math.hypot(value.stderr / value.mean, of_dense / value.dense)
