"""The mean of the seven tasks: which metric of each, when there is one, and its error."""

import math
from dataclasses import replace

import numpy as np
import pytest

from core.charts_frames import PRIMARY
from core.evaluation.averages import SEVEN_METRICS, seven_average
from core.evaluation.metrics import Metric

SHARED = {"harness": "lm_eval 0.4.13", "shots": 0, "limit": 100, "dtype": "float32"}


def seven() -> list[Metric]:
    """Both metrics of every task that has both, each value different."""
    rows = []
    for place, task in enumerate(SEVEN_METRICS):
        own = {**SHARED, "split": "test" if place % 2 else "validation", "task_version": float(place)}
        for shift, metric in enumerate(("acc", "acc_norm")):
            value = 0.3 + 0.05 * place + 0.01 * shift
            details = {"chance": 0.25, "majority": 0.3 + place / 100}
            rows.append(Metric("pruned", task, metric, value, 0.01 * (place + 1), 100, own, details))
    return rows


def test_it_takes_of_each_task_the_metric_that_the_paper_reports() -> None:
    average = seven_average(seven())
    assert average is not None
    normed = {"hellaswag": 2, "arc_challenge": 5, "openbookqa": 6}
    assert {task for task, metric in SEVEN_METRICS.items() if metric == "acc_norm"} == set(normed)
    expected = [0.3 + 0.05 * place + (0.01 if place in normed.values() else 0) for place in range(7)]
    assert average.value == pytest.approx(np.mean(expected))
    assert average.protocol["parts"] == SEVEN_METRICS == PRIMARY
    assert average.n == 700


def test_its_standard_error_is_that_of_a_mean_of_independent_values() -> None:
    average = seven_average(seven())
    assert average is not None
    generator = np.random.default_rng(0)
    drawn = generator.normal(0, [0.01 * (place + 1) for place in range(7)], size=(200_000, 7)).mean(axis=1)
    assert average.stderr == pytest.approx(drawn.std(), rel=0.01)
    unknown = [replace(m, stderr=None) if m.task == "piqa" else m for m in seven()]
    assert getattr(seven_average(unknown), "stderr", 0) is None


def test_it_names_what_all_share_and_keeps_what_belongs_to_each() -> None:
    average = seven_average(seven())
    assert average is not None
    assert {key: average.protocol[key] for key in SHARED} == SHARED
    assert "split" not in average.protocol
    assert average.protocol["versions"]["openbookqa"] == 6.0
    assert average.details == pytest.approx({"chance": 0.25, "majority": 0.33})


def test_there_is_none_without_all_seven() -> None:
    assert seven_average([m for m in seven() if m.task != "boolq"]) is None
    assert seven_average([m for m in seven() if (m.task, m.metric) != ("hellaswag", "acc_norm")]) is None
    broken = [replace(m, value=math.nan) if m.task == "piqa" else m for m in seven()]
    assert seven_average(broken) is None


@pytest.mark.parametrize("change", [{"limit": 50}, {"shots": 5}, {"dtype": "bfloat16"}, {"seed": 1}])
def test_there_is_none_of_unequal_settings(change: dict[str, object]) -> None:
    rows = [replace(m, protocol={**m.protocol, **change}) if m.task == "piqa" else m for m in seven()]
    assert seven_average(rows) is None


def test_details_survive_the_file_and_are_left_out_where_there_are_none() -> None:
    average = seven_average(seven())
    assert average is not None
    assert Metric.from_json(average.to_json()) == average
    assert "details" not in replace(average, details={}).to_json()
