"""What the tables say together: counts over sizes and families, and what limits the numbers. No causes, no advice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from core.charts_frames import Quality
from core.charts_words import mapping
from core.report.document import Block, Items, Paragraph, Ref, Text
from core.report.facts import contrast, front, named, value_words
from core.report.material import Group, Numbers, Value
from core.report.protocol import limits_of_tasks
from core.report.tables import Sheet, best_of, blocks, gain_interval, seed_count
from core.report.trace import environments
from core.report.versus import versus

RANDOM = ("random", "random_weights", "random_layers")
SHARES = (0.1, 0.2, 0.3)


def discussion(sheet: Sheet, chosen: Sequence[Quality], decode: Quality | None, refs: dict[str, str]) -> list[Block]:
    """Counted statements by quality, then the limits. refs: labels of the tables of runs not made and environments."""
    said: list[Text] = []
    for quality in chosen:
        said += _wins(sheet, quality)
        said += _against_random(sheet, quality)
        said += _closest(sheet, quality)
        said += _zeros(sheet, quality)
        said += versus(sheet, quality, decode)
        said += _recovered(sheet, quality)
        cuts = [group for group in sheet.numbers.of("cut", "depth", "recovered") if not group.masked]
        fronts = [front(sheet, cuts, quality, None)]
        if decode is not None:
            fronts.append(front(sheet, sheet.numbers.groups, quality, decode))
        said += [each for each in fronts if each is not None]
        said += _guessing(sheet, quality)
    limits = _limits(sheet, refs) or [sheet.words.fill("l_none")]
    return [
        Paragraph(sheet.words.fill("d_intro")),
        *([Items(tuple(said))] if said else []),
        Paragraph(sheet.words.fill("d_limits")),
        Items(tuple(limits)),
    ]


def _wins(sheet: Sheet, quality: Quality) -> list[Text]:
    counts: Counter[str] = Counter()
    compared = 0
    for family in ("cut", "mask", "depth"):
        for block in blocks(sheet.numbers.of(family)):
            best = best_of(sheet.numbers, block, quality)
            compared += bool(best)
            counts.update({sheet.names.in_block(group) for group in best})
    if compared < 2:
        return []
    said = [sheet.words.say("d_win", method=name, count=count) for name, count in counts.most_common()]
    wins = sheet.words.listing(said[:6])
    return [sheet.words.fill("d_wins", quality=sheet.names.quality(quality), wins=wins, blocks=str(compared))]


def _against_random(sheet: Sheet, quality: Quality) -> list[Text]:
    better, clear, total, worse = 0, 0, 0, []
    for family in ("cut", "mask", "depth"):
        for block in blocks(sheet.numbers.of(family)):
            floor = next((group for group in block if group.method in RANDOM), None)
            for group in block if floor is not None else []:
                if group.method in RANDOM or floor is None:
                    continue
                found = contrast(sheet, floor, group, quality)
                if found is None:
                    continue
                good = found.above != quality.lower_is_better
                total, better, clear = total + 1, better + good, clear + (good and found.clear)
                worse += [] if good else [sheet.names.label(group)]
    if not total:
        return []
    but = sheet.words.say("d_exceptions", labels=named(sheet, worse)) if worse else ""
    return [
        sheet.words.fill(
            "d_random", quality=sheet.names.in_sentence(quality), better=str(better), all=str(total), clear=str(clear),
            exceptions=but,
        )
    ]  # fmt: skip


def _closest(sheet: Sheet, quality: Quality) -> list[Text]:
    groups = [group for group in sheet.numbers.of("cut", "depth", "recovered") if not group.masked]
    known = [(value, group) for group in groups if (value := sheet.numbers.value(group, quality)) is not None]
    said, before = [], None
    for share in SHARES:
        rows = [each for each in known if each[1].removed >= share and math.isfinite(each[0].mean)]
        if len(rows) < 2:
            continue
        pick = min if quality.lower_is_better else max
        value, group = pick(rows, key=lambda each: each[0].mean)
        if group == before:
            continue
        before, figures = group, sheet.names.figures
        said.append(
            sheet.words.fill(
                "d_closest", quality=sheet.names.in_sentence(quality), share=figures.plain_percent(share),
                label=sheet.names.label(group), value=figures.measured(value.mean, value.stderr, quality),
                dense=figures.measured(value.dense, math.nan, quality),
            )
        )  # fmt: skip
    return said


def _zeros(sheet: Sheet, quality: Quality) -> list[Text]:
    """The best real cut of each size, and the best masked row that lacks as much of the model; the largest in full."""
    lower = quality.lower_is_better
    masks = [(group, value.mean) for group in sheet.numbers.of("mask") if (value := _finite(sheet, group, quality))]
    pairs = []
    for block in blocks(sheet.numbers.of("cut")):
        cuts = [(group, value.mean) for group in block if (value := _finite(sheet, group, quality))]
        if not cuts:
            continue
        cut, reached = (min if lower else max)(cuts, key=lambda each: each[1])
        rest = [(group, mean) for group, mean in masks if group.removed >= cut.removed and group.model == cut.model]
        if rest:
            mask, zeros = (min if lower else max)(rest, key=lambda each: each[1])
            pairs.append((cut, mask, (zeros < reached) == lower and zeros != reached))
    if len(pairs) < 2:
        return []
    cut, mask, _ = max(pairs, key=lambda each: each[0].removed)
    figures = sheet.names.figures
    return [
        sheet.words.fill(
            "d_zeros", quality=sheet.names.quality(quality), count=str(sum(better for *_, better in pairs)),
            all=str(len(pairs)), cut=sheet.names.label(cut), removed=figures.percent(cut.removed, 1),
            reached=value_words(sheet, cut, quality), mask=sheet.names.label(mask),
            zeros=figures.percent(mask.removed, 1), kept=value_words(sheet, mask, quality),
        )
    ]  # fmt: skip


def _finite(sheet: Sheet, group: Group, quality: Quality) -> Value | None:
    value = sheet.numbers.value(group, quality)
    return value if value is not None and math.isfinite(value.mean) else None


def _recovered(sheet: Sheet, quality: Quality) -> list[Text]:
    values = [sheet.numbers.value(group, quality) for group in sheet.numbers.of("recovered")]
    known = [value for value in values if value is not None and math.isfinite(value.gain)]
    if not known:
        return []
    good = [value for value in known if (value.gain < 0) == quality.lower_is_better and value.gain != 0]
    clear = sum(not low <= 0 <= high for low, high in map(gain_interval, good))
    return [
        sheet.words.fill(
            "d_recovered", quality=sheet.names.in_sentence(quality, article=True), count=str(len(good)),
            all=str(len(known)), clear=str(clear),
        )
    ]  # fmt: skip


def _guessing(sheet: Sheet, quality: Quality) -> list[Text]:
    if quality.measured_chance is None:
        return []
    near = []
    for group in sheet.numbers.groups:
        value = sheet.numbers.value(group, quality)
        if value is not None and abs(value.mean - quality.measured_chance) <= 2 * value.stderr:
            near.append(sheet.names.label(group))
    said = sheet.words.say("s_guessing", labels=named(sheet, near))
    return [(f"{sheet.names.quality(quality)}: {said[0].lower()}{said[1:]}",)] if near else []


# -------------------------------------------------------------------------------------------------------------- limits


def _limits(sheet: Sheet, refs: dict[str, str]) -> list[Text]:
    fill, figures = sheet.words.fill, sheet.names.figures
    found: list[Text] = []
    drawn = [group for group in sheet.numbers.groups if _by_chance(sheet, group)]
    single = [group for group in drawn if seed_count(sheet, group) == 1]
    if single:
        labels = named(sheet, [sheet.names.label(group) for group in single])
        found.append(fill("l_one_seed", count=str(len(single)), all=str(len(drawn)), labels=labels))
    for limit, points in limits_of_tasks(sheet):
        found.append(fill("l_limit", n=str(limit), points=figures.fixed(points, 0)))
    usual = [quality for quality in sheet.numbers.qualities if quality.primary]
    ways = Counter((quality.task, quality.metric) for quality in usual)
    for quality in usual:
        times = ways.pop((quality.task, quality.metric), 0)
        if times > 1:
            name = sheet.names.plain_quality(quality, short=False)
            found.append(fill("l_mixed", quality=name, count=str(times)))
    found += _signed(sheet, "†", "l_leak") + _signed(sheet, "‡", "l_disturbed")
    bare = [group for group in sheet.numbers.groups if group.family != "dense" and not _held(sheet, group)]
    if bare:
        found.append(fill("l_no_dense", labels=named(sheet, [sheet.names.label(group) for group in bare])))
    known = len(environments(sheet.material))
    if known > 1:
        found.append(fill("l_devices", count=str(known), table=Ref(refs["environment"])))
    if sheet.material.not_made:
        found.append(fill("l_not_made", count=str(len(sheet.material.not_made)), table=Ref(refs["not_made"])))
    return found + _diverged(sheet)


def _by_chance(sheet: Sheet, group: Group) -> bool:
    """Whether the seed decides what a group's runs came to."""
    experiment = sheet.material.experiments[group.runs[0]]
    pruning = experiment.pruning
    method = sheet.material.methods.get(group.method)
    if pruning is None or method is None:
        return False
    return experiment.recovery is not None or method.seeded_for(pruning.options) or pruning.reads_text


def _held(sheet: Sheet, group: Group) -> bool:
    return any(sheet.material.baselines.get(run) for run in group.runs)


def _signed(sheet: Sheet, sign: str, key: str) -> list[Text]:
    numbers: Numbers = sheet.numbers
    labels = []
    for group in numbers.groups:
        values = [numbers.value(group, quality) for quality in numbers.qualities]
        if any(value is not None and sign in value.signs for value in values):
            labels.append(sheet.names.label(group))
    return [sheet.words.fill(key, labels=named(sheet, labels))] if labels else []


def _diverged(sheet: Sheet) -> list[Text]:
    labels = []
    for group in sheet.numbers.of("recovered"):
        for run in group.runs:
            training = mapping(mapping(sheet.material.results.get(run, {}).get("recovery")).get("training"))
            if training.get("diverged"):
                labels.append(sheet.names.label(group))
    return [sheet.words.fill("l_diverged", labels=named(sheet, labels))] if labels else []
