"""What pages ask about recovery: what can be learned from, how a training goes, and what it brought back. No torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core import pairs
from core.board import existing
from core.charts_words import mapping
from core.errors import EspalierError
from core.jobs.rundir import RunDirectory
from core.recovery import offered
from core.recovery.curve import FILE, read_curve
from core.storage.store import Store


class Recoveries:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(self, store: Store, home: Path) -> None:
        self._store, self._home = store, home
        self._gained: pairs.Known = {}

    def lessons(self) -> list[offered.Lesson]:
        """Data that a pruned model can learn from, by name; a file or another hub set can be typed."""
        return offered.lessons()

    def curve(self, run_id: str) -> list[dict[str, Any]]:
        """Points of a run's training so far, in order; none before it begins."""
        return read_curve(existing(self._home, run_id).recovery_dir / FILE)

    def gains(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """Certainty of what recovery changed in each run, on the same documents and windows before and after."""
        return pairs.gains(self._store, self._home, run_ids, self._gained)

    def trainings(self, run_ids: Sequence[str]) -> pd.DataFrame:
        """How the trainings of recovered runs went: run_id, what (in words), minutes, tokens, steps, diverged."""
        rows = []
        for run_id in run_ids:
            try:
                directory = existing(self._home, run_id)
            except EspalierError:  # deleted meanwhile
                continue
            found = mapping((directory.results() or {}).get("recovery"))
            training, data = mapping(found.get("training")), mapping(found.get("data"))
            seconds, tokens, steps = (_number(training.get(name)) for name in ("seconds", "tokens", "steps"))
            rows.append(
                {
                    "run_id": run_id,
                    "what": _what(directory, str(data.get("data") or "")),
                    "minutes": seconds / 60,
                    "tokens": tokens,
                    "steps": steps,
                    "diverged": str(training.get("diverged") or ""),
                }
            )
        return pd.DataFrame(rows, columns=["run_id", "what", "minutes", "tokens", "steps", "diverged"])

    def adapter(self, run_id: str) -> Path | None:
        """Where the trained adapter, or the trained weights, of a run lie; None where there are none."""
        folder = existing(self._home, run_id).recovery_dir
        return next((place for name in ("adapter", "weights.safetensors") if (place := folder / name).exists()), None)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _what(directory: RunDirectory, data: str) -> str:
    """`LoRA on alpaca-cleaned`, `distillation, full weights, on passages`."""
    try:
        recovery = directory.experiment().recovery
    except EspalierError:
        recovery = None
    if recovery is None:
        return ""
    kind = "LoRA" if recovery.kind == "lora" else "distillation"
    full = ", full weights," if recovery.kind == "distillation" and recovery.full_weights else ""
    return f"{kind}{full} on {data}" if data else kind
