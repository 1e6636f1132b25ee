"""Charts are checked by the data they hold, never by pixels."""

import json
import math
from html import unescape
from typing import Any

import pandas as pd
import pytest

from core import charts, charts_recovery, charts_runs, charts_style
from core.charts_style import OKABE_ITO, method_colour, method_symbol
from core.experiment import Experiment

TASK = {"limit": 100, "shots": 0, "harness": "0.4.13"}
TEXT = {"corpus": "passages", "split": "heldout", "window": 512, "bos": False}


def run_row(run_id, method, ratio=None, removed=None, kind=None, name="", experiment=""):
    kind = None if method is None else kind or ("mask" if method in ("wanda", "magnitude") else "width")
    before = 134_515_008
    removed = removed if removed is not None else (None if method is None else ratio * 0.6)
    after = before if kind in (None, "mask") else int(before * (1 - removed))
    return {
        "id": run_id, "name": name, "state": "COMPLETE", "method": method, "kind": kind, "ratio": ratio,
        "achieved_model_ratio": removed, "params_before": before, "params_after": after, "experiment": experiment,
    }  # fmt: skip


def metric_row(run_id, task, metric, value, stderr=None, protocol=None, stage="pruned", n=100):
    protocol = protocol or (TEXT if metric == "perplexity" else TASK)
    text = json.dumps(protocol, sort_keys=True)
    return {
        "run_id": run_id, "stage": stage, "task": task, "metric": metric, "value": value, "stderr": stderr, "n": n,
        "protocol": text, "protocol_key": str(abs(hash(text)))[:8],
    }  # fmt: skip


def study():
    """Dense, two Taylor ratios, one Wanda; perplexity and two tasks."""
    runs = pd.DataFrame(
        [
            run_row("dense-1", None, name="dense"),
            run_row("taylor-30", "taylor", 0.3, 0.169),
            run_row("taylor-20", "taylor", 0.2, 0.106),
            run_row("wanda-50", "wanda", 0.5, 0.39),
        ]
    )
    values = {
        "dense-1": (26.2, 0.3, 0.65, 0.48),
        "taylor-30": (78.5, 1.2, 0.57, 0.5),
        "taylor-20": (44.0, 0.6, 0.6, 0.51),
        "wanda-50": (40.1, 0.5, 0.61, 0.49),
    }
    rows = []
    for run_id, (ppl, err, piqa, wino) in values.items():
        rows += [
            metric_row(run_id, "perplexity/passages", "perplexity", ppl, err, n=40_000),
            metric_row(run_id, "piqa", "acc", piqa, math.sqrt(piqa * (1 - piqa) / 99)),
            metric_row(run_id, "winogrande", "acc", wino, math.sqrt(wino * (1 - wino) / 99)),
        ]
    return runs, pd.DataFrame(rows), dict.fromkeys(runs["id"], "dense-1")


@pytest.fixture
def table():
    return charts.points(*study())


def traces(figure, name=None):
    return [trace for trace in figure.data if trace.mode and "markers" in trace.mode and name in (None, trace.name)]


def quality(table, task, metric="acc"):
    return next(q for q in charts.qualities(table) if q.task == task and q.metric == metric)


def test_points_carry_the_difference_to_dense_and_its_standard_error(table):
    row = table[(table["run_id"] == "taylor-30") & (table["metric"] == "perplexity")].iloc[0]
    assert row["delta"] == pytest.approx(78.5 - 26.2)
    assert row["delta_stderr"] == pytest.approx(math.hypot(1.2, 0.3))


def test_a_value_of_another_protocol_has_no_difference_to_dense():
    runs, metrics, baselines = study()
    other = metric_row("taylor-30", "perplexity/passages", "perplexity", 60.0, 1.0, {**TEXT, "window": 2048})
    metrics = metrics[~((metrics["run_id"] == "taylor-30") & (metrics["metric"] == "perplexity"))]
    table = charts.points(runs, pd.concat([metrics, pd.DataFrame([other])]), baselines)
    row = table[(table["run_id"] == "taylor-30") & (table["metric"] == "perplexity")].iloc[0]
    assert math.isnan(row["delta"])


