"""The mean over the seven tasks of the LLM-Pruner paper (Ma et al. 2023, table 1), each by the metric that is reported.

    mean = (1/7) Σ_t a_t,      standard error = (1/7) √( Σ_t se_t² )

with a_t the accuracy of task t: `acc` for BoolQ, PIQA, WinoGrande and ARC-Easy, `acc_norm` (by log-likelihood a
character) for HellaSwag, ARC-Challenge and OpenBookQA. Tasks share no document, so their errors are independent; tasks
count alike, however many documents they have.
"""

import math
from collections.abc import Iterable

from core.evaluation.metrics import Metric
from core.sections import SEVEN_TASKS

SEVEN_METRICS = {
    "boolq": "acc",
    "piqa": "acc",
    "hellaswag": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "openbookqa": "acc_norm",
}
"""The metric of each task that goes into the mean."""
AVERAGE_TASK = "mean of the seven tasks"
AVERAGE_METRIC = "acc"
_OF_THE_TASK = ("split", "task_version", "shots_from")
"""What may differ between the tasks: it belongs to each of them. All other settings must be equal."""

assert set(SEVEN_METRICS) == set(SEVEN_TASKS)


def seven_average(metrics: Iterable[Metric]) -> Metric | None:
    """The mean over the seven tasks, or None unless all seven are there, at one stage and with equal settings.

    Its protocol has the settings that all share, `parts` (task → metric) and `versions` (task → version of its
    definition); its details the mean chance and majority rate where the tasks have them. `n` counts documents.
    """
    found = {m.task: m for m in metrics if SEVEN_METRICS.get(m.task) == m.metric and math.isfinite(m.value)}
    if set(found) != set(SEVEN_METRICS):
        return None
    parts = [found[task] for task in SEVEN_METRICS]
    shared = [{k: v for k, v in part.protocol.items() if k not in _OF_THE_TASK} for part in parts]
    if any(part.stage != parts[0].stage for part in parts) or any(each != shared[0] for each in shared):
        return None
    errors = [part.stderr for part in parts]
    stderr = None if None in errors else math.sqrt(math.fsum((error or 0.0) ** 2 for error in errors)) / len(parts)
    rates = {
        name: math.fsum(part.details[name] for part in parts) / len(parts)
        for name in ("chance", "majority")
        if all(name in part.details for part in parts)
    }
    return Metric(
        stage=parts[0].stage,
        task=AVERAGE_TASK,
        metric=AVERAGE_METRIC,
        value=math.fsum(part.value for part in parts) / len(parts),
        stderr=stderr,
        n=sum(part.n for part in parts),
        protocol={
            **shared[0],
            "parts": dict(SEVEN_METRICS),
            "versions": {part.task: part.protocol.get("task_version") for part in parts},
        },
        details=rates,
    )
