"""Tables of numbers: by family and size, of recovery, of speed. core/report/trace.py has those that trace them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from core.charts_frames import Z95, Quality
from core.charts_words import mapping
from core.report.document import Cell, Column, Part, Row, Table
from core.report.material import UNPRUNED, Family, Group, Material, Numbers, Value, seeds_of
from core.report.names import Names
from core.report.numbers import NONE, scale
from core.report.words import Words

SPEED_METRICS = (
    "prefill_tokens_per_second", "decode_tokens_per_second", "first_token_milliseconds", "peak_memory_bytes", "macs",
)  # fmt: skip
_TIMES = ("prefill_tokens_per_second", "decode_tokens_per_second")
MOST_TASKS = 3
"""Single tasks that still stand in the main tables."""


@dataclass(frozen=True)
class Sheet:
    """What all tables are made with."""

    numbers: Numbers
    names: Names
    words: Words

    @property
    def material(self) -> Material:
        return self.numbers.material

    def main_qualities(self) -> list[Quality]:
        """Columns of the main tables: perplexity, the mean over tasks (else a few tasks), fidelity as most have it."""
        known = self.numbers.qualities
        tasks = [each for each in known if each.is_task and not each.is_mean and each.primary]
        means = [each for each in known if each.is_mean]
        own = means or (tasks if len(tasks) <= MOST_TASKS else [])
        counts = Counter(map(str, self.material.points["quality"]))
        drift = [
            max((each for each in known if each.metric == metric), key=lambda each: counts[each.key], default=None)
            for metric in ("kl_per_token", "top1_agreement")
        ]
        perplexities = [each for each in known if each.metric == "perplexity"]
        return [*perplexities, *own, *(each for each in drift if each is not None)]

    def task_qualities(self) -> list[Quality]:
        """Columns of the tables of single tasks; none where they stand in the main ones."""
        tasks = [each for each in self.numbers.qualities if each.is_task and not each.is_mean and each.primary]
        return [] if all(each in self.main_qualities() for each in tasks) else tasks


def family_table(sheet: Sheet, family: Family, chosen: Sequence[Quality], label: str, caption: str) -> Table | None:
    """Groups of one family by size: what was removed, and the qualities that any of them has. None without any.

    Dense and quantised models are one table, by either name.
    """
    say = sheet.words.say
    members = sheet.numbers.of(*(UNPRUNED if family in UNPRUNED else (family,)))
    groups = [group for group in members if any(sheet.numbers.value(group, each) for each in chosen)]
    qualities = [each for each in chosen if sheet.numbers.have(groups, each)]
    if not groups:
        return None
    columns = [Column(say("method"), numeric=False), *_size_columns(sheet, family, groups)]
    columns += [Column(sheet.names.quality(each, short=True), sheet.names.unit(each)) for each in qualities]
    parts = []
    for block in blocks(groups):
        best = {each.key: best_of(sheet.numbers, block, each) for each in qualities}
        rows = [
            Row(
                (
                    Cell(_name(sheet, group)),
                    *_size_cells(sheet, family, group, groups),
                    *(_cell(sheet, group, each, group in best[each.key]) for each in qualities),
                ),
                group.runs,
            )
            for group in block
        ]
        parts.append(Part("" if family in UNPRUNED else sheet.names.size(block[0]), tuple(rows)))
    return Table(label, (caption,), tuple(columns), tuple(parts), _notes(sheet, groups, qualities))


def _size_columns(sheet: Sheet, family: Family, groups: Sequence[Group]) -> list[Column]:
    say = sheet.words.say
    columns = [Column(say("seeds"))] if any(seeds_text(sheet, group) for group in groups) else []
    if family not in UNPRUNED:
        columns.append(Column(say("zeros" if family == "mask" else "removed"), "%"))
    if family in (*UNPRUNED, "cut", "depth"):
        columns.append(Column(say("parameters"), say("millions")))
    if family in UNPRUNED:
        columns.append(Column(say("on_disk"), "MB"))
    return columns


def _size_cells(sheet: Sheet, family: Family, group: Group, groups: Sequence[Group]) -> list[Cell]:
    fixed = sheet.names.figures.fixed
    cells = [Cell(seeds_text(sheet, group))] if any(seeds_text(sheet, each) for each in groups) else []
    if family not in UNPRUNED:
        cells.append(Cell(fixed(100 * group.removed, 1)))
    if family in (*UNPRUNED, "cut", "depth"):
        cells.append(Cell(fixed(group.parameters / 1e6, 1)))
    if family in UNPRUNED:
        cells.append(Cell(fixed(group.bytes / 1e6, 0)))
    return cells


def seeds_text(sheet: Sheet, group: Group) -> str:
    """How many seeds a row is the mean of; '' for one."""
    count = seed_count(sheet, group)
    return str(count) if count > 1 else ""


def seed_count(sheet: Sheet, group: Group) -> int:
    """Different seeds among a group's runs: one model may have been judged, and timed, in runs of their own."""
    return len({seeds_of(sheet.material.experiments[run]) for run in group.runs})