def test_protocols_are_separate_entries_whose_labels_say_what_differs():
    runs, metrics, baselines = study()
    other = metric_row("taylor-30", "perplexity/passages", "perplexity", 60.0, 1.0, {**TEXT, "window": 2048})
    table = charts.points(runs, pd.concat([metrics, pd.DataFrame([other])]), baselines)
    labels = {q.label for q in charts.qualities(table) if q.metric == "perplexity"}
    assert labels == {"perplexity, passages (window 512)", "perplexity, passages (window 2048)"}
    short = next(q for q in charts.qualities(table) if "2048" in q.label)
    assert {r for t in traces(charts.tradeoff(table, short)) for r, _ in t.customdata} == {"taylor-30"}
    assert set(charts.missing(table, short)) == {"dense", "taylor 20 %", "wanda 50 %"}


def test_what_was_measured_on_dense_beside_the_pruned_model_is_its_dense_value():
    runs, metrics, baselines = study()
    speed = [
        metric_row("taylor-30", "speed", "decode_tokens_per_s", 30.0, 1.0, {"device": "cpu"}),
        metric_row("taylor-30", "speed", "decode_tokens_per_s", 20.0, 1.0, {"device": "cpu"}, stage="dense"),
        metric_row("dense-1", "speed", "decode_tokens_per_s", 25.0, 1.0, {"device": "cpu"}, stage="dense"),
    ]
    table = charts.points(runs, pd.concat([metrics, pd.DataFrame(speed)]), baselines)
    rows = table[table["metric"] == "decode_tokens_per_s"].set_index("run_id")
    assert rows.loc["taylor-30", "value"] == 30.0
    assert rows.loc["taylor-30", "delta"] == 10.0
    assert rows.loc["dense-1", "value"] == 25.0


def test_of_a_recovered_run_the_later_value_counts():
    runs, metrics, baselines = study()
    later = metric_row("taylor-30", "perplexity/passages", "perplexity", 33.0, 0.5, stage="recovered")
    table = charts.points(runs, pd.concat([pd.DataFrame([later]), metrics]), baselines)
    rows = table[(table["run_id"] == "taylor-30") & (table["metric"] == "perplexity")]
    assert rows["value"].tolist() == [33.0]


def test_values_that_are_no_numbers_are_left_out_and_counted_as_missing():
    runs, metrics, baselines = study()
    metrics.loc[(metrics["run_id"] == "taylor-30") & (metrics["metric"] == "perplexity"), "value"] = None
    table = charts.points(runs, metrics, baselines)
    assert charts.missing(table, quality(table, "perplexity/passages", "perplexity")) == ["taylor 30 %"]


def test_masks_never_stand_in_the_panel_of_real_cuts(table):
    q = quality(table, "perplexity/passages", "perplexity")
    assert charts.panels(table) == ["cut", "mask"]
    shown = {
        panel: {r for t in traces(charts.tradeoff(table, q, panel=panel)) for r, _ in t.customdata}
        for panel in ("cut", "mask")
    }
    assert shown == {"cut": {"dense-1", "taylor-20", "taylor-30"}, "mask": {"dense-1", "wanda-50"}}
    assert charts.tradeoff(table, q, panel="mask").layout.title.text.startswith("Zeros, not smaller ")


def test_the_default_axis_is_the_achieved_share_of_the_whole_model(table):
    figure = charts.tradeoff(table, quality(table, "piqa"))
    assert figure.layout.xaxis.title.text == "share of the whole model removed"
    assert sorted(traces(figure, "taylor")[0].x) == [0.106, 0.169]


def test_both_panels_of_a_quality_share_its_range(table):
    q = quality(table, "piqa")
    cut, mask = (charts.tradeoff(table, q, panel=panel) for panel in ("cut", "mask"))
    assert cut.layout.yaxis.range == mask.layout.yaxis.range


def test_parameters_of_a_mask_are_those_that_are_not_zero(table):
    figure = charts.tradeoff(table, quality(table, "piqa"), panel="mask", size="parameters")
    assert traces(figure, "wanda")[0].x == pytest.approx([134_515_008 * 0.61])
    assert figure.layout.xaxis.title.text == "parameters that are not zero"


