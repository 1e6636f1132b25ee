"""Compare's charts by the data they hold: fronts, bands, lines from the baseline, heatmap, parallel axes, stages."""

import json
import math
import random

import pandas as pd
import pytest

from core import charts
from core.charts_style import delta_words
from tests.chart_rows import metric_row, quality, run_row, study, traces

SPEED = {"batch": 1, "device": "cpu"}


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def dominated(point, others):
    return any(
        o[0] >= point[0] and o[1] >= point[1] and (o[0] > point[0] or o[1] > point[1]) for o in others if o is not point
    )


def test_runs_are_ordered_dense_first_by_series_and_what_they_removed_and_those_without_come_last():
    draw = random.Random(1)
    table = pd.DataFrame(
        {
            "kind": [draw.choice(["mask", "dense", "cut"]) for _ in range(40)],
            "series": [draw.choice(["b", "a", None]) for _ in range(40)],
            "removed": [draw.choice([0.1, 0.2, math.nan]) for _ in range(40)],
            "run_id": [f"run {number}" for number in draw.sample(range(90), 40)],
        }
    )
    ordered = table.assign(rest=table["kind"] != "dense").sort_values(["rest", "kind", "series", "removed", "run_id"])
    assert charts.at_order(table)["run_id"].tolist() == ordered["run_id"].tolist()


def test_the_front_is_what_a_comparison_of_all_pairs_finds():
    draw = random.Random(3)
    for size in (0, 1, 2, 30):
        points = [(draw.randint(0, 9), draw.randint(0, 9)) for _ in range(size)]
        found = charts.frontier([float(a) for a, _ in points], [float(b) for _, b in points])
        assert found == [not dominated(point, points) for point in points]


def test_the_pareto_front_of_a_study_and_hiding_what_is_dominated():
    runs, metrics, baselines = study()
    worse = run_row("l1-30", "l1", 0.3, 0.15)
    runs = pd.concat([runs, pd.DataFrame([worse])])
    metrics = pd.concat([metrics, pd.DataFrame([metric_row("l1-30", "perplexity/passages", "perplexity", 90.0, 1.0)])])
    table = charts.points(runs, metrics, {**baselines, "l1-30": "dense-1"})
    ppl = quality(table, "perplexity/passages", "perplexity")
    rows = charts.tradeoff_rows(table, ppl)
    assert set(rows.loc[rows["front"], "run_id"]) == {"dense-1", "taylor-20", "taylor-30"}
    figure = charts.tradeoff(table, ppl)
    stair = named(figure, "Pareto front")
    assert list(stair.x) == pytest.approx([0.0, 0.106, 0.169])
    assert list(stair.y) == [26.2, 44.0, 78.5]
    assert stair.line.shape == "vh"  # a share that must be reached: the next run has to be taken
    hidden = charts.tradeoff(table, ppl, dominated=False)
    assert {custom[0] for trace in traces(hidden) for custom in trace.customdata} == {
        "dense-1",
        "taylor-20",
        "taylor-30",
    }
    assert charts.hidden_words(rows) == "1 dominated run hidden"
    assert "Pareto front" not in {trace.name for trace in charts.tradeoff(table, ppl, front=False).data}


def with_speed():
    """The study, with bytes, and speeds that were measured beside the dense model in each run."""
    runs, metrics, baselines = study()
    runs = pd.concat([runs, pd.DataFrame([run_row("q8", "q8_0", None, 0.0, kind="quantised")])], ignore_index=True)
    runs["bytes"] = [400, 300, 350, 400, 140]
    rows = [metric_row("dense-1", "speed", "decode_tokens_per_second", 10.0, 0.1, SPEED)]
    for run_id, own, dense in (("taylor-30", 24.0, 20.0), ("taylor-20", 11.0, 10.0), ("wanda-50", 4.0, 4.0)):
        rows.append(metric_row(run_id, "speed", "decode_tokens_per_second", own, 0.1, SPEED))
        rows.append(metric_row(run_id, "speed", "decode_tokens_per_second", dense, 0.1, SPEED, stage="dense"))
    rows.append(metric_row("q8", "perplexity/passages", "perplexity", 26.4, 0.3, n=40_000))
    return charts.points(runs, pd.concat([metrics, pd.DataFrame(rows)]), {**baselines, "q8": "dense-1"})


