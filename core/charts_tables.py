"""The comparison as a table: numbers for sorting and export, and the texts that people read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from core.charts_frames import Quality, at_order
from core.charts_style import delta_words, measured, named, percent
from core.charts_words import detail_words, mapping, whole_protocol
from core.evaluation.paired import holm

DELTA = "Δ "
LEVEL = 0.05
LEAK = " †"
DISTURBED = " ‡"
"""Stands behind a value that calibration may have made better than it is."""
GUESSING, MAJORITY = "guessing", "majority"
"""Ids and names of the rows that say what accuracy is worth."""

Marks = Mapping[tuple[str, str], str]


def marks(table: pd.DataFrame, chosen: Sequence[Quality], *, tasks: bool = False) -> dict[tuple[str, str], str]:
    """(run id, quality key) → ▲ better or ▼ worse than the baseline, where the difference is significant at 5 %.

    Many differences at once are corrected by Holm, in families: all runs' means over tasks; all corpora's perplexities;
    each other metric; and, only with `tasks`, all single tasks. Without it no task is marked: among seven tasks and ten
    runs a few always look significant.
    """
    by_key = {quality.key: quality for quality in chosen}
    families: dict[str, dict[str, float]] = {}
    rows: dict[str, pd.Series] = {}
    compared = (table["run_id"] != table["baseline"]) & table["delta"].notna()
    for _, row in table[table["quality"].isin(list(by_key)) & compared].iterrows():
        quality = by_key[str(row["quality"])]
        single = quality.is_task and not quality.is_mean
        if not math.isfinite(row["delta"]) or not math.isfinite(row["p"]) or (single and not tasks):
            continue
        name = f"{row['run_id']} {quality.key}"
        family = "tasks" if single else "mean" if quality.is_mean else quality.metric
        families.setdefault(family, {})[name] = float(row["p"])
        rows[name] = row
    found = {}
    for p_values in families.values():
        for name, p in holm(p_values).items():
            row, quality = rows[name], by_key[str(rows[name]["quality"])]
            if p < LEVEL and row["delta"] != 0:
                better = (row["delta"] < 0) == quality.lower_is_better
                found[str(row["run_id"]), quality.key] = "▲" if better else "▼"
    return found


def comparison_table(
    table: pd.DataFrame, chosen: Sequence[Quality], *, tasks: bool = False, intervals: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(numbers, texts), one row a run, the dense model first; index: run id.

    Columns: Run, Method, Ratio, Removed, Parameters, then each quality's label and `Δ label`, its difference to the
    baseline where both were measured in the same way. Texts carry standard errors and units, differences with
    `intervals` their 95 % interval instead; differences end in their `marks`, values that leakage may flatter in †.
    Where the rates of tasks' documents are known, two more rows
    say what guessing, and always the most frequent answer, would score.
    """
    marked = marks(table, chosen, tasks=tasks)
    order = at_order(table.drop_duplicates("run_id")).set_index("run_id")
    numbers = pd.DataFrame(index=order.index)
    numbers["Run"] = order["label"]
    numbers["Method"] = order["series"]
    numbers["Ratio"] = order["ratio"]
    numbers["Removed"] = order["removed"]
    numbers["Parameters"] = order["parameters"]
    texts = numbers.astype(object)
    dense = order["kind"] == "dense"
    masks = order["kind"] == "mask"
    whole = dense | (order["kind"] == "quantised")
    texts["Ratio"] = ["" if w else percent(r) for r, w in zip(order["ratio"], whole, strict=True)]
    texts["Removed"] = ["" if w else _removed(r, m) for r, w, m in zip(order["removed"], whole, masks, strict=True)]
    texts["Parameters"] = [f"{p / 1e6:,.1f} M" if math.isfinite(p) else "–" for p in order["parameters"]]
    for quality in chosen:
        rows = table[table["quality"] == quality.key].set_index("run_id").reindex(order.index)
        numbers[quality.label] = rows["value"]
        cells = zip(rows["value"], rows["stderr"], rows["details"], strict=True)
        texts[quality.label] = [measured(v, s, quality) + leak(details) for v, s, details in cells]
        delta = rows["delta"].where(rows["baseline"] != rows.index)
        numbers[DELTA + quality.label] = delta
        pairs = zip(order.index, delta, rows["delta_stderr"], strict=True)
        texts[DELTA + quality.label] = [
            difference(d, s, quality, marked.get((str(run_id), quality.key), ""), interval=intervals)
            for run_id, d, s in pairs
        ]
    return _with_rates(numbers, texts, chosen)


