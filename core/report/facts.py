"""Sentences about numbers: which is lowest, by how much, whether an interval leaves out zero. No causes, no advice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.charts_frames import Quality
from core.evaluation.metrics import text_key
from core.report.document import Text
from core.report.material import UNPRUNED, Family, Group, Value
from core.report.tables import (
    Sheet,
    blocks,
    gain_interval,
    half_width,
    kernel_label,
    kernel_qualities,
    protocol_of,
    times_dense,
)

MOST_NAMED = 12
"""Rows that one sentence names."""


@dataclass(frozen=True)
class Contrast:
    """A second group against a first. `ratio`: second over first, else second less first; `paired`: same documents."""

    value: float
    low: float
    high: float
    ratio: bool
    paired: bool
    seeds: bool = False

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval leaves out no difference."""
        same = 1.0 if self.ratio else 0.0
        return not self.low <= same <= self.high

    @property
    def above(self) -> bool:
        """Whether the second is larger."""
        return self.value > (1.0 if self.ratio else 0.0)


def contrast(sheet: Sheet, first: Group, second: Group, quality: Quality) -> Contrast | None:
    """The second group against the first: on the same documents for single runs that kept them, else independent."""
    one, two = sheet.numbers.value(first, quality), sheet.numbers.value(second, quality)
    if one is None or two is None:
        return None
    if len(one.runs) == len(two.runs) == 1:
        found = _paired(sheet, one.runs[0], two.runs[0], quality)
        if found is not None:
            return found
    reach = half_width(_welch(one, two)) * math.hypot(one.stderr, two.stderr)
    if not math.isfinite(reach):
        return None
    value = two.mean - one.mean
    seeds = math.isfinite(min(one.freedom, two.freedom))
    return Contrast(value, value - reach, value + reach, ratio=False, paired=False, seeds=seeds)


def _welch(one: Value, two: Value) -> float:
    """Degrees of freedom of the difference of two means (Welch–Satterthwaite)."""
    parts = [(each.stderr**2, each.freedom) for each in (one, two)]
    below = math.fsum(square**2 / freedom for square, freedom in parts if math.isfinite(freedom))
    return math.fsum(square for square, _ in parts) ** 2 / below if below > 0 else math.inf


def _paired(sheet: Sheet, first: str, second: str, quality: Quality) -> Contrast | None:
    pair = sheet.material.pair(first, second)
    if pair.problem:
        return None
    if quality.metric == "perplexity":
        text = text_key(protocol_of(sheet, quality))
        for each in pair.perplexities:
            if text and text_key(each.protocol) == text:
                return Contrast(each.ratio, each.low, each.high, ratio=True, paired=True)
        return None
    if quality.is_mean:
        mean = pair.mean
        known = mean is not None and mean.tasks == 7
        return Contrast(mean.difference, mean.low, mean.high, ratio=False, paired=True) if mean and known else None
    for task in pair.tasks:
        if (task.task, task.metric) == (quality.task, quality.metric) and not task.differing:
            own = task.paired
            return Contrast(own.difference, own.low, own.high, ratio=False, paired=True)
    return None


# ------------------------------------------------------------------------------------------------------------- results


def dense_facts(sheet: Sheet, chosen: Sequence[Quality]) -> list[Text]:
    """What the reference points came to."""
    found = []
    for group in sheet.numbers.of(*UNPRUNED):
        said = _values(sheet, group, chosen)
        if said:
            found.append(sheet.words.fill("s_dense", model=sheet.names.short(group), values="; ".join(said)))
    return found


def family_facts(sheet: Sheet, family: Family, chosen: Sequence[Quality]) -> list[Text]:
    """Of each size: the best, the next with the interval of the difference, the worst; then marks against dense."""
    groups = sheet.numbers.of(family)
    found: list[Text] = []
    for block in blocks(groups):
        if len(block) == 1:
            found += _only(sheet, block[0], chosen)
            continue
        said = [" ".join(_block_sentences(sheet, block, each)) for each in chosen]
        said = [each for each in said if each]
        if said:
            found.append((" ".join(said),))
    several = len(groups) > 1
    return [*found, *(_marked(sheet, groups, each) for each in chosen if several and _compared(sheet, groups, each))]


def _only(sheet: Sheet, group: Group, chosen: Sequence[Quality]) -> list[Text]:
    """What the only row of a block came to."""
    values = _values(sheet, group, chosen)
    names = {"size": sheet.names.size(group), "best": sheet.names.in_block(group)}
    return [sheet.words.fill("s_only", **names, values="; ".join(values))] if values else []


def _values(sheet: Sheet, group: Group, chosen: Sequence[Quality]) -> list[str]:
    known = [(each, sheet.numbers.value(group, each)) for each in chosen]
    return [
        f"{sheet.names.in_sentence(each)} {_value(sheet, value, each)}" for each, value in known if value is not None
    ]