def _name(sheet: Sheet, group: Group) -> str:
    return sheet.names.short(group) if group.family in UNPRUNED else sheet.names.in_block(group)


def _cell(sheet: Sheet, group: Group, quality: Quality, bold: bool) -> Cell:
    value = sheet.numbers.value(group, quality)
    if value is None:
        return Cell(NONE)
    return Cell(value_text(sheet, value, quality), bold)


def value_text(sheet: Sheet, value: Value, quality: Quality) -> str:
    """A value with its standard error, its signs and its mark."""
    shown = sheet.names.figures.measured(value.mean, value.stderr, quality)
    return " ".join(word for word in (shown + value.signs, value.mark) if word)


def blocks(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of the same size asked for, in order; dense and quantised models are one block."""
    ordered = list(groups)
    return [list(members) for _, members in groupby(ordered, key=lambda group: _block(group))]


def _block(group: Group) -> tuple[Any, ...]:
    return () if group.family in UNPRUNED else group.size


def best_of(numbers: Numbers, block: Sequence[Group], quality: Quality) -> list[Group]:
    """The best of a block; several where they are equal, none where there is nothing to compare."""
    known = [(value.mean, group) for group in block if (value := numbers.value(group, quality)) is not None]
    known = [each for each in known if math.isfinite(each[0])]
    if len(known) < 2 or block[0].family in UNPRUNED:
        return []
    pick = min if quality.lower_is_better else max
    top = pick(mean for mean, _ in known)
    return [group for mean, group in known if mean == top]


def _notes(sheet: Sheet, groups: Sequence[Group], qualities: Sequence[Quality]) -> tuple[str, ...]:
    values = [sheet.numbers.value(group, each) for group in groups for each in qualities]
    return _said(sheet, "".join(value.signs + value.mark for value in values if value is not None), "n_marks")


def _said(sheet: Sheet, signs: str, marked: str) -> tuple[str, ...]:
    """What the signs of a table say; `marked`: the sentence on ▲ and ▼."""
    found = [marked] if any(sign in signs for sign in "▲▼") else []
    found += [key for sign, key in (("†", "n_leak"), ("‡", "n_disturbed")) if sign in signs]
    return tuple(sheet.words.say(key) for key in found)


# ------------------------------------------------------------------------------------------------------------ recovery


def recovery_table(sheet: Sheet, quality: Quality, label: str) -> Table | None:
    """Dense, pruned, recovered, the gain with its interval, and what came back. None without a recovered run."""
    say, figures = sheet.words.say, sheet.names.figures
    known = [
        (group, value)
        for group in sheet.numbers.of("recovered")
        if (value := sheet.numbers.value(group, quality)) is not None and math.isfinite(value.before)
    ]
    if not known:
        return None
    several = any(seeds_text(sheet, group) for group, _ in known)
    columns = [
        Column(say("method"), numeric=False),
        *([Column(say("seeds"))] if several else []),
        Column(say("removed"), "%"),
        *(Column(say(name)) for name in ("dense_model", "pruned", "recovered", "gain", "interval")),
        Column(say("came_back"), "%"),
    ]
    rows = []
    for group, value in known:
        low, high = gain_interval(value)
        both = (_shown(sheet, each, quality) for each in (low, high))
        interval = f" {say('to')} ".join(both) if math.isfinite(low) else NONE
        gain = " ".join(
            word
            for word in (figures.measured(value.gain, value.gain_stderr, quality, sign=True), value.gain_mark)
            if word
        )
        cells = [
            figures.measured(value.dense, math.nan, quality),
            figures.measured(value.before, value.before_stderr, quality),
            figures.measured(value.mean, value.stderr, quality) + value.signs,
            gain,
            interval,
            figures.fixed(100 * value.regained, 0),
        ]
        seeds = [Cell(seeds_text(sheet, group))] if several else []
        removed = Cell(figures.fixed(100 * group.removed, 1) + (f" ({say('zeros_in')})" if group.masked else ""))
        rows.append(Row((Cell(sheet.names.label(group)), *seeds, removed, *map(Cell, cells)), group.runs))
    caption = say("c_recovered", quality=sheet.names.axis(quality))
    notes = _said(sheet, "".join(value.signs + value.gain_mark for _, value in known), "n_gain_marks")
    return Table(label, (caption,), tuple(columns), (Part("", tuple(rows)),), notes)


def half_width(freedom: float) -> float:
    """Half the width of a 95 % interval in standard errors: Student's t for few seeds, normal for the rest."""
    if not math.isfinite(freedom):
        return Z95
    from scipy.stats import t  # slow to import, and wanted only here

    return float(t.ppf(0.975, max(freedom, 1)))


def gain_interval(value: Value) -> tuple[float, float]:
    """95 % interval of the gain, in the quality's own unit; nan where no error is known."""
    reach = half_width(value.freedom) * value.gain_stderr
    return (value.gain - reach, value.gain + reach) if math.isfinite(reach) else (math.nan, math.nan)


def _shown(sheet: Sheet, value: float, quality: Quality) -> str:
    return sheet.names.figures.measured(value, math.nan, quality, sign=True)


# --------------------------------------------------------------------------------------------------------------- speed


def speed_qualities(sheet: Sheet) -> list[list[Quality]]:
    """Measures of speed and memory, those of one protocol together, the protocol that most values have first."""
    found: dict[str, list[Quality]] = {}
    counts: Counter[str] = Counter()
    for quality in sheet.numbers.qualities:
        if quality.metric in SPEED_METRICS and quality.task == "speed":
            found.setdefault(quality.protocol_key, []).append(quality)
    for row in sheet.material.points.itertuples():
        counts[str(row.protocol_key)] += 1
    kept = [each for each in found.values() if any(quality.metric in _TIMES for quality in each)]
    kept.sort(key=lambda each: -counts[each[0].protocol_key])
    if kept:  # counted from shapes, by a protocol of their own
        kept[0] += [each for each in sheet.numbers.qualities if each.metric == "macs" and each not in kept[0]][:1]
    for each in kept:
        each.sort(key=lambda quality: SPEED_METRICS.index(quality.metric))
    return kept


def kernel_qualities(sheet: Sheet, chosen: Sequence[Quality]) -> list[Quality]:
    """The same measures by the same protocol, but for kernels of their own (2:4)."""
    protocol = protocol_of(sheet, chosen[0])
    return [
        each
        for each in sheet.numbers.qualities
        if each.task.startswith("speed/") and each.metric in SPEED_METRICS
        and {key: value for key, value in protocol_of(sheet, each).items() if key != "kernels"} == protocol
    ]  # fmt: skip


def speed_table(sheet: Sheet, chosen: Sequence[Quality], label: str, device: str) -> Table | None:
    """Speed, memory and bytes of every group that was timed in one way, with how many times dense; beneath a group
    what it came to on kernels of its own."""
    say = sheet.words.say
    timed = [each for each in chosen if each.metric != "macs"]  # counted work is there for runs of other devices, too
    groups = [group for group in sheet.numbers.groups if any(sheet.numbers.value(group, each) for each in timed)]
    if not groups:
        return None
    columns = [Column(say("method"), numeric=False), Column(say("removed"), "%")]
    columns += [Column(sheet.names.plain_quality(each, short=True), sheet.names.unit(each)) for each in chosen]
    columns.append(Column(say("on_disk"), "MB"))
    special = {each.metric: each for each in kernel_qualities(sheet, chosen)}
    rows = []
    for group in groups:
        rows.append(_speed_row(sheet, group, sheet.names.label(group), chosen))
        if any(sheet.numbers.value(group, each) for each in special.values()):
            name = kernel_label(sheet, group, next(iter(special.values())))
            rows.append(_speed_row(sheet, group, name, [special.get(each.metric) for each in chosen]))
    batch = protocol_of(sheet, chosen[0]).get("batch")
    words = sheet.names.ways(chosen[0]) or sheet.names.protocol_word("batch", batch)
    notes = (say("n_times"), *_notes(sheet, groups, [*chosen, *special.values()]))
    caption = say("c_speed", protocol=words, device=device)
    return Table(label, (caption,), tuple(columns), (Part("", tuple(rows)),), notes)


def kernel_label(sheet: Sheet, group: Group, quality: Quality) -> str:
    """A row's name with the kernels that it ran on."""
    return sheet.words.say("on_kernels", label=sheet.names.label(group), kernels=quality.task.partition("/")[2])


def _speed_row(sheet: Sheet, group: Group, name: str, chosen: Sequence[Quality | None]) -> Row:
    figures, removed = sheet.names.figures, ""
    if group.family not in UNPRUNED:
        removed = figures.fixed(100 * group.removed, 1) + (f" ({sheet.words.say('zeros_in')})" if group.masked else "")
    cells = [Cell(NONE) if each is None else _speed_cell(sheet, group, each) for each in chosen]
    return Row((Cell(name), Cell(removed), *cells, Cell(figures.fixed(group.bytes / 1e6, 0))), group.runs)


def _speed_cell(sheet: Sheet, group: Group, quality: Quality) -> Cell:
    value = sheet.numbers.value(group, quality)
    if value is None:
        return Cell(NONE)
    text = value_text(sheet, value, quality)
    if quality.metric in _TIMES and group.family != "dense" and value.dense > 0:
        text += f" ({sheet.names.figures.fixed(value.mean / value.dense, 2)}×)"
    return Cell(text)


def times_dense(sheet: Sheet, group: Group, speed: Quality) -> float:
    """How many times as fast as the dense model beside which it was timed; nan where that is not known.

    Processes differ in speed among themselves, so what two runs measured is held against the dense model of each.
    """
    if group.family == "dense":
        return 1.0 if sheet.numbers.value(group, speed) is not None else math.nan
    value = sheet.numbers.value(group, speed)
    return value.mean / value.dense if value is not None and value.dense > 0 else math.nan


def protocol_of(sheet: Sheet, quality: Quality) -> dict[str, Any]:
    """The protocol that a quality was measured by, as it is stored."""
    rows = sheet.material.points
    found = rows.loc[rows["quality"] == quality.key, "protocol"]
    return mapping(found.iloc[0]) if len(found) else {}


def scaled(value: float, quality: Quality) -> float:
    """A value as tables and figures show it."""
    return scale(quality) * value