def _with_rates(
    numbers: pd.DataFrame, texts: pd.DataFrame, chosen: Sequence[Quality]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two rows beneath the runs: accuracy of guessing, and of always giving the most frequent answer."""
    for name, attribute in ((GUESSING, "measured_chance"), (MAJORITY, "majority")):
        values = {quality.label: getattr(quality, attribute) for quality in chosen}
        known = {label: float(value) for label, value in values.items() if value is not None}
        if known:
            texts.loc[name] = ""
            numbers.loc[name, "Run"] = texts.loc[name, "Run"] = name
        for label, value in known.items():
            numbers.loc[name, label], texts.loc[name, label] = value, percent(value)
    return numbers, texts


def leak(details: object) -> str:
    """† where the details tell of leakage, ‡ where other programs disturbed the measurement."""
    known = mapping(details)
    return (LEAK if known.get("leakage") else "") + (DISTURBED if known.get("disturbed") else "")


def leaks(table: pd.DataFrame) -> list[str]:
    """Every leakage that the runs' values tell of, once, with the runs that it is about."""
    found: dict[str, list[str]] = {}
    for label, details in zip(table["label"], table["details"], strict=True):
        sentence = mapping(details).get("leakage")
        if sentence:
            found.setdefault(str(sentence), []).append(str(label))
    return [f"{named(list(dict.fromkeys(labels)))}: {sentence}" for sentence, labels in found.items()]


def disturbances(table: pd.DataFrame) -> list[str]:
    """Which runs' values were measured beside other work, by what that was."""
    found: dict[str, list[str]] = {}
    for label, details in zip(table["label"], table["details"], strict=True):
        if reason := mapping(details).get("disturbed"):
            found.setdefault(str(reason), []).append(str(label))
    return [
        f"{named(list(dict.fromkeys(labels)))}: measured beside other work ({reason})"
        for reason, labels in found.items()
    ]


def mixed_protocols(chosen: Sequence[Quality]) -> list[str]:
    """Sentences on what was measured in several ways, and in which; what was so in the same ways shares one."""
    ways: dict[str, list[str]] = {}
    for quality in chosen:
        if quality.distinguish:
            ways.setdefault(quality.name, []).append(quality.protocol or quality.protocol_key)
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, each in ways.items():
        if len(each) > 1:
            alike.setdefault(tuple(sorted(each)), []).append(name)
    return [
        f"Measured in {len(each)} ways ({'; '.join(each)}): {', '.join(names)}. "
        "Values of different ways stand apart and are never subtracted."
        for each, names in alike.items()
    ]


def about(table: pd.DataFrame, quality: Quality) -> str:
    """Everything about how a quality was measured, and what is known of its documents, for a tooltip."""
    rows = table[table["quality"] == quality.key]
    if rows.empty:
        return ""
    first = rows.iloc[0]
    known = {key: value for key, value in mapping(first["details"]).items() if key in ("chance", "majority")}
    return " · ".join([*whole_protocol(first["protocol"]), *detail_words(known)])


def without_numbers(numbers: pd.DataFrame) -> list[str]:
    """Columns that hold no number in any row: differences of what the dense model was never measured on."""
    return [column for column in numbers.columns if numbers[column].isna().all()]


def export(table: pd.DataFrame) -> bytes:
    """The points behind table and charts as CSV, one row a run and quality, unrounded."""
    columns = [name for name in table.columns if name not in ("quality", "series")]
    return bytes(table[columns].to_csv(index=False).encode())


def _removed(share: float, mask: bool) -> str:
    return f"{percent(share)} zeros" if mask and math.isfinite(share) else percent(share)


def difference(delta: float, stderr: float, quality: Quality, mark: str = "", *, interval: bool = False) -> str:
    """A difference with its standard error, or its 95 % interval, and its mark (`marks`)."""
    return f"{delta_words(delta, stderr, quality, interval=interval)} {mark}".strip()