def _block_sentences(sheet: Sheet, block: Sequence[Group], quality: Quality) -> list[str]:
    say, names = sheet.words.say, sheet.names
    known = [(value, group) for group in block if (value := sheet.numbers.value(group, quality)) is not None]
    known = [each for each in known if math.isfinite(each[0].mean)]
    if not known:
        return []
    lower = quality.lower_is_better
    known.sort(key=lambda each: each[0].mean if lower else -each[0].mean)
    size, name = names.size(block[0]), names.in_sentence(quality, article=True)
    (value, best), rest = known[0], known[1:]
    if not rest:
        value_words = f"{names.in_sentence(quality)} {_value(sheet, value, quality)}"
        return [say("s_only", size=size, best=names.in_block(best), values=value_words)]
    key = "s_best_low" if lower else "s_best_high"
    text = say(key, size=size, quality=name, best=names.in_block(best), value=_value(sheet, value, quality))
    text += say("s_next", second=names.in_block(rest[0][1]), value=_value(sheet, rest[0][0], quality))
    if len(rest) > 1:
        last, worst = rest[-1]
        key = "s_worst_high" if lower else "s_worst_low"
        text += say(key, worst=names.in_block(worst), value=_value(sheet, last, quality))
    return [f"{text}.", *contrast_sentence(sheet, best, rest[0][1], quality)]


def contrast_sentence(sheet: Sheet, first: Group, second: Group, quality: Quality) -> list[str]:
    """The second against the first with its interval, in a sentence; none where no interval is known."""
    found = contrast(sheet, first, second, quality)
    if found is None:
        return []
    say, figures = sheet.words.say, sheet.names.figures
    both = {which: sheet.names.in_block(each) for which, each in (("best", first), ("second", second))}
    verdict = say(f"{'s_not' if found.clear else 's_holds'}_{'one' if found.ratio else 'zero'}")
    if found.ratio:
        times, low, high = (figures.fixed(each, 3) for each in (found.value, found.low, found.high))
        return [say("s_ratio", **both, times=times, low=low, high=high, verdict=verdict)]
    difference, low, high = (_difference(sheet, each, quality) for each in (found.value, found.low, found.high))
    difference += _points(sheet, quality)
    how = say("s_how_paired" if found.paired else "s_how_seeds" if found.seeds else "s_how_independent")
    return [say("s_difference", **both, difference=difference, low=low, high=high, how=how, verdict=verdict)]


def _compared(sheet: Sheet, groups: Sequence[Group], quality: Quality) -> bool:
    return any(_told(sheet.numbers.value(group, quality)) for group in groups)


def _told(value: Value | None) -> bool:
    return value is not None and math.isfinite(value.delta)


def _marked(sheet: Sheet, groups: Sequence[Group], quality: Quality, name: str = "") -> Text:
    values = [value for group in groups if (value := sheet.numbers.value(group, quality)) is not None and _told(value)]
    better, worse = (sum(value.mark == mark for value in values) for mark in "▲▼")
    rest = len(values) - better - worse
    return sheet.words.fill(
        "s_marked", count=str(len(values)), worse=str(worse), better=str(better), rest=str(rest),
        quality=name or sheet.names.in_sentence(quality),
    )  # fmt: skip


def recovery_facts(sheet: Sheet, quality: Quality) -> list[Text]:
    """Before, after, the gain with its interval, and what came back, a sentence for each recovered row."""
    say, figures, found = sheet.words.say, sheet.names.figures, []
    for group in sheet.numbers.of("recovered"):
        value = sheet.numbers.value(group, quality)
        if value is None or not math.isfinite(value.before):
            continue
        low, high = gain_interval(value)
        back = ""
        if math.isfinite(value.regained):
            back = say("s_back", share=figures.percent(value.regained, 0))
        clear = not low <= 0 <= high
        found.append(sheet.words.fill(
            "s_recovered", label=sheet.names.label(group), quality=sheet.names.in_sentence(quality, article=True),
            before=figures.measured(value.before, value.before_stderr, quality), after=_value(sheet, value, quality),
            gain=_difference(sheet, value.gain, quality) + _points(sheet, quality),
            low=_difference(sheet, low, quality),
            high=_difference(sheet, high, quality), verdict=say("s_not_zero" if clear else "s_holds_zero"), back=back,
            how=say(_how(value)),
        ))  # fmt: skip
    return found