def test_error_bars_are_95_percent_intervals(table):
    trace = traces(charts.tradeoff(table, quality(table, "perplexity/passages", "perplexity")), "taylor")[0]
    assert list(trace.error_y.array) == pytest.approx([1.959964 * 0.6, 1.959964 * 1.2])


def test_a_ratio_line_goes_through_the_mean_of_the_seeds():
    runs = pd.DataFrame([run_row(f"r{i}", "random", 0.2, 0.1) for i in range(3)] + [run_row("r9", "random", 0.4, 0.2)])
    values = [10.0, 20.0, 30.0, 60.0]
    metrics = pd.DataFrame([metric_row(r, "piqa", "acc", v / 100) for r, v in zip(runs["id"], values, strict=True)])
    table = charts.points(runs, metrics, {})
    drawn = charts.ratio_curve(table, charts.qualities(table)[0], x="ratio").data
    lines = [t for t in drawn if t.mode == "lines" and not t.fill]
    assert len(lines) == 1
    assert list(lines[0].x) == [0.2, 0.4]
    assert list(lines[0].y) == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize(("worst", "fill"), [(60.0, "toself"), (4e9, "none")])
def test_a_band_that_ends_beyond_the_axis_does_not_cover_it(worst: float, fill: str):
    runs = pd.DataFrame([run_row("d", None)] + [run_row(f"r{i}", "random", 0.2, 0.1) for i in range(3)])
    values = [26.0, 40.0, 50.0, worst]
    metrics = [metric_row(r, "perplexity/x", "perplexity", v, 1.0) for r, v in zip(runs["id"], values, strict=True)]
    table = charts.points(runs, pd.DataFrame(metrics), {})
    (band,) = [t for t in charts.ratio_curve(table, charts.qualities(table)[0]).data if "seeds" in str(t.name)]
    assert band.fill == fill
    assert (min(band.y), max(band.y)) == (40.0, worst)


def test_runs_of_different_settings_are_not_joined_by_one_line():
    yaml = "pruning: {{method: taylor, layers: [{}, 25], ratio: {}}}"
    rows = [run_row(f"t{a}-{r}", "taylor", r, r / 2, experiment=yaml.format(a, r)) for a in (0, 4) for r in (0.2, 0.3)]
    runs = pd.DataFrame(rows)
    metrics = pd.DataFrame([metric_row(r, "piqa", "acc", 0.5) for r in runs["id"]])
    table = charts.points(runs, metrics, {}, {"taylor": "Taylor"})
    assert set(table["series"]) == {"Taylor, layers 0–25", "Taylor, layers 4–25"}
    figure = charts.ratio_curve(table, charts.qualities(table)[0])
    assert sorted(t.name for t in figure.data if t.mode == "lines") == ["Taylor, layers 0–25", "Taylor, layers 4–25"]
    assert len({trace.marker.symbol for trace in traces(figure)}) == 2


def test_perplexities_that_explode_are_drawn_on_a_logarithmic_axis_that_says_so():
    runs = pd.DataFrame([run_row("d", None), run_row("a", "l1", 0.5)])
    rows = [
        metric_row("d", "perplexity/x", "perplexity", 26.0, 0.3),
        metric_row("a", "perplexity/x", "perplexity", 9e4, 800.0),
    ]
    table = charts.points(runs, pd.DataFrame(rows), {})
    figure = charts.tradeoff(table, charts.qualities(table)[0])
    assert figure.layout.yaxis.type == "log"
    assert "lower is better, logarithmic" in figure.layout.title.text
    assert {"20", "5,000", "100,000"} <= set(figure.layout.yaxis.ticktext)
    assert 10 ** figure.layout.yaxis.range[1] == pytest.approx(26_000, rel=0.4)  # 90,000 lies beyond
    panels = {panel: charts.tradeoff(table, charts.qualities(table)[0], panel=panel) for panel in ("cut", "mask")}
    told = {
        panel: [each.text for each in chart.layout.annotations if "far above" in each.text]
        for panel, chart in panels.items()
    }
    assert told == {"cut": ["1 far above: a double click shows it"], "mask": []}
    dense = next(a for a in figure.layout.annotations if a.text.startswith("dense"))
    assert dense.y == pytest.approx(math.log10(26.0))


