"""Protocols and what is known of single values, in words: short for labels, whole for what shows on hover."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from core.evaluation.chance import certainty

_SHORT = ("corpus", "path", "split", "window", "max_tokens", "bos", "shots", "limit", "chat_template")
_ORDER = (*_SHORT, "tokens", "windows", "n", "harness", "task_version", "data", "dtype", "device")
_COUNTS = ("tokens", "windows", "tokens_sha256", "file_sha256")
_HASHES = 8
"""Letters of a hash that are shown: enough to see that two are equal."""


def mapping(text: Any) -> dict[str, Any]:
    """A protocol or details as a mapping, from JSON text too; anything else is empty."""
    if isinstance(text, Mapping):
        return dict(text)
    try:
        data = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def canonical(value: Any) -> str:
    """Text by which two values are equal."""
    return json.dumps(value, sort_keys=True, default=str)


def protocol_words(protocol: str | Mapping[str, Any], task: str = "") -> str:
    """The protocol in a few words: `heldout, window 512`, `0 shots, first 20 documents (±22 points)`."""
    data = mapping(protocol)
    words = []
    for key in _SHORT:
        value = data.get(key)
        if value is None or value is False or value == "" or (key == "corpus" and str(value) in task):
            continue
        if key == "split" and "shots" in data:  # each task has its own, always
            continue
        words.append(_word(key, value))
        if key == "limit" and isinstance(value, int) and value > 0 and "parts" not in data:  # of one task
            words[-1] += f" (±{100 * certainty(value):.0f} points)"
    return ", ".join(words)


def whole_protocol(protocol: str | Mapping[str, Any]) -> list[str]:
    """Everything that the protocol holds, an entry each, the usual first."""
    data = mapping(protocol)
    order = sorted(data, key=lambda key: (_ORDER.index(key) if key in _ORDER else len(_ORDER), key))
    return [_entry(key, data[key]) for key in order]


def differing_words(protocols: Sequence[Mapping[str, Any]], own: Mapping[str, Any]) -> str:
    """What sets this protocol apart from others of the same task and metric; counts only where nothing else does."""
    keys = sorted({key for protocol in protocols for key in protocol})
    differing = [key for key in keys if len({canonical(protocol.get(key)) for protocol in protocols}) > 1]
    differing.sort(key=lambda key: (_SHORT.index(key) if key in _SHORT else 99, key))
    told = [key for key in differing if key not in _COUNTS] or differing
    alike = [protocol for protocol in protocols if all(protocol.get(key) == own.get(key) for key in told)]
    if len({canonical(protocol) for protocol in alike}) > 1:
        told += [key for key in ("tokens",) if key in differing and key not in told]
    return ", ".join(_word(key, own.get(key)) for key in told)


_TOLD_DETAILS = {
    "chance", "majority", "interval", "interval_by", "calibrated_on", "learned_from", "leakage", "quartiles",
    "disturbed",
}  # fmt: skip


def detail_words(details: str | Mapping[str, Any]) -> list[str]:
    """What is known of one value besides how it was measured: rates of its documents, its interval, leakage."""
    data = mapping(details)
    words = []
    if "chance" in data and "majority" in data:
        words.append(rates_words(data["chance"], data["majority"]))
    interval = data.get("interval")
    if isinstance(interval, list) and len(interval) == 2:
        how = f" ({data['interval_by']})" if data.get("interval_by") else ""
        words.append(f"95 % interval {interval[0]:,.2f} to {interval[1]:,.2f}{how}")
    if data.get("calibrated_on"):
        words.append(f"calibrated on {data['calibrated_on']}")
    if data.get("learned_from"):
        words.append(f"learned from {data['learned_from']}")
    if data.get("leakage"):
        words.append(f"leakage: {data['leakage']}")
    quartiles = data.get("quartiles")
    if isinstance(quartiles, list) and len(quartiles) == 2:
        words.append(f"quartiles of the repetitions {quartiles[0]:,.1f} to {quartiles[1]:,.1f}")
    if data.get("disturbed"):
        words.append(f"disturbed: {data['disturbed']}")
    return words + [_entry(key, value) for key, value in data.items() if key not in _TOLD_DETAILS]


def rates_words(chance: float, majority: float) -> str:
    """`guessing 25.0 %, majority 26.4 %`: accuracy of a random, and of always the most frequent answer."""
    return f"guessing {100 * chance:.1f} %, majority {100 * majority:.1f} %"


def _entry(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{key.replace('_', ' ')}: " + ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if key == "limit" and value is None:
        return "all documents"
    if key in ("corpus", "split", "data", "dtype", "device", "harness"):
        return f"{key} {_plain(value)}"
    if key in ("tokens", "windows"):
        return _word(key, value)
    if key.endswith("sha256"):
        return f"{key.removesuffix('_sha256')} SHA-256 {str(value)[:_HASHES]}…"
    return _word(key, value, longest=60) if key in _SHORT else f"{key.replace('_', ' ')} {_plain(value)}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)[:80]


def _word(key: str, value: Any, longest: int = 12) -> str:
    if key == "path":
        return str(value).rsplit("/", 1)[-1]
    if key == "limit":
        return "all documents" if value is None else f"first {value} documents"
    if key == "max_tokens":
        return "all tokens" if value is None else f"first {value:,} tokens"
    if key in ("bos", "chat_template"):
        return f"{'with' if value else 'without'} {'BOS' if key == 'bos' else 'chat template'}"
    if key in ("corpus", "split", "dtype", "data"):
        return str(value)
    if key in ("tokens", "windows") and isinstance(value, int):
        return f"{value:,} {key}"
    if key == "shots":
        return f"{value} shots"
    return f"{key.replace('_', ' ')} {str(value)[:longest]}"
