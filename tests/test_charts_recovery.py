"""Charts of recovery by the data they hold: before and after, gains, the training's curve."""

import math
from typing import Any

import pandas as pd
import pytest

from core import charts, charts_recovery, charts_runs
from core.experiment import Experiment
from tests.chart_rows import metric_row, quality, study


def recovered_study():
    """The study, Taylor 30 % judged again after LoRA."""
    runs, metrics, baselines = study()
    later = [
        metric_row("taylor-30", "perplexity/passages", "perplexity", 33.0, 0.5, stage="recovered", n=40_000),
        metric_row("taylor-30", "piqa", "acc", 0.61, 0.049, stage="recovered"),
    ]
    return runs, pd.concat([metrics, pd.DataFrame(later)], ignore_index=True), baselines


def test_a_recovered_value_stands_beside_the_one_before_and_the_gain_between():
    table = charts.points(*recovered_study())
    assert table["before"].notna().sum() == 2
    rows = charts_recovery.gains(table)
    assert rows["run_id"].tolist() == ["taylor-30", "taylor-30"]
    one = rows[rows["metric"] == "perplexity"].iloc[0]
    assert (one["before"], one["value"], one["gain"]) == (78.5, 33.0, -45.5)
    assert one["gain_stderr"] == pytest.approx(math.hypot(1.2, 0.5))
    assert one["regained"] == pytest.approx(45.5 / (78.5 - 26.2))
    ppl = quality(table, "perplexity/passages", "perplexity")
    assert charts_recovery.gain_words(one, ppl, "▲") == "−45.50 ± 1.30 ▲"
    assert charts_recovery.interval_words(one, ppl) == ""  # not on the same documents
    q = quality(table, "piqa", "acc")
    assert charts_recovery.gain_marks(rows, [ppl, q]) == {("taylor-30", ppl.key): "▲"}
    assert charts_recovery.gain_marks(rows, [ppl, q], tasks=True) == {("taylor-30", ppl.key): "▲"}  # within chance
    assert charts_recovery.regained_words(one, ppl) == "87 %"


def test_gains_on_the_same_documents_replace_those_of_independent_values():
    table = charts.points(*recovered_study())
    gained = pd.DataFrame(
        [("taylor-30", "piqa", "acc", "", "taylor-30", 100, 0.01, 0.002)],
        columns=["run_id", "task", "metric", "text", "baseline", "n", "paired_stderr", "paired_p"],
    )
    rows = charts_recovery.gains(table, gained)
    one = rows[rows["metric"] == "acc"].iloc[0]
    assert (one["gain_stderr"], one["gain_p"], bool(one["gain_paired"])) == (0.01, 0.002, True)
    q = quality(table, "piqa", "acc")
    assert charts_recovery.gain_words(one, q) == "+4.0 ± 1.0 points"
    assert charts_recovery.interval_words(one, q) == "+2.0 to +6.0 points"
    assert charts_recovery.gain_marks(rows, [q]) == {}  # single tasks are marked where that is asked for
    marks = charts_recovery.gain_marks(rows, [q], tasks=True)
    assert marks == {("taylor-30", q.key): "▲"}
    numbers, texts = charts_recovery.gains_table(rows, q, marks)
    assert texts.loc["taylor-30"].tolist()[1:] == [
        "65.0 ± 4.8 %", "57.0 ± 5.0 %", "61.0 ± 4.9 %", "+4.0 ± 1.0 points ▲", "+2.0 to +6.0 points", "50 %",
    ]  # fmt: skip
    assert numbers.loc["taylor-30", "Gain"] == pytest.approx(0.04)


def test_runs_without_recovery_have_no_gains():
    table = charts.points(*study())
    assert charts_recovery.gains(table).empty
    assert charts_recovery.gain_marks(charts_recovery.gains(table), charts.qualities(table)) == {}
    assert charts_recovery.gains(table.iloc[:0]).empty


