"""The curve of a training: one JSON object a line, appended while it trains, read by pages. No torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.files import write_atomic

FILE = "curve.jsonl"
"""Its name in a run's recovery folder."""


@dataclass(frozen=True)
class Point:
    """One point of the curve. loss: the objective; validation: −log q of held-out text; both nats a token."""

    step: int
    seconds: float
    tokens: int
    loss: float | None
    rate: float
    validation: float | None = None


class Curve:
    """The points of a training, one JSON object a line, in a file that pages read while it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[dict[str, Any]]:
        """All whole points."""
        return read_curve(self.path)

    def add(self, point: Point) -> None:
        """Append a point."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(point)) + "\n")

    def back_to(self, step: int) -> float:
        """Forget what came after a step that training goes on from; seconds that had gone by then."""
        points = [point for point in self.read() if point["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(point) + "\n" for point in points))
        return float(points[-1]["seconds"]) if points else 0.0


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Points of a curve's file; a torn last line is left out, and no file is no points."""
    points: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(point, dict):
            points.append(point)
    return points
