"""How charts name runs and lines: what all have is left out, what tells them apart stays."""

from html import unescape

import pandas as pd

from core import charts, charts_runs, charts_style
from core.experiment import Experiment
from tests.chart_rows import metric_row, run_row


def test_runs_of_one_name_are_told_apart():
    runs = pd.DataFrame([run_row("x-aaaa", "l1", 0.2, name="same"), run_row("x-bbbb", "l1", 0.3, name="same")])
    metrics = pd.DataFrame([metric_row(r, "piqa", "acc", 0.5) for r in runs["id"]])
    assert set(charts.points(runs, metrics, {})["label"]) == {"same · aaaa", "same · bbbb"}


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
