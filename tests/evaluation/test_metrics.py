"""Metrics as they are stored."""

import json
import math

import pytest

from core.evaluation.metrics import Metric, standard_error


def test_a_metric_survives_json() -> None:
    metric = Metric("pruned", "piqa", "acc", 0.65, 0.05, 100, {"shots": 0})
    assert Metric.from_json(json.loads(json.dumps(metric.to_json(), allow_nan=False))) == metric


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_value_that_is_no_number_becomes_null_and_comes_back_as_nan(value: float) -> None:
    stored = json.dumps(Metric("pruned", "t", "perplexity", value, value, 1).to_json(), allow_nan=False)
    again = Metric.from_json(json.loads(stored))
    assert math.isnan(again.value)
    assert again.stderr is None


def test_at_changes_the_stage_alone() -> None:
    metric = Metric("pruned", "t", "m", 1.0, None, 3, {"a": 1})
    assert metric.at("recovered") == Metric("recovered", "t", "m", 1.0, None, 3, {"a": 1})


def test_the_standard_error_of_a_hand_worked_case() -> None:
    assert standard_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt(14 / 3 / 4))
    assert standard_error([5.0]) is None
