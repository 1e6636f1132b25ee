"""Charts are checked by the data they hold, never by pixels."""

import json
import math

import pandas as pd
import pytest

from core import charts
from core.charts_style import OKABE_ITO, method_colour, method_symbol
from tests.chart_rows import TEXT, metric_row, quality, run_row, study, traces


@pytest.fixture
def table():
    return charts.points(*study())


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