def test_before_and_after_are_drawn_hollow_and_filled_with_dense_dashed():
    table = charts.points(*recovered_study())
    ppl = quality(table, "perplexity/passages", "perplexity")
    chart = charts_recovery.gain_dots(charts_recovery.gains(table), ppl)
    named = {trace.name: trace for trace in chart.data if trace.name}
    assert (named["pruned"].x[0], named["recovered"].x[0]) == (78.5, 33.0)
    assert "open" in named["pruned"].marker.symbol
    assert "open" not in named["recovered"].marker.symbol
    assert named["recovered"].customdata[0][0] == "taylor-30"
    assert chart.layout.shapes[0].x0 == 26.2
    assert "78.50 ± 1.20 to 33.00 ± 0.50" in charts.alt(chart)


def test_other_charts_show_where_a_recovered_run_stood_before_and_their_axis_holds_it():
    table = charts.points(*recovered_study())
    ppl = quality(table, "perplexity/passages", "perplexity")
    for chart in (charts.tradeoff(table, ppl), charts.ratio_curve(table, ppl)):
        (early,) = [trace for trace in chart.data if trace.mode == "lines+markers"]
        assert list(early.y) == [78.5, 33.0]
        low, high = chart.layout.yaxis.range
        assert low < 26.2
        assert high > 78.5


def series_of(recoveries: list[dict[str, Any] | None], **pruning: Any) -> list[str]:
    cut = {"method": "taylor", "ratio": 0.34, **pruning}
    texts = [Experiment.parse({"pruning": cut, "recovery": recovery}).to_yaml() for recovery in recoveries]
    return charts_runs.series_names(pd.DataFrame({"method": "taylor", "experiment": texts}))


def test_runs_of_one_method_with_and_without_recovery_are_two_lines():
    data = {"path": "/data/rows.jsonl", "format": "chat"}
    full = {"kind": "distillation", "full_weights": True, "epochs": 1}
    assert series_of([None, {"kind": "lora", "epochs": 4, "data": data}]) == ["taylor", "taylor, LoRA"]
    assert series_of([None, {"kind": "lora"}, {"kind": "lora", "data": data}, {"kind": "lora", "epochs": 4}, full]) == [
        "taylor",
        "taylor, LoRA, epochs 2.0",
        "taylor, LoRA, on rows.jsonl, epochs 2.0",
        "taylor, LoRA, epochs 4.0",
        "taylor, distilled",
    ]


POINTS = [
    {"step": 0, "seconds": 0.0, "tokens": 0, "loss": None, "rate": 0.0, "validation": 7.5},
    {"step": 1, "seconds": 12.0, "tokens": 473, "loss": 6.0, "rate": 1e-4, "validation": None},
    {"step": 9, "seconds": 60.0, "tokens": 4000, "loss": 5.0, "rate": 1e-5, "validation": 5.6},
]


def test_the_curve_of_a_training_has_loss_and_validation_where_each_was_measured():
    chart = charts_recovery.training_curve(POINTS)
    loss, held = chart.data
    assert list(loss.x) == [1, 9]
    assert list(held.y) == [7.5, 5.6]
    assert "7.500 at step 0 to 5.600 at step 9" in charts.alt(chart)
    assert charts_recovery.curve_table(POINTS)["minutes"].tolist() == [0.0, 0.2, 1.0]


@pytest.mark.parametrize("points", [[], [{"step": None}], [{"step": 1, "loss": float("nan")}]])
def test_a_curve_without_values_is_drawn_empty(points):
    assert charts.alt(charts_recovery.training_curve(points)).endswith("No points yet.")


def test_drift_of_a_recovered_model_stands_beside_what_it_was():
    from core.charts_layers import layer_drift

    before, after = (
        {"layers": [{"layer": i, "error": error * (i + 1), "stderr": 0.01} for i in range(3)]} for error in (0.2, 0.1)
    )
    chart = layer_drift(after, "taylor", before=before)
    named = {trace.name: trace for trace in chart.data if trace.showlegend is not False}
    assert list(named["before recovery"].y) == pytest.approx([0.2, 0.4, 0.6])
    assert list(named["recovered"].y) == pytest.approx([0.1, 0.2, 0.3])
    assert named["before recovery"].line.dash == "dot"
