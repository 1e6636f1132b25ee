"""Numbers as English and German papers write them: 1,234.5 and 1.234,5; a minus is a minus, and % keeps its space."""

from __future__ import annotations

import math
from dataclasses import dataclass

from core.charts_frames import Quality
from core.report.document import Language

NONE = "–"
_SWAP = str.maketrans(",.", ".,")


@dataclass(frozen=True)
class Numbers:
    """How a language writes numbers."""

    language: Language

    def fixed(self, value: float, digits: int, *, sign: bool = False) -> str:
        """With this many decimals; `–` for what is no finite number. What rounds to zero has no sign."""
        if not math.isfinite(value):
            return NONE
        text = f"{value:{'+' if sign else ''},.{digits}f}"
        if not any(letter in "123456789" for letter in text):
            text = text.lstrip("+-")
        return (text.translate(_SWAP) if self.language == "de" else text).replace("-", "−")

    def integer(self, value: float) -> str:
        return self.fixed(value, 0)

    def percent(self, share: float, digits: int = 1) -> str:
        """0.304 → `30.4 %`, with a space that does not break."""
        return f"{self.fixed(100 * share, digits)}\u00a0%" if math.isfinite(share) else NONE

    def general(self, value: object) -> str:
        """A setting: 0.0001 → `0.0001`, in German `0,0001`; 2.0 → `2`; texts as they are."""
        if not isinstance(value, float):
            return str(value)
        return f"{value:g}".translate(_SWAP) if self.language == "de" else f"{value:g}"

    def plain_percent(self, share: float) -> str:
        """0.3 → `30 %`, 0.125 → `12.5 %`."""
        return self.percent(share, 0 if abs(100 * share - round(100 * share)) < 1e-9 else 1)

    def p(self, value: float) -> str:
        """A p-value: `0.032`, `< 0.001`."""
        return f"< {self.fixed(0.001, 3)}" if value < 0.001 else self.fixed(value, 3)

    def measured(self, value: float, stderr: float, quality: Quality, *, sign: bool = False) -> str:
        """`29.97 ± 0.31` in the unit that `unit` names."""
        if not math.isfinite(value):
            return NONE
        factor, digits = scale(quality), digits_of(value, quality)
        while 1e-5 < factor * stderr < 0.5 * 10**-digits and digits < 4:  # nan is neither
            digits += 1
        shown = self.fixed(factor * value, digits, sign=sign)
        return f"{shown} ± {self.fixed(factor * stderr, digits)}" if math.isfinite(stderr) else shown


def scale(quality: Quality) -> float:
    """What values are multiplied with to stand in `unit`."""
    if quality.fraction:
        return 100.0
    return {"bytes": 1e-6, "MACs": 1e-9}.get(quality.unit, 1.0)


def unit(quality: Quality) -> str:
    """The unit that values are shown in, or ''."""
    return {"bytes": "MB", "MACs": "GMAC"}.get(quality.unit, quality.unit)


def digits_of(value: float, quality: Quality) -> int:
    """Decimals that a value is shown with."""
    if quality.fraction or quality.unit == "MACs":
        return 1
    if quality.unit == "bytes":
        return 0
    size = abs(value)
    return 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 4
