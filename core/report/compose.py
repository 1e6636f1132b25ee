"""From a Material to a Document: which tables, figures and sentences there are, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

from core import __version__
from core.charts_frames import Quality
from core.charts_tables import export
from core.errors import InputError
from core.report import figures, tables, trace
from core.report.bibliography import KNOWN, references_of
from core.report.discussion import discussion
from core.report.document import (
    LANGUAGES,
    Block,
    Document,
    Figure,
    Heading,
    Items,
    Language,
    Ref,
    Table,
    Text,
)
from core.report.facts import dense_facts, family_facts, mask_sizes, recovery_facts, speed_facts
from core.report.material import Family, Material, Numbers
from core.report.names import Names, short_model
from core.report.protocol import methods_section
from core.report.tables import Sheet
from core.report.words import Words

MOST_QUALITIES = 3
"""Qualities that sentences and figures are about: perplexities and the mean over tasks (or the first tasks)."""
_ENVIRONMENT, _PROTOCOLS, _TRACE, _NOT_MADE = "tab:environment", "tab:protocols", "tab:runs", "tab:not-made"


def compose(material: Material, language: Language = "en", *, mark_tasks: bool = False) -> Document:
    """The report of a selection. InputError for an unknown language, or where nothing of it was measured."""
    if language not in LANGUAGES:
        raise InputError(f"There are no words for {language!r}.", f"Choose {' or '.join(LANGUAGES)}.")
    words = Words(language)
    if material.points.empty:
        raise InputError(words.say("nothing"), "Choose runs that are complete and were evaluated.")
    numbers = Numbers(material, mark_tasks=mark_tasks)
    sheet = Sheet(numbers, Names(material, numbers.groups, words), words)
    told = _told(sheet)
    say = words.say
    blocks: list[Block] = [
        Heading(say("methods")),
        *methods_section(sheet, mark_tasks=mark_tasks),
        Heading(say("environment"), 2),
        trace.environment_table(sheet, _ENVIRONMENT),
        Heading(say("results")),
        *_results(sheet, told),
        Heading(say("discussion")),
        *discussion(sheet, told, _decode(sheet, told), {"environment": _ENVIRONMENT, "not_made": _NOT_MADE}),
        Heading(say("appendix")),
        trace.protocol_table(sheet, _PROTOCOLS),
        trace.trace_table(sheet, _TRACE, _PROTOCOLS),
    ]
    if material.not_made:
        blocks.append(trace.not_made_table(sheet, material.not_made, _NOT_MADE))
    papers = [*references_of(material.methods.values()).values(), *KNOWN.values()]
    references = tuple({reference.key: reference for reference in papers}.values())
    return Document(say("title", name=material.title), language, _lead(sheet), tuple(blocks), references,
                    export(material.points))  # fmt: skip


def _lead(sheet: Sheet) -> Text:
    runs = sheet.material.runs
    say = sheet.words.say
    count = say("one_run") if len(runs) == 1 else say("runs", count=len(runs))
    days = sorted({_day(sheet, moment) for moment in runs["finished"].dropna()})
    if not days:
        when = "–"
    elif len(days) == 1:
        when = say("on_day", first=days[0][1])
    else:
        when = say("between_days", first=days[0][1], last=days[-1][1])
    models = sheet.words.listing(list(dict.fromkeys(short_model(str(name)) for name in runs["model"])))
    lead = sheet.words.fill("lead", runs=count, model=models, when=when, version=__version__, trace=Ref(_TRACE))
    return (*([f"{sheet.material.note.strip()} "] if sheet.material.note.strip() else []), *lead)


def _day(sheet: Sheet, moment: object) -> tuple[str, str]:
    """A day to sort by, and as the language writes it."""
    day = str(moment)[:10]
    year, month, date = day.split("-")
    return day, f"{int(date)}. {int(month)}. {year}" if sheet.words.language == "de" else day


def _told(sheet: Sheet) -> list[Quality]:
    """The qualities that are told in sentences and drawn: of each corpus one way of measuring, the first."""
    main = sheet.main_qualities()
    perplexities = list({each.task: each for each in reversed(main) if each.metric == "perplexity"}.values())[::-1][:2]
    tasks = [each for each in main if each.is_task] or sheet.task_qualities()
    return [*perplexities, *tasks[: MOST_QUALITIES - len(perplexities)]]


def _decode(sheet: Sheet, told: Sequence[Quality]) -> Quality | None:
    """Decoding speed, by the protocol by which most rows that were judged were timed; else that of most values."""
    known = [
        quality
        for chosen in tables.speed_qualities(sheet)
        for quality in chosen
        if quality.metric == "decode_tokens_per_second"
    ]
    judged = [group for group in sheet.numbers.groups if any(sheet.numbers.value(group, each) for each in told)]
    return max(known, key=lambda each: sum(bool(sheet.numbers.value(group, each)) for group in judged), default=None)


# ------------------------------------------------------------------------------------------------------------- results


def _results(sheet: Sheet, told: Sequence[Quality]) -> list[Block]:
    main = sheet.main_qualities()
    found: list[Block] = []
    reference = _table(sheet, "dense", main)
    if reference:
        found += [Heading(sheet.words.say("family_dense"), 2), *reference, *_items(dense_facts(sheet, told))]
    for family in ("cut", "mask", "depth"):
        made = _table(sheet, family, main)
        if made:
            drawn = _curves(sheet, told, family)
            heading = Heading(sheet.words.say(f"family_{family}"), 2)
            found += [heading, *made, *drawn, *_items(family_facts(sheet, family, told))]
    return [*found, *_recovery(sheet, told), *_tasks(sheet), *_speed(sheet, told)]


def _table(sheet: Sheet, family: Family, chosen: Sequence[Quality]) -> list[Table]:
    made = tables.family_table(sheet, family, chosen, f"tab:{family}", sheet.words.say(f"c_{family}"))
    return [made] if made is not None else []


def _items(said: Sequence[Text]) -> list[Block]:
    return [Items(tuple(said))] if said else []


def _curves(sheet: Sheet, told: Sequence[Quality], family: Family) -> list[Figure]:
    """Curves stand with the real cuts, whole layers too, and with masks; with whole layers where only those are cut."""
    if family == "depth" and sheet.numbers.of("cut"):
        return []
    masks = family == "mask"
    stem = "fig:masks" if masks else "fig:cuts"
    made = [figures.curve(sheet, quality, f"{stem}-{place}", masks=masks) for place, quality in enumerate(told, 1)]
    return [each for each in made if each is not None]


def _recovery(sheet: Sheet, told: Sequence[Quality]) -> list[Block]:
    found: list[Block] = []
    for place, quality in enumerate(told, 1):
        table = tables.recovery_table(sheet, quality, f"tab:recovery-{place}")
        drawn = figures.pairs(sheet, quality, f"fig:recovery-{place}")
        if table is not None:
            found += [table, *([drawn] if drawn is not None else []), *_items(recovery_facts(sheet, quality))]
    return [Heading(sheet.words.say("family_recovered"), 2), *found] if found else []


def _tasks(sheet: Sheet) -> list[Block]:
    chosen = sheet.task_qualities()
    families: tuple[Family, ...] = ("dense", "cut", "mask", "depth", "recovered")
    made = [
        tables.family_table(sheet, family, chosen, f"tab:tasks-{family}", sheet.words.say(f"c_tasks_{family}"))
        for family in families
    ]
    known = [each for each in made if each is not None]
    return [Heading(sheet.words.say("family_tasks"), 2), *known] if known else []


def _speed(sheet: Sheet, told: Sequence[Quality]) -> list[Block]:
    found: list[Block] = []
    for place, chosen in enumerate(tables.speed_qualities(sheet), 1):
        table = tables.speed_table(sheet, chosen, f"tab:speed-{place}", _devices(sheet, chosen))
        if table is not None:
            found += [table, *_items(speed_facts(sheet, chosen))]
    decode = _decode(sheet, told)
    if decode is not None:
        batch = str(tables.protocol_of(sheet, decode).get("batch", "–"))
        for place, quality in enumerate(told, 1):
            drawn = figures.tradeoff(sheet, quality, decode, f"fig:speed-{place}", batch, _devices(sheet, [decode]))
            if drawn is not None:
                found.append(drawn)
        found += _items(mask_sizes(sheet))
    return [Heading(sheet.words.say("family_speed"), 2), *found] if found else []


def _devices(sheet: Sheet, chosen: Sequence[Quality]) -> str:
    """Names of the devices that these were timed on."""
    timed = {quality.key for quality in chosen if quality.task == "speed" and quality.metric != "macs"}
    points, runs = sheet.material.points, sheet.material.runs
    names = runs.loc[runs["id"].isin(points.loc[points["quality"].isin(timed), "run_id"]), "device_name"].dropna()
    return sheet.words.listing(list(dict.fromkeys(map(str, names)))) or "–"
