"""What charts say of runs, and which line each belongs to, from the store's table of runs: pure pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from core import yaml_text
from core.charts_words import canonical
from core.errors import EspalierError
from core.experiment import Experiment, Recovery, RecoveryData

RECOVERED = {"lora": "LoRA", "distillation": "distilled"}
"""Kinds of recovery, as people read them behind a method."""
QUANTISED = ("q8_0", "q4_0")
"""Methods that are none: the dense model in that GGUF format."""
_SERIES_FIELDS = (
    "model.name", "model.revision", "pruning.layers", "pruning.parts", "pruning.target", "pruning.pattern",
    "pruning.heads", "pruning.round_to", "pruning.allocation", "pruning.same_sizes", "pruning.reconstruct",
    "pruning.options", "pruning.calibration", "recovery", "model.dtype",
)  # fmt: skip


def describe_runs(runs: pd.DataFrame, titles: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Per run: run_id, label (unique among the runs; without the study's name where all have the same), name, series,
    method, kind, ratio, removed, parameters, bytes (of the saved weights), seed."""
    dense = runs["method"].isna()
    quantised = runs["kind"].eq("quantised")
    about = pd.DataFrame(
        {
            "run_id": runs["id"].astype(str),
            "name": runs["name"].fillna("").astype(str),
            "method": runs["method"].where(~dense, "dense").astype(str),
            "kind": runs["kind"].where(~dense, "dense").astype(str),
            "ratio": pd.to_numeric(runs["ratio"], errors="coerce").where(~(dense | quantised), 0.0),
            "removed": pd.to_numeric(runs["achieved_model_ratio"], errors="coerce").where(~dense, 0.0),
            "parameters": pd.to_numeric(runs["params_after"], errors="coerce"),
            "bytes": _numbers(runs, "bytes"),
            "seed": _numbers(runs, "seed"),
        }
    ).reset_index(drop=True)
    about["series"] = series_names(runs, titles)
    named = (about["name"].str.strip() != "") & (about["name"] != about["run_id"])
    labels = about["name"].where(named, about["series"] + _percent(about["ratio"], about["kind"]))
    labels = _without_study(labels, named & about["kind"].ne("dense"))
    twice = labels.duplicated(keep=False)
    about["label"] = labels.where(~twice, labels + " · " + about["run_id"].str[-4:])
    return about


def _without_study(labels: pd.Series, chosen: pd.Series) -> pd.Series:
    """Labels without what all the chosen ones begin with, up to a colon: there only the rest tells."""
    parts = [label.split(": ") for label in labels[chosen]]
    shared = 0
    while len(parts) > 1 and all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return labels.where(~chosen, [": ".join(label.split(": ")[shared:]) for label in labels])