def test_task_dots_have_a_row_a_task_and_a_line_at_the_level_of_guessing(table):
    figure = charts.task_dots(table, [q for q in charts.qualities(table) if q.is_task])
    assert list(figure.layout.yaxis.ticktext) == ["piqa acc", "winogrande acc"]
    assert len(traces(figure)) == 4
    guess = next(t for t in figure.data if t.name == "guessing")
    assert [x for x in guess.x if x is not None] == [0.5] * 4


def test_hellaswag_is_reported_as_acc_norm_against_a_chance_of_one_quarter():
    runs = pd.DataFrame([run_row("d", None)])
    rows = [metric_row("d", "hellaswag", metric, 0.4) for metric in ("acc", "acc_norm")]
    found = charts.qualities(charts.points(runs, pd.DataFrame(rows), {}))
    assert [(q.metric, q.primary, q.chance) for q in found] == [("acc_norm", True, 0.25), ("acc", False, 0.25)]


@pytest.mark.parametrize("dark", [False, True])
def test_every_chart_carries_run_ids_alt_text_and_the_page_colours(table, dark):
    qs = charts.qualities(table)
    figures = [
        charts.tradeoff(table, qs[0], dark=dark),
        charts.ratio_curve(table, qs[0], dark=dark),
        charts.task_dots(table, qs, dark=dark),
    ]
    for figure in figures:
        assert figure.layout.paper_bgcolor == ("#14181A" if dark else "#FAF8F4")
        assert "taylor 30 %" in charts.alt(figure)
        for trace in traces(figure):
            assert all(custom[0] in set(table["run_id"]) for custom in trace.customdata)


def test_names_are_shown_as_text_never_as_markup_or_formulas():
    runs = pd.DataFrame([run_row("a", "l1", 0.2, name="<img src=x onerror=alert(1)> $x^2$ <b>bold</b>")])
    table = charts.points(runs, pd.DataFrame([metric_row("a", "<i>task</i>", "acc", 0.5)]), {})
    qs = charts.qualities(table)
    for figure in (charts.tradeoff(table, qs[0]), charts.task_dots(table, qs)):
        text = json.dumps(figure.to_plotly_json()["data"], default=str) + str(figure.layout.yaxis)
        assert "<img" not in text
        assert "$x" not in text
        assert "<i>" not in text


def test_methods_have_distinct_marks_and_keep_their_colours_in_the_dark():
    names = ["magnitude", "wanda", "random", "l1", "l2", "taylor", "sparsegpt", "ria", "flap", "obs"]
    assert len({(method_colour(n, False), method_symbol(n)) for n in names}) == len(names)
    assert len({method_symbol(n) for n in names}) == len(names)
    assert all(method_colour(n, dark) in OKABE_ITO.values() for n in names for dark in (False, True))
    assert method_colour("dense", True) == "#9AA3A8"
    assert method_colour("some_new_method", False) in OKABE_ITO.values()


def test_the_mode_bar_never_sends_a_chart_to_a_cloud():
    config = charts.config("Quality / size")
    assert config["showSendToCloud"] is False
    assert config["toImageButtonOptions"]["filename"] == "espalier-quality---size"


def test_the_table_has_dense_on_top_and_says_what_is_better_beyond_chance(table):
    numbers, texts = charts.comparison_table(table, charts.qualities(table))
    assert numbers.index[0] == "dense-1"
    assert texts.loc["taylor-30", "perplexity, passages"] == "78.50 ± 1.20"
    assert texts.loc["taylor-30", "Δ perplexity, passages"] == "+52.30 ± 1.24 ▼"
    assert texts.loc["taylor-20", "Δ winogrande acc"] == "+3.0 ± 7.1 points"
    assert texts.loc["wanda-50", "Removed"] == "39.0 % zeros"
    assert texts.loc["dense-1", "Δ piqa acc"] == "–"