def test_speed_counts_as_a_multiple_of_the_dense_model_measured_beside_it():
    table = with_speed()
    costs = {cost.label: cost for cost in charts.costs(table)}
    assert list(costs)[:3] == ["share of the whole model", "parameters", "bytes on disk"]
    speed = costs["decode speed, times dense"]
    ppl = quality(table, "perplexity/passages", "perplexity")
    rows = charts.tradeoff_rows(table, ppl, panel="all", size=speed)
    assert dict(zip(rows["run_id"], rows["x"], strict=True)) == pytest.approx(
        {"dense-1": 1.0, "taylor-30": 1.2, "taylor-20": 1.1, "wanda-50": 1.0}
    )
    figure = charts.tradeoff(table, ppl, panel="all", size=speed)
    assert "more is better" in figure.layout.xaxis.title.text
    (trace,) = traces(figure, "taylor")
    assert any("24.00 ± 0.10 tokens/s, 1.20 times dense" in custom[1] for custom in trace.customdata)


def test_masks_share_a_panel_only_where_the_axis_is_bytes_or_speed():
    table = with_speed()
    costs = {cost.label: cost for cost in charts.costs(table)}
    assert charts.panels(table) == charts.panels(table, "parameters") == ["cut", "mask"]
    assert charts.panels(table, "bytes") == charts.panels(table, costs["decode speed, times dense"]) == ["all"]
    figure = charts.tradeoff(table, quality(table, "perplexity/passages", "perplexity"), panel="all", size="bytes")
    assert {custom[0] for trace in traces(figure) for custom in trace.customdata} == set(table["run_id"])
    assert "masks keep their bytes" in figure.layout.title.text


def test_a_rounded_dense_model_is_a_reference_that_dominates_in_bytes():
    table = with_speed()
    ppl = quality(table, "perplexity/passages", "perplexity")
    rows = charts.tradeoff_rows(table, ppl, panel="all", size="bytes")
    assert set(rows.loc[rows["front"], "run_id"]) == {"q8", "dense-1"}
    shown = charts.tradeoff(table, ppl, panel="all", size="bytes", dominated=False)
    assert {custom[0] for trace in traces(shown) for custom in trace.customdata} == {"q8", "dense-1"}


def seeds():
    runs = pd.DataFrame(
        [{**run_row(f"r{i}", "random", 0.2, 0.1 + i / 1000), "seed": i} for i in range(3)]
        + [run_row("r9", "random", 0.4, 0.2), run_row("d", None)]
    )
    values = {"r0": 0.30, "r1": 0.40, "r2": 0.35, "r9": 0.2, "d": 0.6}
    metrics = pd.DataFrame([metric_row(run_id, "piqa", "acc", value) for run_id, value in values.items()])
    return charts.points(runs, metrics, dict.fromkeys(values, "d"))


def test_seeds_are_one_point_of_a_line_with_a_band_from_the_lowest_to_the_highest():
    table = seeds()
    piqa = quality(table, "piqa")
    rows = charts.ratio_rows(table, piqa).set_index("ratio")
    assert rows.loc[0.2, ["x", "mean", "deviation", "low", "high"]].tolist() == pytest.approx(
        [0.101, 0.35, 0.05, 0.3, 0.4]
    )
    assert rows.loc[0.2, "runs"] == 3
    assert math.isnan(rows.loc[0.4, "deviation"])
    figure = charts.ratio_curve(table, piqa)
    (band,) = [trace for trace in figure.data if trace.fill == "toself"]
    assert list(band.x) == pytest.approx([0.101, 0.2, 0.2, 0.101])
    assert list(band.y) == pytest.approx([0.4, 0.2, 0.2, 0.3])
    assert "seed" in figure.layout.title.text
    assert "standard deviation 0.05 over 3 seeds" in charts.alt(figure)


def test_without_repeated_seeds_there_is_no_band():
    table = charts.points(*study())
    figure = charts.ratio_curve(table, quality(table, "piqa"))
    assert not [trace for trace in figure.data if trace.fill]
    assert "band" not in figure.layout.title.text