def _numbers(runs: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats; nan where the table does not have it."""
    found = runs[column] if column in runs else pd.Series(float("nan"), index=runs.index)
    return pd.to_numeric(found, errors="coerce").astype("float64")


def _percent(ratio: pd.Series, kind: pd.Series) -> pd.Series:
    whole = ("dense", "quantised")
    shares = ["" if k in whole else f" {r:.0%}".replace("%", " %") for r, k in zip(ratio, kind, strict=True)]
    return pd.Series(shares)


def series_names(runs: pd.DataFrame, titles: Mapping[str, str] | None = None) -> list[str]:
    """Name of the line that each run belongs to: the method, and those settings besides ratio and seed that differ
    between the given runs of that method; the usual goes without saying. Points of different settings are never joined
    by one line."""
    methods = ["dense" if pd.isna(method) else str(method) for method in runs["method"]]
    settings = [_settings(str(text)) if isinstance(text, str) else {} for text in runs["experiment"]]
    values: dict[str, dict[str, set[str]]] = {}
    for method, own in zip(methods, settings, strict=True):
        of_method = values.setdefault(method, {field: set() for field in _SERIES_FIELDS})
        for field in _SERIES_FIELDS:
            of_method[field].add(canonical(own.get(field)))
    recoveries = list({canonical(own["recovery"]): own["recovery"] for own in settings if own.get("recovery")}.values())
    names = []
    for method, own in zip(methods, settings, strict=True):
        differing = [field for field, found in values[method].items() if len(found) > 1]
        words = [word for field in differing if (word := _short(field, own.get(field), recoveries))]
        title = method.upper() if method in QUANTISED else method
        names.append(", ".join([(titles or {}).get(method, title), *words]))
    return names


def _read(text: str) -> dict[str, Any]:
    """The experiment as a mapping; of a file that this version cannot read, what it says."""
    try:
        return Experiment.from_yaml(text).to_dict()
    except EspalierError:
        pass
    try:
        return yaml_text.load_mapping(text)
    except EspalierError:
        return {}


@lru_cache(maxsize=4096)
def _settings(text: str) -> Mapping[str, Any]:
    """Dotted fields of an experiment that say which line a run belongs to, defaults filled in: a file that was written
    before a setting existed says the same as one that has it. Seeds are no setting: they make the band."""
    data = _read(text)
    flat: dict[str, Any] = {}
    for field in _SERIES_FIELDS:
        value: Any = data
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        flat[field] = value
    calibration = flat["pruning.calibration"]
    if isinstance(calibration, Mapping):
        flat["pruning.calibration"] = {k: v for k, v in calibration.items() if k not in ("seed", "batch_size")}
    return flat


def _short(field: str, value: Any, recoveries: Sequence[Mapping[str, Any]]) -> str:
    """A setting in a word or two; '' for the usual one."""
    if field == "pruning.layers":
        return f"layers {value[0]}–{value[1]}" if isinstance(value, list) and len(value) == 2 else "all layers"
    if field == "pruning.target":
        return "of the whole model" if value == "model" else ""
    if field == "pruning.pattern":
        return "" if value in (None, "unstructured") else str(value)
    if field == "pruning.reconstruct":
        return "refitted" if value else ""
    if field == "pruning.round_to":
        return f"rounded to {'default' if value is None else value}"
    if field == "recovery":
        return _recovery_words(value, recoveries)
    if field == "pruning.calibration" and isinstance(value, Mapping):
        return _calibration_words(value)
    if isinstance(value, Mapping):
        return " ".join(str(item) for item in value.values() if item is not None and not isinstance(item, Mapping))
    if isinstance(value, list):
        return " and ".join(str(item) for item in value)
    if isinstance(value, bool):
        return field.rpartition(".")[2].replace("_", " ") if value else ""
    return "default" if value is None else str(value).replace("_", " ")


def _calibration_words(value: Mapping[str, Any]) -> str:
    """`calibrated on 32 × 512 of passages`: number and length of the texts, and where they come from."""
    source = str(value.get("path") or value.get("corpus") or "a text").rsplit("/", 1)[-1]
    split = value.get("split", "train")
    words = f"calibrated on {value.get('samples', '?')} × {value.get('length', '?')} of {source}"
    return words if split == "train" else f"{words}, {split}"


def _recovery_words(value: Any, recoveries: Sequence[Mapping[str, Any]]) -> str:
    """`LoRA`, `distilled, epochs 4`."""
    if not isinstance(value, Mapping):
        return ""
    kind = str(value.get("kind"))
    return ", ".join([RECOVERED.get(kind, kind), *(_set(*each) for each in recovery_settings(value, recoveries))])


def recovery_settings(value: Mapping[str, Any], among: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Settings that tell a recovery apart from others of its kind, with their values, those of its data first; what is
    empty, off or `auto` goes without saying, and data's format goes with the data."""
    alike = [each for each in among if each.get("kind") == value.get("kind")]
    lesson, lessons = (_mapping(value.get("data")), [_mapping(each.get("data")) for each in alike])
    found = []
    for section, own, others in ((RecoveryData, lesson, lessons), (Recovery, value, alike)):
        for name in section.model_fields:
            said = own.get(name)
            if name in ("kind", "data", "format") or said is None or said is False or said == "auto":
                continue
            if len({canonical(each.get(name)) for each in others}) > 1:
                found.append((name, said))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _set(key: str, value: Any) -> str:
    if key in ("path", "corpus"):
        return "on " + str(value).rsplit("/", 1)[-1]
    return key.replace("_", " ") if value is True else f"{key.replace('_', ' ')} {value}"