def test_columns_without_any_number_are_named():
    runs, metrics, _ = study()
    numbers, _ = charts.comparison_table(table := charts.points(runs, metrics, {}), charts.qualities(table))
    assert charts.without_numbers(numbers) == ["Δ perplexity, passages", "Δ piqa acc", "Δ winogrande acc"]


def test_runs_of_one_name_are_told_apart():
    runs = pd.DataFrame([run_row("x-aaaa", "l1", 0.2, name="same"), run_row("x-bbbb", "l1", 0.3, name="same")])
    metrics = pd.DataFrame([metric_row(r, "piqa", "acc", 0.5) for r in runs["id"]])
    assert set(charts.points(runs, metrics, {})["label"]) == {"same · aaaa", "same · bbbb"}


def test_an_empty_store_gives_empty_points():
    empty = charts.points(pd.DataFrame(), pd.DataFrame(), {})
    assert empty.empty
    assert charts.qualities(empty) == []


def test_the_export_holds_every_value_unrounded(table):
    text = charts.export(table).decode()
    assert text.count("\n") == len(table) + 1
    assert "78.5" in text


def test_intervals_of_shares_end_at_zero_and_one():
    runs = pd.DataFrame([run_row("d", None)])
    table = charts.points(runs, pd.DataFrame([metric_row("d", "piqa", "acc", 0.9, 0.1)]), {})
    (trace,) = traces(charts.task_dots(table, charts.qualities(table)))
    assert list(trace.error_x.array) == pytest.approx([0.1])
    assert list(trace.error_x.arrayminus) == pytest.approx([0.196], abs=1e-3)


def test_the_protocol_that_most_runs_share_comes_first():
    runs, metrics, baselines = study()
    rare = metric_row("taylor-30", "perplexity/passages", "perplexity", 60.0, 1.0, {**TEXT, "window": 128})
    table = charts.points(runs, pd.concat([pd.DataFrame([rare]), metrics]), baselines)
    assert [q.protocol for q in charts.qualities(table)][:2] == ["window 512", "window 128"]


@pytest.mark.parametrize(
    ("task", "metric", "value", "label", "shown", "lower"),
    [
        ("speed", "decode_tokens_per_second", 20.25, "decode speed", "20.25 tokens/s", False),
        ("speed", "first_token_milliseconds", 45.5, "time to the first token", "45.50 ms", True),
        ("speed", "peak_memory_bytes", 572_057_088.0, "peak memory", "572 MB", True),
        ("fidelity/passages", "kl_per_token", 0.5123, "KL from dense, passages", "0.5123 nats", True),
        ("fidelity/passages", "top1_agreement", 0.71, "top-1 agreement with dense, passages", "71.0 %", False),
    ],
)
def test_measures_have_names_units_and_a_direction(task, metric, value, label, shown, lower):
    runs = pd.DataFrame([run_row("d", None)])
    (found,) = charts.qualities(charts.points(runs, pd.DataFrame([metric_row("d", task, metric, value)]), {}))
    assert (found.label, charts.measured(value, math.nan, found)) == (label, shown)
    assert found.lower_is_better is lower


def test_every_method_has_a_colour_and_symbol_of_its_own_in_all_charts():
    from core.charts_style import _METHODS
    from core.pruning.registry import methods

    assert set(methods()) <= set(_METHODS)
    assert len(set(_METHODS.values())) == len(_METHODS)


def test_layers_and_channels_of_the_stream_are_real_cuts_and_never_beside_masks():
    table = pd.DataFrame({"kind": ["dense", "depth", "hidden"]})
    assert charts.panels(table) == ["cut"]
    assert charts.panels(pd.DataFrame({"kind": ["dense", "mask", "depth"]})) == ["cut", "mask"]


