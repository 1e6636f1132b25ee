"""One measured value, with everything that is needed to measure it again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A value of one task and metric at one stage of a run (`pruned`, `recovered`).

    `stderr` is None where none is known; `n` counts what was averaged over (documents, windows, repetitions);
    `protocol` holds what the value depends on besides the model: values of different protocols do not compare.
    `details` says more about this one value (`interval`: its 95 % interval, `chance` and `majority` of a task's
    documents, `leakage` in a sentence); two values compare whatever their details are.
    """

    stage: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    protocol: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def at(self, stage: str) -> "Metric":
        """The same metric at another stage."""
        return replace(self, stage=stage)

    def to_json(self) -> dict[str, Any]:
        """Plain data as it stands in results.json; a value that is no finite number becomes null."""
        return {
            "stage": self.stage,
            "task": self.task,
            "metric": self.metric,
            "value": self.value if math.isfinite(self.value) else None,
            "stderr": self.stderr if self.stderr is not None and math.isfinite(self.stderr) else None,
            "n": self.n,
            "protocol": self.protocol,
            **({"details": self.details} if self.details else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Metric":
        """Read what `to_json` wrote."""
        value = data["value"]
        return cls(
            stage=data["stage"],
            task=data["task"],
            metric=data["metric"],
            value=math.nan if value is None else float(value),
            stderr=data["stderr"],
            n=data["n"],
            protocol=dict(data["protocol"]),
            details=dict(data.get("details") or {}),
        )


def text_key(protocol: Mapping[str, Any]) -> str:
    """Which windows a perplexity was measured on, as their rows name them in `doc_hash`: 0123456789abcdef/141.

    The start of the hash of all their tokens, and their number: the same tokens in fewer windows are another text,
    since windows of another length do not compare. '' for what was not measured on windows.
    """
    digest, windows = protocol.get("tokens_sha256"), protocol.get("windows")
    return f"{str(digest)[:16]}/{windows}" if digest and windows else ""


def standard_error(values: list[float]) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
