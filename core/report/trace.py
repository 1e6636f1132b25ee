"""Tables that let a number be traced: environments, protocols, the run behind each row, and what was not made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from core.charts_words import canonical, mapping
from core.report.document import Cell, Column, Part, Ref, Row, Table, Text
from core.report.material import Material, NotMade, seeds_of
from core.report.numbers import NONE
from core.report.tables import Sheet, protocol_of


def environments(material: Material) -> list[tuple[dict[str, str], list[str]]]:
    """Different environments, flat, each with its runs; the one of most runs first."""
    found: dict[str, tuple[dict[str, str], list[str]]] = {}
    for run in material.runs["id"].astype(str):
        flat = _flat(mapping(material.results.get(run, {}).get("environment")))
        found.setdefault(canonical(flat), (flat, []))[1].append(run)
    return sorted(found.values(), key=lambda each: -len(each[1]))


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    left_out = ("hash", "model", "packages")
    flat = {str(key): str(value) for key, value in environment.items() if key not in left_out and value is not None}
    packages = mapping(environment.get("packages"))
    return flat | {str(key): str(value) for key, value in packages.items() if value is not None}


def environment_table(sheet: Sheet, label: str) -> Table:
    """A column for each environment, a row for each of its facts."""
    say = sheet.words.say
    known = environments(sheet.material)
    keys = list(dict.fromkeys(key for flat, _ in known for key in flat))
    share = 0.75 / max(len(known), 1)
    heads = [say("value")] if len(known) == 1 else [f"E{place}" for place in range(1, len(known) + 1)]
    columns = [Column(say("setting"), numeric=False, share=0.25),
               *(Column(head, numeric=False, share=share) for head in heads)]  # fmt: skip
    rows = [Row((Cell(key.replace("_", " ")), *(Cell(flat.get(key, NONE)) for flat, _ in known))) for key in keys]
    rows.append(Row((Cell(say("used_by")), *(Cell(str(len(runs))) for _, runs in known))))
    return Table(label, (say("c_environment"),), tuple(columns), (Part("", tuple(rows)),))


def protocol_ids(sheet: Sheet) -> dict[str, str]:
    """Protocol key → P1, P2, …, in the order of the qualities."""
    order = dict.fromkeys(quality.protocol_key for quality in sheet.numbers.qualities)
    return {key: f"P{place}" for place, key in enumerate(order, 1)}


def protocol_table(sheet: Sheet, label: str) -> Table:
    """Every protocol as it is stored, with what was measured by it."""
    say = sheet.words.say
    columns = (
        Column(say("protocol"), numeric=False, share=0.1),
        Column(say("quality"), numeric=False, share=0.25),
        Column(say("setting"), numeric=False, share=0.65),
    )
    rows = []
    for key, name in protocol_ids(sheet).items():
        measured = [each for each in sheet.numbers.qualities if each.protocol_key == key]
        what = dict.fromkeys(f"{each.task} {each.metric}" for each in measured)
        rows.append(Row((Cell(name), Cell(", ".join(what)), Cell(exact(protocol_of(sheet, measured[0])), code=True))))
    return Table(label, (say("c_protocols"),), columns, (Part("", tuple(rows)),))


def exact(protocol: Mapping[str, Any]) -> str:
    """A protocol, word for word."""
    said = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(protocol.items()))
    return ", ".join(said)


def trace_table(sheet: Sheet, label: str, protocols: str) -> Table:
    """Every run: which row it is in, its seed, what it was held against, when and how it was measured."""
    say = sheet.words.say
    several = len(environments(sheet.material)) > 1
    where = {run: place for place, (_, runs) in enumerate(environments(sheet.material), 1) for run in runs}
    shares = (0.28, 0.24, 0.07, 0.28, 0.13)
    titles = [say(name) for name in ("run", "row", "seeds", "against", "measured_with")]
    columns = tuple(Column(title, numeric=False, share=share) for title, share in zip(titles, shares, strict=True))
    rows = []
    used = _protocols_used(sheet)
    for group in sheet.numbers.groups:
        for run in group.runs:
            seed, calibration = seeds_of(sheet.material.experiments[run])
            seeds = str(seed) if seed == calibration else f"{seed}/{calibration}"
            how = ", ".join([*_ranges(used.get(run, [])), *([f"E{where[run]}"] if several else [])])
            dense = sheet.material.baselines.get(run)
            against = Cell("" if dense in (None, run) else str(dense), code=True)
            cells = (Cell(run, code=True), Cell(sheet.names.label(group)), Cell(seeds), against, Cell(how))
            rows.append(Row(cells, (run,)))
    caption: Text = sheet.words.fill("c_trace", protocols=Ref(protocols))
    return Table(label, caption, columns, (Part("", tuple(rows)),))


def _protocols_used(sheet: Sheet) -> dict[str, list[int]]:
    ids = {key: int(name[1:]) for key, name in protocol_ids(sheet).items()}
    found: dict[str, set[int]] = {}
    points: pd.DataFrame = sheet.material.points
    for run, key in zip(points["run_id"].astype(str), points["protocol_key"].astype(str), strict=True):
        if key in ids:
            found.setdefault(run, set()).add(ids[key])
    return {run: sorted(places) for run, places in found.items()}


def _ranges(places: Sequence[int]) -> list[str]:
    """1, 2, 3, 5 → `P1–P3`, `P5`."""
    found: list[list[int]] = []
    for place in places:
        if found and place == found[-1][-1] + 1:
            found[-1].append(place)
        else:
            found.append([place])
    return [f"P{each[0]}" if len(each) == 1 else f"P{each[0]}–P{each[-1]}" for each in found]


def not_made_table(sheet: Sheet, missing: Sequence[NotMade], label: str) -> Table:
    """Runs of the selection that have no numbers, with why."""
    say = sheet.words.say
    columns = tuple(
        Column(say(name), numeric=False, share=share) for name, share in (("name", 0.45), ("state", 0.2), ("why", 0.35))
    )
    rows = [Row((Cell(each.name), Cell(each.state.lower()), Cell(each.reason))) for each in missing]
    return Table(label, (say("c_not_made"),), columns, (Part("", tuple(rows)),))