def accuracies(runs: int, tasks: int, p: float) -> pd.DataFrame:
    """A table of differences on tasks, each with the same uncorrected p."""
    rows = [run_row("dense-1", None, name="dense")]
    rows += [run_row(f"run-{i}", "taylor", 0.3, 0.1 + i / 100, name=f"run {i}") for i in range(runs)]
    names = ["piqa", "winogrande", "boolq", "arc_easy"][:tasks]
    metrics = [
        metric_row(row["id"], task, "acc", 0.6 if i == 0 else 0.5, 0.03) for task in names for i, row in enumerate(rows)
    ]
    paired = [(row["id"], task, "acc", "", "dense-1", 100, 0.03, p) for task in names for row in rows[1:]]
    columns = ["run_id", "task", "metric", "text", "baseline", "n", "paired_stderr", "paired_p"]
    frame = pd.DataFrame(paired, columns=columns)
    return charts.points(
        pd.DataFrame(rows), pd.DataFrame(metrics), dict.fromkeys((r["id"] for r in rows), "dense-1"), paired=frame
    )


def test_single_tasks_are_marked_only_on_request_and_after_holm():
    one, many = accuracies(1, 1, 0.02), accuracies(2, 4, 0.02)
    for table in (one, many):
        assert charts.marks(table, charts.qualities(table)) == {}
    assert set(charts.marks(one, charts.qualities(one), tasks=True).values()) == {"▼"}
    assert charts.marks(many, charts.qualities(many), tasks=True) == {}  # 8 · 0.02 > 0.05
    surer = accuracies(2, 4, 0.006)
    assert len(charts.marks(surer, charts.qualities(surer), tasks=True)) == 8


def test_differences_on_the_same_documents_take_the_place_of_independent_ones():
    table = accuracies(1, 1, 0.02)
    row = table[table["run_id"] == "run-0"].iloc[0]
    assert (row["paired"], row["delta_stderr"], row["p"]) == (True, 0.03, 0.02)
    runs, metrics, baselines = study()
    apart = charts.points(runs, metrics, baselines).set_index(["run_id", "metric"])
    assert not apart["paired"].any()
    delta, stderr = apart.loc[("taylor-30", "perplexity"), ["delta", "delta_stderr"]]
    assert apart.loc[("taylor-30", "perplexity"), "p"] == pytest.approx(math.erfc(delta / stderr / math.sqrt(2)))


def test_pairs_of_fewer_documents_or_of_another_dense_run_are_not_used():
    runs, metrics, baselines = study()
    columns = ["run_id", "task", "metric", "text", "baseline", "n", "paired_stderr", "paired_p"]
    rows = [
        ("taylor-30", "piqa", "acc", "", "dense-1", 99, 0.001, 0.0),
        ("taylor-20", "piqa", "acc", "", "dense-2", 100, 0.001, 0.0),
    ]
    table = charts.points(runs, metrics, baselines, paired=pd.DataFrame(rows, columns=columns))
    assert not table["paired"].any()


def test_the_mean_of_the_seven_tasks_comes_first_of_the_tasks_and_is_marked():
    runs, metrics, baselines = study()
    task = "mean of the seven tasks"
    means = [metric_row("dense-1", task, "acc", 0.6, 0.01), metric_row("taylor-30", task, "acc", 0.5, 0.01)]
    table = charts.points(runs, pd.concat([metrics, pd.DataFrame(means)]), baselines)
    found = charts.qualities(table)
    assert [q.label for q in found][:3] == ["perplexity, passages", task, "piqa acc"]
    mean = next(q for q in found if q.is_mean)
    assert charts.marks(table, found)["taylor-30", mean.key] == "▼"
    shown = charts.task_dots(table, [q for q in found if q.is_task])
    assert task in shown.layout.yaxis.ticktext


def test_rates_measured_on_the_documents_replace_the_tasks_usual_ones():
    runs, metrics, baselines = study()
    metrics["details"] = [
        json.dumps({"chance": 0.5, "majority": 0.62}) if t == "piqa" else "{}" for t in metrics["task"]
    ]
    table = charts.points(runs, metrics, baselines)
    piqa, wino = quality(table, "piqa"), quality(table, "winogrande")
    assert (piqa.chance, piqa.majority, wino.chance, wino.majority) == (0.5, 0.62, 0.5, None)
    figure = charts.task_dots(table, [piqa, wino])
    ways = [trace for trace in figure.data if trace.mode == "lines" and trace.name]
    lines = {trace.name: [x for x in trace.x if x is not None] for trace in ways}
    assert lines == {"guessing": [0.5] * 4, "majority": [0.62] * 2}