def speed_facts(sheet: Sheet, chosen: Sequence[Quality]) -> list[Text]:
    """Decoding, as one table has it: which is fastest, which are told apart from dense; masks and real cuts apart; what
    kernels of their own made of it."""
    decode = next((each for each in chosen if each.metric == "decode_tokens_per_second"), None)
    if decode is None:
        return []
    known = [each for each in _timed(sheet, decode) if each[1].family != "dense"]
    found: list[Text] = []
    if known:
        value, group = max(known, key=lambda each: each[0].mean / each[0].dense)
        verdict = sheet.words.say("s_significant" if value.mark else "s_not_significant")
        found.append(sheet.words.fill("s_fastest", **_times(sheet, value, decode), verdict=verdict,
                                      label=sheet.names.label(group)))  # fmt: skip
        name = sheet.words.say("axis_speed")  # the table above says how it was measured
        found += [_marked(sheet, [group for _, group in known], decode, name)] if len(known) > 1 else []
        masked, cut = (
            [value.mean / value.dense for value, group in known if group.masked is zeros and group.kind != "quantised"]
            for zeros in (True, False)
        )
        if masked and cut:
            found.append(sheet.words.fill("s_speeds", masks=_span(sheet, masked), cuts=_span(sheet, cut)))
    for quality in kernel_qualities(sheet, chosen):
        if quality.metric != decode.metric:
            continue
        for value, group in _timed(sheet, quality):
            label = kernel_label(sheet, group, quality)
            found.append(sheet.words.fill("s_kernels", **_times(sheet, value, quality), label=label))
    return found


def _timed(sheet: Sheet, quality: Quality) -> list[tuple[Value, Group]]:
    """Groups that were timed so beside the dense model."""
    known = ((sheet.numbers.value(group, quality), group) for group in sheet.numbers.groups)
    return [(value, group) for value, group in known if value is not None and value.dense > 0]


def _times(sheet: Sheet, value: Value, quality: Quality) -> dict[str, str]:
    figures = sheet.names.figures
    return {
        "value": figures.measured(value.mean, value.stderr, quality),
        "times": figures.fixed(value.mean / value.dense, 2),
        "dense": figures.measured(value.dense, math.nan, quality),
    }


def mask_sizes(sheet: Sheet) -> list[Text]:
    """What masked models take on disk beside the dense one."""
    figures = sheet.names.figures
    masks = [group.bytes for group in sheet.numbers.groups if group.masked and math.isfinite(group.bytes)]
    dense = [group.bytes for group in sheet.numbers.of("dense") if math.isfinite(group.bytes)]
    if not masks or not dense:
        return []
    low, high = figures.fixed(min(masks) / 1e6, 0), figures.fixed(max(masks) / 1e6, 0)
    size = f"{low} MB" if low == high else f"{low}–{high} MB"
    return [sheet.words.fill("s_masks_size", mask=size, dense=f"{figures.fixed(dense[0] / 1e6, 0)} MB")]


def _span(sheet: Sheet, times: Sequence[float]) -> str:
    """`1.03`, `1.14–1.35`."""
    ends = [sheet.names.figures.fixed(each, 2) for each in (min(times), max(times))]
    return "–".join(dict.fromkeys(ends))


def front(sheet: Sheet, groups: Iterable[Group], quality: Quality, speed: Quality | None) -> Text | None:
    """Rows that no other beats in both quality and size removed (or decoding speed over dense, where that is given)."""
    known = []
    for group in groups:
        value = sheet.numbers.value(group, quality)
        along = round(group.removed, 4) if speed is None else times_dense(sheet, group, speed)
        if value is not None and math.isfinite(value.mean) and math.isfinite(along):
            known.append((along, -value.mean if quality.lower_is_better else value.mean, group))
    kept, best = [], -math.inf
    for _, height, group in sorted(known, key=lambda each: (-each[0], -each[1])):
        if height > best:
            kept.append(group)
            best = height
    if len(known) < 3:
        return None
    axis = sheet.words.say("axis_size" if speed is None else "axis_times")
    labels = named(sheet, [sheet.names.label(group) for group in reversed(kept)])
    return sheet.words.fill("s_front", quality=sheet.names.in_sentence(quality), axis=axis, labels=labels)


# --------------------------------------------------------------------------------------------------------------- parts


def named(sheet: Sheet, labels: Sequence[str]) -> str:
    """Labels in a row, the first dozen."""
    unique = list(dict.fromkeys(labels))
    more = [sheet.words.say("more", count=len(unique) - MOST_NAMED)] if len(unique) > MOST_NAMED else []
    return "; ".join([*unique[:MOST_NAMED], *more])


def _value(sheet: Sheet, value: Value, quality: Quality) -> str:
    text = sheet.names.figures.measured(value.mean, value.stderr, quality)
    unit = sheet.names.unit(quality)
    return f"{text}\u00a0{unit}" if unit else text


def value_words(sheet: Sheet, group: Group, quality: Quality) -> str:
    """What a row came to, with its standard error and unit; '' where it was not measured so."""
    value = sheet.numbers.value(group, quality)
    return "" if value is None else _value(sheet, value, quality)


def _how(value: Value) -> str:
    """Which word says how the interval of a gain was taken."""
    if len(value.runs) > 1:
        return "s_how_seeds"
    return "s_how_paired" if value.gain_paired else "s_how_independent"


def _points(sheet: Sheet, quality: Quality) -> str:
    """The unit of a difference of shares, with its space; '' for all else."""
    return f"\u00a0{sheet.words.say('points')}" if quality.fraction else ""


def _difference(sheet: Sheet, value: float, quality: Quality) -> str:
    """A difference with its sign; of shares, in points."""
    return sheet.names.figures.measured(value, math.nan, quality, sign=True)
