"""The methods section: what was compared, how it was cut, trained and judged, from stored settings and protocols."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from core.charts_frames import Quality
from core.charts_words import canonical, mapping
from core.evaluation.averages import SEVEN_METRICS
from core.evaluation.chance import certainty
from core.experiment import Recovery
from core.report.bibliography import KNOWN, references_of
from core.report.document import Block, Cite, Inline, Items, Paragraph, Text
from core.report.material import UNPRUNED, Group
from core.report.names import TASKS, file_of, setting_words
from core.report.tables import SPEED_METRICS, Sheet, protocol_of, seed_count
from core.report.trace import protocol_ids


def methods_section(sheet: Sheet, *, mark_tasks: bool) -> list[Block]:
    """Paragraphs on models and methods, then a list of what was measured how, then on statistics."""
    return [
        Paragraph(_joined([*_models(sheet), *_compared(sheet)])),
        Paragraph(_joined([*_cuts(sheet), *_calibrations(sheet), *_extras(sheet)])),
        *([Items(tuple(_recoveries(sheet)))] if sheet.numbers.of("recovered") else []),
        Items((*_perplexities(sheet), *_tasks(sheet), *_fidelity(sheet), *_speed(sheet))),
        Paragraph(_joined(_statistics(sheet, mark_tasks=mark_tasks))),
    ]


def _joined(sentences: Iterable[Text]) -> Text:
    found: list[Inline] = []
    for sentence in sentences:
        found += [*([" "] if found else []), *sentence]
    return tuple(found)


def _cut(sheet: Sheet) -> list[Group]:
    return [group for group in sheet.numbers.groups if group.family not in UNPRUNED]


# -------------------------------------------------------------------------------------------------------------- models


def _models(sheet: Sheet) -> list[Text]:
    """Each model once, with the number formats that it was measured in."""
    found: dict[str, Text] = {}
    figures = sheet.names.figures
    dtypes: dict[str, list[str]] = {}
    for _, row in sheet.material.runs.iterrows():
        key = canonical([str(row["model"]), str(row["fingerprint"])])
        dtypes[key] = list(dict.fromkeys([*dtypes.get(key, []), str(row["dtype"])]))
        environment = mapping(sheet.material.results.get(str(row["id"]), {}).get("environment"))
        revision = mapping(environment.get("model")).get("revision")
        layers, parameters = row["model_layers"], row["params_before"]
        found[key] = sheet.words.fill(
            "m_model",
            model=str(row["model"]).removeprefix("builtin:"),
            layers="–" if pd.isna(layers) else str(int(layers)),
            parameters=figures.integer(math.nan if pd.isna(parameters) else float(parameters)),
            revision=sheet.words.say("m_revision", value=revision) if revision else "",
            fingerprint="–" if pd.isna(row["fingerprint"]) else str(row["fingerprint"])[:16],
            dtype=sheet.words.listing(sorted(dtypes[key])),
        )
    return list(found.values())


def _compared(sheet: Sheet) -> list[Text]:
    used = dict.fromkeys(group.method for group in _cut(sheet))
    known = references_of(sheet.material.methods.values())
    titles: list[Text] = []
    for name in used:
        method = sheet.material.methods.get(name)
        titles.append((method.title, Cite((known[name].key,))) if method is not None else (name,))
    return [sheet.words.fill("m_methods", methods=_and(sheet, titles))] if titles else []


def _and(sheet: Sheet, parts: list[Text]) -> Text:
    found: list[Inline] = []
    for place, part in enumerate(parts):
        joint = "" if not place else f" {sheet.words.say('and')} " if place == len(parts) - 1 else ", "
        found += [*([joint] if joint else []), *part]
    return tuple(found)


def _cuts(sheet: Sheet) -> list[Text]:
    say, groups = sheet.words.say, _cut(sheet)
    if not groups:
        return []
    where = list(dict.fromkeys(sheet.names.where(group) for group in groups))
    targets = {group.settings.get("pruning.target") for group in groups}
    target = say("m_target") if "model" in targets else ""
    found = [sheet.words.fill("m_where", where=sheet.words.listing(where, "or"), target=target)]
    width = [group for group in groups if group.kind == "width"]
    if width:
        heads = dict.fromkeys(say(f"m_{group.settings['pruning.heads']}") for group in width)
        rounded = sorted({str(group.settings["pruning.round_to"]) for group in width}, key=int)
        words = [" / ".join(heads), " / ".join(rounded)]
        found.append(sheet.words.fill("m_heads", heads=words[0], round_to=words[1]))
    if any(group.masked for group in groups):
        found.append(sheet.words.fill("m_masks"))
    return found


def _calibrations(sheet: Sheet) -> list[Text]:
    found: dict[str, tuple[Mapping[str, Any], dict[str, None]]] = {}
    for run, experiment in sheet.material.experiments.items():
        pruning = experiment.pruning
        if pruning is None or not pruning.reads_text or run not in _ids(sheet):
            continue
        own = pruning.calibration.model_dump(mode="json", exclude={"seed", "batch_size"})
        method = sheet.material.methods.get(pruning.method)
        named = found.setdefault(canonical(own), (own, {}))[1]
        named[method.title if method is not None else pruning.method] = None
    return [
        sheet.words.fill(
            "m_calibration",
            methods=sheet.words.listing(list(names)),
            samples=str(own["samples"]),
            length=str(own["length"]),
            corpus=file_of(str(own["path"] or own["corpus"])),
            split=str(own["split"]),
        )
        for own, names in found.values()
    ]


def _ids(sheet: Sheet) -> set[str]:
    return set(sheet.material.runs["id"].astype(str))


def _extras(sheet: Sheet) -> list[Text]:
    groups, found = _cut(sheet), []
    if any(group.settings.get("pruning.allocation") == "owl" for group in groups):
        found.append(sheet.words.fill("m_allocation_owl", cite=Cite((KNOWN["owl"].key,))))
    if any(group.settings.get("pruning.reconstruct") for group in groups):
        found.append(sheet.words.fill("m_reconstruct"))
    counts = sorted({seed_count(sheet, group) for group in sheet.numbers.groups} - {1})
    if counts:
        numbers = sheet.words.listing([str(count) for count in counts])
        found.append(sheet.words.fill("m_seeds", counts=numbers))
    else:
        found.append(sheet.words.fill("m_no_seeds"))
    return found


def _recoveries(sheet: Sheet) -> list[Text]:
    """Each way of training once, with every setting that it uses."""
    found: dict[str, Text] = {}
    for group in sheet.numbers.of("recovered"):
        recovery = Recovery.model_validate(group.settings["recovery"])
        own = recovery.model_dump(mode="json")
        kind, data = own.pop("kind"), own.pop("data") | {"prompt_tokens": recovery.prompt}
        unused = recovery.inapplicable()
        said = [f"{file_of(str(data.get('path') or data.get('corpus') or 'passages'))} ({data.get('format')})"]
        said += [setting_words(name, value, sheet.names.figures) for name, value in data.items()
                 if name not in ("path", "corpus", "format") and value is not None]  # fmt: skip
        said += [setting_words(name, value, sheet.names.figures) for name, value in own.items()
                 if name not in unused and value is not None and value is not False]  # fmt: skip
        cite = Cite((KNOWN[kind].key,))
        found[canonical([kind, said])] = sheet.words.fill(f"m_{kind}", cite=cite, settings=", ".join(said))
    return list(found.values())


# ------------------------------------------------------------------------------------------------------------ measures


def _perplexities(sheet: Sheet) -> list[Text]:
    ids, found = protocol_ids(sheet), []
    for quality in sheet.numbers.qualities:
        if quality.metric != "perplexity":
            continue
        own = protocol_of(sheet, quality)
        split = own.get("split")
        found.append(sheet.words.fill(
            "m_perplexity",
            corpus=quality.task.partition("/")[2],
            split=sheet.words.say("m_split", value=split) if split else "",
            window=str(own.get("window", "–")),
            windows=_count(sheet, own.get("windows")),
            tokens=_count(sheet, own.get("tokens")),
            bos=sheet.names.protocol_word("bos", bool(own.get("bos"))),
            protocol=ids[quality.protocol_key],
        ))  # fmt: skip
    return found


def _count(sheet: Sheet, value: Any) -> str:
    return sheet.names.figures.integer(value) if isinstance(value, int | float) else "–"


def _tasks(sheet: Sheet) -> list[Text]:
    """One sentence for tasks that were scored in the same way; how the metrics count; the mean."""
    ids = protocol_ids(sheet)
    alike: dict[str, tuple[dict[str, Any], list[Quality]]] = {}
    tasks = [each for each in sheet.numbers.qualities if each.is_task and not each.is_mean and each.primary]
    for quality in tasks:
        own = protocol_of(sheet, quality)
        shared = {key: own.get(key) for key in ("harness", "shots", "limit", "chat_template", "dtype", "device")}
        alike.setdefault(canonical(shared), (shared, []))[1].append(quality)
    found: list[Text] = []
    for shared, members in alike.values():
        shots, limit = shared["shots"] or 0, shared["limit"]
        harness = str(shared["harness"] or "").removeprefix("lm_eval ")
        names = [TASKS.get(each.task, each.task) for each in members]
        say = sheet.words.say
        parts: dict[str, Inline | Text] = {
            "harness": say("m_harness", value=harness) if harness else "",
            "cite": Cite((KNOWN["harness"].key,)),
            "tasks": sheet.words.listing(names),
            "protocols": ", ".join(dict.fromkeys(ids[each.protocol_key] for each in members)),
            "documents": say("m_first_documents", value=limit) if limit else say("m_all_documents"),
            "template": say("m_template") if shared["chat_template"] else "",
        }
        if shots:
            parts["shots"] = str(shots)
        found.append(sheet.words.fill("m_tasks_shots" if shots else "m_tasks", **parts))
    return [*found, *_metrics(sheet, tasks)]


def _metrics(sheet: Sheet, tasks: list[Quality]) -> list[Text]:
    normed = [TASKS.get(each.task, each.task) for each in tasks if each.metric == "acc_norm"]
    others = [TASKS.get(each.task, each.task) for each in tasks if each.metric == "acc"]
    found: list[Text] = []
    if normed and others:
        lists = [sheet.words.listing(list(dict.fromkeys(names))) for names in (normed, others)]
        found.append(sheet.words.fill("m_normalised", tasks=lists[0], others=lists[1]))
    if any(each.is_mean for each in sheet.numbers.qualities):
        found.append(sheet.words.fill("m_mean"))
    return found


def _fidelity(sheet: Sheet) -> list[Text]:
    ids, found = protocol_ids(sheet), []
    for quality in sheet.numbers.qualities:
        if quality.metric == "kl_per_token":
            own = protocol_of(sheet, quality)
            corpus = str(own.get("corpus") or quality.task.partition("/")[2])
            name = ids[quality.protocol_key]
            told = {key: str(own.get(key, "–")) for key in ("window", "dtype")}
            found.append(sheet.words.fill("m_fidelity", corpus=corpus, protocol=name, **told))
    return found


def _speed(sheet: Sheet) -> list[Text]:
    ids = protocol_ids(sheet)
    found: dict[str, Text] = {}
    points = sheet.material.points
    for quality in sheet.numbers.qualities:
        if quality.metric not in SPEED_METRICS or "tokens_per_second" not in quality.metric:
            continue
        own = protocol_of(sheet, quality)
        n = points.loc[points["quality"] == quality.key, "n"].dropna().astype(int)
        told = {name: str(own.get(name, "–")) for name in ("prompt", "decoded", "batch", "dtype", "device")}
        kernels = quality.task.partition("/")[2]
        told["kernels"] = sheet.words.say("m_kernels", kernels=kernels) if kernels else ""
        counts = "–" if n.empty else f"{n.min()}" if n.min() == n.max() else f"{n.min()}–{n.max()}"
        found.setdefault(
            quality.protocol_key, sheet.words.fill("m_speed", n=counts, protocol=ids[quality.protocol_key], **told)
        )
    return list(found.values())


def _statistics(sheet: Sheet, *, mark_tasks: bool) -> list[Text]:
    say, fill = sheet.words.say, sheet.words.fill
    tasks = say("m_tasks_marked" if mark_tasks else "m_tasks_not_marked")
    cites = {name: Cite((KNOWN[name].key,)) for name in ("mcnemar", "holm")}
    found = [fill("m_statistics", tasks=tasks, **cites), fill("m_bold")]
    origins = sheet.material.origins
    if origins:
        count = say("one_run") if len(origins) == 1 else say("runs", count=len(origins))
        found.append(fill("m_origin", runs=count, origins="; ".join(dict.fromkeys(origins.values()))))
    return found


def limits_of_tasks(sheet: Sheet) -> list[tuple[int, float]]:
    """Limits that tasks were scored with, and half the width of their 95 % intervals in points."""
    limits = {
        limit
        for quality in sheet.numbers.qualities
        if quality.task in SEVEN_METRICS or quality.is_task
        if isinstance(limit := protocol_of(sheet, quality).get("limit"), int) and not quality.is_mean
    }
    return [(limit, 100 * certainty(limit)) for limit in sorted(limits)]
