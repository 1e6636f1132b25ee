"""Studies in words and small HTML. Pure; every text of a file is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pages._parts.runs_text import STATES, state_word, when
from pages._parts.theme import duration, html, size

ORDER = ("COMPLETE", "RUNNING", "WAITING", "INTERRUPTED", "FAILED", "CANCELLED", "NOT QUEUED")
OVER = ("COMPLETE", "FAILED", "CANCELLED")


def counts_line(counts: Mapping[str, int]) -> str:
    """`12 complete, 1 running, 29 waiting`; '' where nothing of it was ever queued."""
    if not set(counts) & set(STATES):
        return ""
    return ", ".join(f"{counts[state]} {state_word(state)}" for state in ORDER if counts.get(state))


def progress_html(counts: Mapping[str, int], left: str = "") -> str:
    """A bar of what is over, and the counts beneath it."""
    total = sum(counts.values())
    done = counts.get("COMPLETE", 0)
    said = " · ".join(filter(None, [counts_line(counts), left]))
    return (
        f'<div class="esp-bar" role="progressbar" aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{done}" '
        f'aria-label="complete runs of this study"><i style="width:{done / max(total, 1):.2%}"></i></div>'
        f'<p class="esp-left">{html(said)}</p>'
    )


def cost_facts(preview: Any) -> list[tuple[str, str]]:
    """What is still to do, as pairs of a word and a value."""
    if not preview.to_do:
        out = int((preview.rows["problem"] != "").sum())
        why = f"{out} of its runs cannot run here, as said below" if out else "every run is complete"
        return [("left to do", f"nothing: {why}")]
    runs = "1 run" if preview.to_do == 1 else f"{preview.to_do} runs"
    rows = [
        ("left to do", runs),
        ("takes", f"about {duration(preview.seconds)}"),
        ("keeps on disk", f"about {size(preview.disk_bytes)}"),
        ("needs", f"at most about {size(preview.memory_bytes)} of memory{_at_once(preview.at_once)}"),
    ]
    if preview.money is not None:
        rows.append(("costs", f"about {preview.money:,.2f}"))
    return rows


def _at_once(runs: int) -> str:
    return ", one run at a time" if runs == 1 else f" each, {runs} runs at a time"


def facts_html(rows: list[tuple[str, str]]) -> str:
    """Pairs as a list of facts."""
    items = "".join(f"<dt>{html(name)}</dt><dd>{html(value)}</dd>" for name, value in rows)
    return f'<dl class="esp-facts">{items}</dl>'


def shared_html(sentences: tuple[str, ...]) -> str:
    """What is computed once, a sentence a line."""
    items = "".join(f"<li>{html(sentence)}</li>" for sentence in sentences)
    return f'<ul class="esp-shared">{items}</ul>'


def import_line(found: Any, zone: str | None) -> str:
    """Where an imported study comes from: `measured on NVIDIA T4 · Espalier 0.1.0 · imported 24 Nov, 10:00`."""
    words = [found.origin] if found.origin else []
    if found.devices:
        words.append("measured on " + ", ".join(found.devices))
    versions = [f"Espalier {found.espalier}"] if found.espalier else []
    versions += [
        f"{name} {found.packages[name]}" for name in ("torch", "transformers", "lm-eval") if name in found.packages
    ]
    words += [", ".join(versions)] if versions else []
    words += [f"packed {when(found.packed, zone)}"] if found.packed else []
    words.append(f"imported {when(found.imported, zone)} from {found.file}")
    return " · ".join(words)