def test_dots_are_joined_with_their_baselines_value():
    table = charts.points(*study())
    piqa = quality(table, "piqa")
    figure = charts.task_dots(table, [piqa])
    ways = [trace for trace in figure.data if trace.mode == "lines" and not trace.name]
    assert len(ways) == 3  # the dense model has no way to itself
    ends = {tuple(x for x in way.x[3:5]) for way in ways}
    assert ends == {(0.65, 0.57), (0.65, 0.6), (0.65, 0.61)}


def test_any_run_can_be_the_baseline():
    runs, metrics, _ = study()
    table = charts.points(runs, metrics, dict.fromkeys(runs["id"], "taylor-20"))
    piqa = quality(table, "piqa")
    rows = table[table["quality"] == piqa.key].set_index("run_id")
    assert rows["delta"].to_dict() == pytest.approx(
        {"dense-1": 0.05, "taylor-30": -0.03, "taylor-20": 0.0, "wanda-50": 0.01}
    )
    assert set(rows["against"]) == {"taylor 20 %"}
    _, texts = charts.comparison_table(table, [piqa], intervals=True)
    assert texts.loc["taylor-20", "Δ piqa acc"] == "–"
    assert texts.loc["dense-1", "Δ piqa acc"].startswith("+5.0 (−8.")
    (trace,) = traces(charts.tradeoff(table, piqa), "dense")
    assert "against taylor 20 %  +5.0 (" in trace.customdata[0][1]


def test_what_was_measured_beside_a_run_is_no_baseline_for_another_cut_run():
    runs, metrics, _ = study()
    speeds = [
        metric_row("taylor-30", "speed", "decode_tokens_per_second", 24.0, 0.1, SPEED),
        metric_row("taylor-30", "speed", "decode_tokens_per_second", 20.0, 0.1, SPEED, stage="dense"),
        metric_row("taylor-20", "speed", "decode_tokens_per_second", 11.0, 0.1, SPEED),
    ]
    metrics = pd.concat([metrics, pd.DataFrame(speeds)])
    for pinned, expected in (("dense-1", 4.0), ("taylor-20", 13.0)):
        table = charts.points(runs, metrics, dict.fromkeys(runs["id"], pinned))
        row = table[(table["run_id"] == "taylor-30") & (table["task"] == "speed")].iloc[0]
        assert (row["delta"], row["beside"]) == (pytest.approx(expected), 20.0)


def test_the_heatmap_holds_points_of_difference_and_marks_what_holm_leaves():
    runs, metrics, baselines = study()
    far = metrics["run_id"].eq("taylor-30") & metrics["task"].eq("piqa")
    metrics.loc[far, ["value", "stderr"]] = [0.2, 0.04]
    table = charts.points(runs, metrics, baselines)
    tasks = [q for q in charts.qualities(table) if q.is_task]
    rows = charts.delta_rows(table, tasks)
    assert len(rows) == 6
    assert rows.loc[rows["mark"] != "", ["run_id", "task"]].to_numpy().tolist() == [["taylor-30", "piqa acc"]]
    (heat,) = charts.delta_heatmap(table, tasks).data
    places = {custom[0]: line for custom, line in zip((row[0] for row in heat.customdata), heat.z, strict=True)}
    assert places["taylor-30"][0] == pytest.approx(-45.0)
    assert places["wanda-50"][0] == pytest.approx(-4.0)
    assert heat.zmid == 0
    assert heat.zmin == pytest.approx(-heat.zmax)
    assert "−45.0 ▼" in [text for line in heat.text for text in line]
    assert "95 % interval, as of independent values" in heat.customdata[0][0][1]


def test_a_task_that_was_not_measured_leaves_its_cell_empty():
    runs, metrics, baselines = study()
    metrics = metrics[~(metrics["run_id"].eq("wanda-50") & metrics["task"].eq("winogrande"))]
    table = charts.points(runs, metrics, baselines)
    (heat,) = charts.delta_heatmap(table, [q for q in charts.qualities(table) if q.is_task]).data
    line = next(place for place, row in enumerate(heat.customdata) if row[0][0] == "wanda-50")
    assert math.isnan(heat.z[line][1])
    assert heat.text[line][1] == ""


