"""What the service hands to pages: plain frozen values, ready to be shown.

Times are seconds, sizes are bytes, ratios are fractions removed (0.3 = 30 %). Texts may come from users and
models: show them as text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from core.errors import Problem
    from core.experiment import Experiment, ModelChoice
    from core.jobs.cluster import ClusterView
    from core.jobs.freeing import Freed
    from core.jobs.ownership import Owner
    from core.jobs.rundir import RunStatus
    from core.models.engines import Engine
    from core.models.plans import Plan
    from core.models.sizes import Architecture


@dataclass(frozen=True)
class Preview:
    """What one experiment would do, said before it is queued; no model is loaded for it."""

    plan: Plan | None
    """Heads and channels that go per layer; None for the dense model or where the problems leave nothing to plan."""
    problems: list[Problem]
    """What cannot work, each with its field; a run with problems cannot be queued."""
    memory_bytes: int
    """Rough peak of the worker, on its device."""
    seconds: float
    """Rough duration from start to end."""
    seconds_basis: str
    """Where the estimate comes from, in words."""
    smaller: str
    """Whether the folder on disk gets smaller, and by how much."""
    faster: str
    """Whether the saved model runs faster, and why."""
    loads_in: list[Engine]
    """What opens the exported model and how, and what does not."""
    yaml: str
    command: str
    identical: str | None
    """Id of a complete run that computes the same, or None."""
    warnings: list[str] = field(default_factory=list)
    """What works, but should be known, one sentence each: leakage, few documents, no head removed."""
    cautions: list[Problem] = field(default_factory=list)
    """Those of the warnings that belong beside a field."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    disk_bytes: int = 0
    """Rough size of what the run leaves on disk."""
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class StatusLine:
    """The slim line on top of every page."""

    device: str
    free_bytes: int
    total_bytes: int
    running: RunStatus | None
    running_name: str
    queue_length: int
    paused: bool
    read_only: bool
    """True: another process owns this home; this one only shows it."""
    owner: Owner | None = None
    """Who owns this home where another process does; None too where that one is gone."""
    notice: str = ""
    """One sentence where something about the store should be known (rebuilt, owned by another process), or ''."""
    cluster: ClusterView | None = None
    """Where runs go, if not to this machine."""


@dataclass(frozen=True)
class RunDetail:
    """Everything one opened run shows."""

    status: RunStatus
    name: str
    experiment: Experiment | None
    """None where experiment.yaml cannot be read; `yaml` then still holds its text."""
    yaml: str
    command: str
    results: dict[str, Any] | None
    stages: dict[str, dict[str, Any]]
    metrics: pd.DataFrame
    layers: pd.DataFrame
    log_tail: str
    plan: Plan | None
    architecture: Architecture | None = None
    baseline: str | None = None
    """The complete dense run that this one can be compared with, or None."""
    freed: Freed | None = None
    """Whether a cancelled run gave its memory back."""


@dataclass(frozen=True)
class ChatModel:
    """A model that can be talked to: the dense one, or a saved run."""

    key: str
    """Stable and URL-safe: `dense:<model name>`, the run's id, or `<run's id>:pruned` for what was before recovery."""
    title: str
    params: int
    bytes: int
    path: Path | None
    """The run's model folder; None for a model that is loaded by `choice` alone."""
    choice: ModelChoice | None
    """A dense model; with a path too, `quantised`: its weights are those of the GGUF file in that folder."""
    run_id: str | None = None