def test_what_calibration_did_not_read_comes_first():
    runs, metrics, baselines = study()
    leak = {**TEXT, "split": "train"}
    rows = [metric_row(run_id, "perplexity/passages", "perplexity", 20.0, 1.0, leak) for run_id in runs["id"]]
    for row in rows:
        row["details"] = json.dumps({"leakage": "said"} if row["run_id"] != "dense-1" else {})
    found = charts.qualities(charts.points(runs, pd.concat([pd.DataFrame(rows), metrics]), baselines))
    assert [q.label for q in found][:2] == ["perplexity, passages (heldout)", "perplexity, passages (train)"]


def test_bars_of_perplexity_are_the_bootstrap_interval():
    runs, metrics, baselines = study()
    metrics["details"] = [json.dumps({"interval": [75.0, 84.0]}) if v == 78.5 else "{}" for v in metrics["value"]]
    table = charts.points(runs, metrics, baselines)
    q = quality(table, "perplexity/passages", "perplexity")
    trace = next(t for t in traces(charts.tradeoff(table, q)) if t.name == "taylor")
    place = [custom[0] for custom in trace.customdata].index("taylor-30")
    assert (trace.error_y.array[place], trace.error_y.arrayminus[place]) == pytest.approx((5.5, 3.5))
    assert "95 % interval 75.00 to 84.00" in trace.customdata[place][1]


def test_hovering_shows_the_whole_protocol(table):
    q = quality(table, "piqa")
    text = traces(charts.tradeoff(table, q), "taylor")[0].customdata[0][1]
    assert all(word in text for word in ("0 shots", "first 100 documents", "harness 0.4.13", "n = 100"))


def test_protocols_whose_words_are_alike_are_told_apart_by_their_counts():
    from core.charts_words import differing_words

    protocols = [
        {"split": "heldout", "tokens": 100, "tokens_sha256": "a"},
        {"split": "heldout", "tokens": 2000, "tokens_sha256": "b"},
        {"split": "train", "tokens": 100, "tokens_sha256": "c"},
    ]
    words = [differing_words(protocols, each) for each in protocols]
    assert words == ["heldout, 100 tokens", "heldout, 2,000 tokens", "train"]


def test_long_labels_lose_what_others_have_too_and_stay_apart():
    own = ("10 %", "22 %")
    labels = [
        f"Optimal Brain Surgeon, {size}, layers 4–25, target model, {kind}" for size in own for kind in ("LoRA", "KD")
    ]
    labels += ["Taylor, 20 %, layers 4–25, target model", "Taylor, 20 %, layers 4–25"]
    cut = charts_style.distinct(labels, 34)
    assert cut == [
        "Optimal Brain Surgeon, 10 %…LoRA", "Optimal Brain Surgeon, 10 %…KD",
        "Optimal Brain Surgeon, 22 %…LoRA", "Optimal Brain Surgeon, 22 %…KD",
        "Taylor, 20 %…target model", "Taylor, 20 %, layers 4–25",
    ]  # fmt: skip
    assert charts_style.distinct(["a" * 99, "b, " * 40, "", "a" * 99], 20) == [
        "a" * 10 + "…" + "a" * 9, "b…b, b, b, b, b, b…", "", "a" * 10 + "…" + "a" * 9
    ]  # fmt: skip
    for label in [*labels, "one", "x" * 200, "words " * 40, "a <b> & $c$ " * 9]:
        lines = unescape(charts_style.two_lines(label)).split("<br>")
        assert len(lines) <= 2
        assert all(len(line) <= 34 and not line.startswith("%") for line in lines)
    assert charts_style.two_lines(labels[1]).endswith("KD")
    assert charts_style.two_lines("a <b>") == "a &lt;b&gt;"


