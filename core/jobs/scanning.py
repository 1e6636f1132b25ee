"""The stage of a sensitivity scan: each layer pruned by itself and judged, layer by layer, each of them kept at once.

A layer that is done has a part of its own (`scan.layer.7`), so that a run that lost its worker repeats at most one.
"""

import math
import time
from typing import TYPE_CHECKING, Any

from core.jobs import stages
from core.jobs.journal import Journal
from core.progress import while_it_lasts

if TYPE_CHECKING:
    from torch import Tensor

    from core.jobs.pipeline import Setting
    from core.models.loading import LoadedModel
    from core.models.streaming import Streamed


def scan_stage(
    journal: Journal,
    setting: "Setting",
    loaded: "LoadedModel",
    streamed: "Streamed | None",
    calibration: Any,
    cache: Any,
) -> None:
    """Scan, and write `stages/scan.json`: the text's protocol, the dense model, and every row.

    calibration: the windows that the method reads, or None. cache: where its scores are kept.
    """
    from core.data.corpora import evaluation_windows

    experiment, scan = setting.experiment, setting.experiment.scan
    assert scan is not None
    journal.begin(stages.SCAN)
    text = experiment.evaluation.perplexity[0]
    windows = while_it_lasts(lambda: evaluation_windows(text, loaded.tokenizer), journal.tick)
    done = _done(journal)
    earlier = sum(float(found.get("seconds") or 0) for found in done.values())
    dense, warnings = _scan(journal, setting, streamed or loaded.model, windows.tokens, calibration, cache, done)
    for warning in warnings:
        journal.warn(warning)
    rows = [row for layer in sorted(done) for row in done[layer]["rows"]]
    journal.finish(
        {
            "by": scan.by,
            "protocol": {**windows.info, "dtype": loaded.dtype},
            "dense": _judged(dense),
            "layers": [{**_about(row), **_judged(row["nll"], dense)} for row in rows],
            "warnings": warnings,
        },
        extra_seconds=earlier,
    )


def _scan(
    journal: Journal,
    setting: "Setting",
    model: Any,
    tokens: "Tensor",
    calibration: Any,
    cache: Any,
    done: dict[int, dict[str, Any]],
) -> tuple[list[float], list[str]]:
    """Do what is not in `done`, put it there and into parts; returns the dense model's windows, and warnings."""
    import torch

    from core.models.body import Body
    from core.pruning.prune import job_of, resident
    from core.pruning.scan import Found, Scan

    pruning, scan, progress = setting.experiment.pruning, setting.experiment.scan, journal.progress()
    assert pruning is not None
    job = job_of(
        model if isinstance(model, Body) else resident(model, setting.device, calibration),
        pruning,
        architecture=setting.source.architecture,
        windows=calibration,
        seed=setting.experiment.seed,
        calibrate_progress=progress,
        cache=cache,
        tick=journal.tick,
    )
    total, began = len(job.plan.selected), time.monotonic()

    def take(layer: int, rows: list[Found]) -> None:
        nonlocal began
        found = [{"layer": row.layer, "part": row.part, "nll": row.nll, "removed": row.removed} for row in rows]
        journal.write(stages.part("layer", layer, stages.SCAN), {"rows": found}, round(time.monotonic() - began, 3))
        done[layer] = {"rows": found}
        began = time.monotonic()

    by_part = scan is not None and scan.by == "part"
    work = Scan(job, tokens, by_part, set(done), tell=lambda share: progress(share * total, total, "layers"))
    with torch.no_grad():
        dense = work.run(take)
    return dense, list(dict.fromkeys(job.warnings))


def _done(journal: Journal) -> dict[int, dict[str, Any]]:
    """Layers that an earlier attempt finished, with what it found."""
    prefix = stages.part("layer", "", stages.SCAN)
    found = {}
    for name, content in journal.directory.stages().items():
        number = name.removeprefix(prefix)
        if name.startswith(prefix) and number.isdecimal() and isinstance(content.get("rows"), list):
            journal.reuse(name)
            found[int(number)] = content
    return found


def _about(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("layer", "part", "removed")}


def _judged(nll: list[float], dense: list[float] | None = None) -> dict[str, Any]:
    """Perplexity with its standard error, mean NLL, and what it costs beside the dense model on the same windows."""
    from core.evaluation.metrics import standard_error

    mean = math.fsum(nll) / len(nll)
    error = standard_error(nll)
    value = math.exp(mean) if mean < 700 else math.inf
    found = {"perplexity": value, "stderr": None if error is None else value * error, "nll": mean, "windows": len(nll)}
    if dense is None:
        return found
    differences = [ours - theirs for ours, theirs in zip(nll, dense, strict=True)]
    return found | {"cost": math.fsum(differences) / len(differences), "cost_stderr": standard_error(differences)}
