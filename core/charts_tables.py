"""The comparison as a table: numbers for sorting and export, and the texts that people read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from core.charts_frames import Z95, Quality, at_order
from core.charts_style import measured, percent

DELTA = "Δ "


def comparison_table(table: pd.DataFrame, chosen: Sequence[Quality]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(numbers, texts), one row a run, the dense model first; index: run id.

    Columns: Run, Method, Ratio, Removed, Parameters, then each quality's label and `Δ label`, its difference to the
    dense model where both were measured in the same way. Texts carry standard errors and units; a difference beyond
    its 95 % interval ends in ▲ (better) or ▼ (worse).
    """
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
        texts[quality.label] = [measured(v, s, quality) for v, s in zip(rows["value"], rows["stderr"], strict=True)]
        delta = rows["delta"].where(~dense)
        numbers[DELTA + quality.label] = delta
        pairs = zip(delta, rows["delta_stderr"], strict=True)
        texts[DELTA + quality.label] = [difference(d, s, quality) for d, s in pairs]
    return numbers, texts


def without_numbers(numbers: pd.DataFrame) -> list[str]:
    """Columns that hold no number in any row: differences of what the dense model was never measured on."""
    return [column for column in numbers.columns if numbers[column].isna().all()]


def export(table: pd.DataFrame) -> bytes:
    """The points behind table and charts as CSV, one row a run and quality, unrounded."""
    columns = [name for name in table.columns if name not in ("quality", "series")]
    return bytes(table[columns].to_csv(index=False).encode())


def _removed(share: float, mask: bool) -> str:
    return f"{percent(share)} zeros" if mask and math.isfinite(share) else percent(share)


def difference(delta: float, stderr: float, quality: Quality) -> str:
    """A difference to dense with its standard error; ▲ better or ▼ worse where it is beyond its 95 % interval."""
    if not math.isfinite(delta):
        return "–"
    text = measured(delta, stderr, quality, sign=True)
    if not math.isfinite(stderr) or abs(delta) <= Z95 * stderr:
        return text
    return f"{text} {'▲' if (delta < 0) == quality.lower_is_better else '▼'}"