def test_every_value_of_a_protocol_is_shown_and_hashes_are_cut_short():
    from core.charts_words import whole_protocol

    protocol = {"shots": 0, "limit": None, "chat_template": False, "parts": {"piqa": "acc"}, "tokens_sha256": "ab" * 32}
    words = whole_protocol(protocol)
    assert words == ["0 shots", "all documents", "without chat template", "parts: piqa acc", "tokens SHA-256 abababab…"]


def test_drift_by_layer_draws_what_is_finite_and_opens_what_was_taken_out():
    from core.charts_layers import drift_rows, layer_drift

    rows = [{"layer": i, "error": e, "stderr": 0.01, "removed": i == 1} for i, e in enumerate((0.1, 0.3, None, 0.2))]
    found = {"protocol": {"corpus": "passages"}, "layers": rows, "reason": ""}
    assert [row["layer"] for row in drift_rows(found)] == [0, 1, 3]
    figure = layer_drift(found, "last")
    kept, gone = traces(figure)
    assert (list(kept.x), list(gone.x)) == ([0, 3], [1])
    assert gone.marker.symbol.endswith("-open")
    assert "after layer 1: 30.0 %" in charts.alt(figure)
    for nothing in (None, {}, {"layers": "no"}, {"layers": [{"layer": "x", "error": 1.0}]}):
        assert drift_rows(nothing) == []


def test_values_measured_beside_other_work_carry_a_sign_and_are_named_once() -> None:
    details = {"disturbed": "other programs kept 1.0 of 2 cores busy"}
    table = pd.DataFrame({"label": ["a", "b", "b", "c"], "details": [json.dumps(details)] * 3 + ["{}"]})
    assert charts.disturbances(table) == ["a; b: measured beside other work (other programs kept 1.0 of 2 cores busy)"]
    assert charts.leak(details) == " ‡"
    assert charts.leak({}) == ""
    assert charts.detail_words({"quartiles": [1.0, 2.0], **details}) == [
        "quartiles of the repetitions 1.0 to 2.0",
        "disturbed: other programs kept 1.0 of 2 cores busy",
    ]


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


def test_runs_without_recovery_have_no_gains(table):
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


def test_what_all_names_begin_with_is_left_out_of_labels():
    def labels(*names: str) -> list[str]:
        rows = [run_row(f"r{place}", "l1", 0.1 * place + 0.1, name=name) for place, name in enumerate(names)]
        return charts_runs.describe_runs(pd.DataFrame([*rows, run_row("d", None, name="Mine: dense")]))[
            "label"
        ].tolist()

    assert labels("Mine: of: L1 10 %", "Mine: of: L1 20 %") == ["L1 10 %", "L1 20 %", "Mine: dense"]
    assert labels("Mine: L1 10 %", "Yours: L1 20 %") == ["Mine: L1 10 %", "Yours: L1 20 %", "Mine: dense"]
    assert labels("Mine: L1 10 %") == ["Mine: L1 10 %", "Mine: dense"]


def test_the_usual_goes_without_saying_and_lines_keep_apart():
    runs = [
        {"pruning": {"method": "obs", "ratio": 0.2}},
        {"pruning": {"method": "obs", "ratio": 0.2, "reconstruct": True}},
        {"pruning": {"method": "obs", "ratio": 0.2, "target": "model"}},
        {"pruning": {"method": "obs", "ratio": 0.2, "layers": [4, 25], "reconstruct": True}},
        {"pruning": {"method": "wanda", "ratio": 0.5}},
        {"pruning": {"method": "wanda", "pattern": "2:4"}},
        {"pruning": {"method": "taylor", "ratio": 0.2}},
        {"pruning": {"method": "taylor", "ratio": 0.2, "options": {"order": "mixed"}}},
    ]
    texts = [Experiment.parse(each).to_yaml() for each in runs]
    methods = [each["pruning"]["method"] for each in runs]
    assert charts_runs.series_names(pd.DataFrame({"method": methods, "experiment": texts})) == [
        "obs, all layers",
        "obs, all layers, refitted",
        "obs, all layers, of the whole model",
        "obs, layers 4–25, refitted",
        "wanda",
        "wanda, 2:4",
        "taylor",
        "taylor, mixed",
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