@pytest.mark.parametrize("dark", [False, True])
def test_parallel_axes_leave_out_runs_without_a_value_and_turn_better_up(dark):
    runs, metrics, baselines = study()
    metrics = metrics[~(metrics["run_id"].eq("wanda-50") & metrics["task"].eq("piqa"))]
    table = charts.points(runs, metrics, baselines, {"taylor": "Taylor"})
    chosen = [quality(table, "perplexity/passages", "perplexity"), quality(table, "piqa")]
    assert charts.left_out(table, chosen) == ["wanda 50 %"]
    (lines,) = charts.many_runs(table, chosen, dark=dark).data
    axes = {axis.label: axis for axis in lines.dimensions}
    assert list(axes) == ["method", "removed", "parameters", "perplexity, passages", "piqa acc"]
    assert len(lines.customdata) == 3
    assert list(axes["method"].ticktext) == ["dense", "Taylor"]
    assert list(axes["perplexity, passages"].range) == [78.5, 26.2]
    assert list(axes["piqa acc"].range) == [0.57, 0.65]
    assert lines.line.reversescale is dark  # what is better stands out from the page


def test_stages_are_stacked_in_their_order_without_parts_counted_twice():
    seconds = {"evaluate": 60.0, "load": 3.0, "evaluate.task.piqa": 20.0, "prune": 12.0, "nonsense": 9.0}
    stages = pd.DataFrame(
        [{"run_id": run, "stage": name, "seconds": value} for run in ("b", "a") for name, value in seconds.items()]
    )
    labels = {"a": "<b>first</b>", "b": "second", "c": "without times"}
    rows = charts.stage_rows(stages, labels)
    assert rows["run_id"].tolist() == ["a"] * 3 + ["b"] * 3
    assert rows["stage"].tolist()[:3] == ["load", "prune", "evaluate"]
    figure = charts.stage_bars(stages, labels)
    assert [trace.name for trace in figure.data] == ["load", "prune", "evaluate"]
    assert list(figure.data[2].x) == [60.0, 60.0]
    assert "80% of the run" in figure.data[2].customdata[0][1]
    assert "<b>first</b>" not in json.dumps(figure.to_dict()["layout"]["yaxis"]["ticktext"])
    assert figure.layout.barmode == "stack"
    assert len({trace.marker.pattern.shape or "" for trace in figure.data}) > 1  # not by colour alone


def test_no_runs_with_times_give_an_empty_chart():
    none = pd.DataFrame(columns=["run_id", "stage", "seconds"])
    assert charts.stage_rows(none, {"a": "a"}).empty
    assert not charts.stage_bars(none, {"a": "a"}).data


def test_differences_say_their_interval_in_the_units_of_the_quality():
    table = with_speed()
    ppl, piqa = quality(table, "perplexity/passages", "perplexity"), quality(table, "piqa")
    speed = quality(table, "speed", "decode_tokens_per_second")
    assert delta_words(52.3, 1.2345, ppl) == "+52.30 (+49.88 to +54.72)"
    assert delta_words(-0.08, 0.03, piqa) == "−8.0 (−13.9 to −2.1) points"
    assert delta_words(12.5, 1.0, speed) == "+12.50 (+10.54 to +14.46) tokens/s"
    assert delta_words(0.02, math.nan, piqa) == "+2.0 points"
    assert delta_words(math.nan, 0.1, piqa) == "–"


def test_every_new_chart_survives_hostile_names_and_says_its_values_in_words():
    runs, metrics, baselines = study()
    runs["name"] = ["dense", "<img src=x onerror=alert(1)>", "$x^2$ <b>", "wanda"]
    table = charts.points(runs, metrics, baselines)
    qs = charts.qualities(table)
    tasks = [q for q in qs if q.is_task]
    stages = pd.DataFrame([{"run_id": run, "stage": "load", "seconds": 1.0} for run in runs["id"]])
    labels = dict(zip(table["run_id"], table["label"], strict=True))
    figures = [
        charts.tradeoff(table, qs[0]),
        charts.delta_heatmap(table, tasks),
        charts.many_runs(table, qs[:2]),
        charts.stage_bars(stages, labels),
    ]
    for figure in figures:
        assert charts.alt(figure)
        figure.layout.meta = None  # the text alternative: an attribute, never read as markup
        assert "<img" not in figure.to_json()
        assert "$x" not in figure.to_json()
