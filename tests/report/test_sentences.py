"""What a report says in words: which is lowest, which intervals leave out zero, what limits the numbers."""

import json
import math
from collections.abc import Callable

import pytest
from scipy import stats

from core.report.facts import contrast
from core.report.numbers import Numbers as FigureNumbers
from core.report.ticks import scales
from core.reports import Reports
from tests.report.conftest import HOSTILE, SPEED, TASK, Home, judged, metric
from tests.report.reading import report, rows, sentences, sheet_of, table


def test_runs_that_timed_a_method_elsewhere_take_no_row_from_those_that_judged_it(
    runs: Home, reports: Callable[[], Reports]
) -> None:
    half = {**TASK, "dtype": "bfloat16"}
    gpu = {"device": "cuda:0", "device_name": "NVIDIA H200", "dtype": "bfloat16"}

    def drift(corpus: str, value: float) -> list[dict]:
        protocol = {"corpus": corpus, "window": 512, "windows": 16, "dtype": "bfloat16"}
        return [metric("pruned", f"fidelity/{corpus}", "kl_per_token", value, 0.01, 16, protocol)]

    def quality(perplexity: float) -> list[dict]:
        text = {"corpus": "wikitext2", "window": 512, "windows": 592, "dtype": "bfloat16"}
        row = metric("pruned", "perplexity/wikitext2", "perplexity", perplexity, 0.5, 592, text)
        return [row, metric("pruned", "boolq", "acc", 0.5, 0.01, 3270, half), *drift("wikitext2", perplexity / 100)]

    def speed(device: str, dtype: str) -> list[dict]:
        protocol = {**SPEED, "device": device, "dtype": dtype}
        return [metric(which, "speed", "decode_tokens_per_second", 30.0, 0.4, 7, protocol)
                for which in ("dense", "pruned")]  # fmt: skip

    ids = [runs.run("dense", metrics=quality(26.0), **gpu)]
    for method, value in (("flap", 91.0), ("taylor", 140.0), ("l2", 1118.0)):
        ids.append(runs.run(method, {"method": method, "ratio": 0.2}, metrics=quality(value), **gpu))
    for where, dtype in ((gpu, "bfloat16"), ({}, "float32")):  # one's speed, on a GPU and a CPU, with another drift
        timed = [*speed("cuda" if where else "cpu", dtype), *drift("passages", 0.7)]
        ids.append(runs.run("flap speed", {"method": "flap", "ratio": 0.2}, metrics=timed, **where))
    document = report(reports, {run: run for run in ids})
    found = rows(table(document, "tab:cut"))
    size = "20\u00a0% of all layers, bfloat16: "
    assert {name.removeprefix(size) for name in found} == {"FLAP", "Taylor (LLM-Pruner)", "L2 norm"}
    perplexities = {cells["Perplexity (wikitext2)"] for cells in found.values()}
    assert perplexities == {"*91.00 ± 0.50 ▼*", "140.0 ± 0.5 ▼", "1,118 ± 0 ▼"}
    assert not any("Seeds" in cells for cells in found.values())  # two runs of one seed are no two seeds
    drifts = {name for cells in found.values() for name in cells if "KL" in name}
    assert drifts == {"KL from dense (wikitext2) [nats]"}  # as most rows have it
    said = " ".join(sentences(document)).replace("\u00a0", " ")
    assert "the mean over" not in said
    assert "is lowest with FLAP: 91.00 ± 0.50; next is Taylor (LLM-Pruner): 140.0 ± 0.5" in said


def test_intervals_of_few_seeds_are_students_and_welchs(everything: dict[str, str], reported: Reports) -> None:
    sheet = sheet_of(reported.material(list(everything.values()), "x"))
    groups = {sheet.names.label(group): group for group in sheet.numbers.groups}
    perplexity = next(each for each in sheet.numbers.qualities if each.metric == "perplexity")
    found = contrast(sheet, groups["Random 10\u00a0%"], groups["Random 20\u00a0%"], perplexity)
    one, two = [60.0, 63.0, 66.0], [120.0, 123.0, 126.0]
    expected = stats.ttest_ind(two, one, equal_var=False).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.clear
    single = contrast(sheet, groups["Taylor (LLM-Pruner) 10\u00a0%"], groups["L1 norm 10\u00a0%"], perplexity)
    assert single is not None
    reach = 1.959964 * math.hypot(0.01 * 26.5 * 1.3, 0.01 * 26.5 * 1.6)
    assert single.high - single.value == pytest.approx(reach)


def test_sentences_name_the_lowest_the_next_and_whether_the_interval_leaves_out_zero(
    everything: dict[str, str], reported: Reports
) -> None:
    said = " ".join(sentences(report(reported, everything)))
    start = "At 10\u00a0% of layers 4–25, perplexity (passages) is lowest with Taylor (LLM-Pruner): 34.45 ± 0.34"
    assert f"{start}; next is L1 norm: 42.40 ± 0.42; highest is Random: 63.00 ± 1.73." in said
    assert "L1 norm less Taylor (LLM-Pruner) is +7.95" in said
    assert "values taken as independent): the interval does not contain zero." in said
    assert "L1 norm less Taylor (LLM-Pruner) is −0.6\u00a0points (95 % interval −4.1 to +2.9" in said
    assert "Against random removal at the same size, perplexity (passages): better in 6 of 6 rows" in said
    assert "Against dense in the same run, Q8_0 decodes fastest: 36.00" in said
    assert "1.20 times dense (30.00); the difference is significant." in said
    assert "Masked models decode at 0.98 times dense, models that are really smaller at 1.00–1.20 times." in said
    assert "because" not in said.lower()


def test_zeros_are_held_against_real_cuts_that_take_no_more_of_the_model(
    everything: dict[str, str], reported: Reports, runs: Home, reports: Callable[[], Reports]
) -> None:
    said = " ".join(sentences(report(reported, everything))).replace("\u00a0", " ")
    start = (
        "Perplexity (passages), zeros against real cuts: with at least as much of the model set to zero, a masked row"
    )
    assert f"{start} is better than the best real cut at 3 of 3 sizes. At the largest: Wanda 50 %" in said
    assert "40.0 % zeros, 33.00 ± 0.33; Taylor (LLM-Pruner) 30 %, 18.0 % removed, 58.22 ± 0.58." in said
    ids = {
        "small": runs.run("a", {"method": "l1", "ratio": 0.1}, perplexity=30.0, accuracy=0.50, removed=0.08),
        "large": runs.run("b", {"method": "l1", "ratio": 0.5}, perplexity=90.0, accuracy=0.40, removed=0.41),
        "fewer": runs.run("c", {"method": "wanda", "ratio": 0.5}, perplexity=33.0, accuracy=0.45, removed=0.40),
        "more": runs.run("d", {"method": "wanda", "ratio": 0.6}, perplexity=99.0, accuracy=0.41, removed=0.47),
        "elsewhere": runs.run(
            "e", {"method": "magnitude", "ratio": 0.6}, perplexity=20.0, removed=0.47, model={"dtype": "bfloat16"},
            dtype="bfloat16",
        ),
    }  # fmt: skip
    said = " ".join(sentences(report(reports, ids))).replace("\u00a0", " ")
    assert "at 0 of 2 sizes. At the largest: Wanda 60 %" in said  # neither one with fewer zeros nor another format's
    mean = "Mean of the seven tasks, zeros against real cuts"
    assert f"{mean}: with at least as much of the model set to zero, a masked row is better than" in said
    told = said.partition(mean)[2].partition(" sizes")[0]
    assert told.endswith("at 1 of 2")  # 44 % is more than 43 %, 48 % less than 53 %


def test_taylor_is_held_against_wanda_at_equal_size_and_at_equal_speed(
    everything: dict[str, str], reported: Reports, runs: Home, reports: Callable[[], Reports]
) -> None:
    said = " ".join(sentences(report(reported, everything))).replace("\u00a0", " ")
    assert "Taylor (LLM-Pruner) against Wanda at equal size" in said
    assert "Wanda is better at 3 of 3 sizes: 6.0 % removed 34.45 ± 0.34, 40.0 % zeros 33.00 ± 0.33; 12.0 %" in said
    assert "Taylor (LLM-Pruner) 10 % decodes at 1.00 times dense, Wanda 50 % at 0.98" in said
    assert "is 1.02 (95 % interval 0.97 to 1.08), and the interval contains 1. They come to 34.45 ± 0.34 and 33" in said
    assert "is 1.22 (95 % interval 1.16 to 1.29), and the interval does not contain 1." in said
    ids = {
        "dense": runs.run("dense"),
        "same": runs.run("a", {"method": "taylor", "ratio": 0.2}, perplexity=40.0, removed=0.2),
        "worse": runs.run("b", {"method": "taylor", "ratio": 0.3}, perplexity=50.0, removed=0.2002),
        "beyond": runs.run("c", {"method": "taylor", "ratio": 0.5}, perplexity=60.0, removed=0.3),
        "fewer": runs.run("d", {"method": "wanda", "ratio": 0.1}, perplexity=27.0, removed=0.19),
        "next": runs.run("e", {"method": "wanda", "ratio": 0.3}, perplexity=45.0, removed=0.25),
    }
    said = " ".join(sentences(report(reports, ids))).replace("\u00a0", " ")
    assert "Wanda is better at 0 of 1 sizes: 20.0 % removed 40.00 ± 0.40, 25.0 % zeros 45.00 ± 0.45. On disk" in said
    assert "at equal speed" not in said  # nothing was timed


def test_what_was_judged_and_timed_decides_whose_speed_is_told(runs: Home, reports: Callable[[], Reports]) -> None:
    gpu = {"device": "cuda:0", "device_name": "NVIDIA H200", "dtype": "bfloat16"}

    def timed(device: str, dtype: str, value: float) -> list[dict]:
        protocol = {**SPEED, "device": device, "dtype": dtype}
        return [metric(which, "speed", "decode_tokens_per_second", each, 0.4, 7, protocol)
                for which, each in (("dense", 100.0), ("pruned", value))]  # fmt: skip

    ids = []
    for place, method in enumerate(("flap", "taylor", "l2", "l1")):
        cut = {"method": method, "ratio": 0.2}
        ids.append(runs.run(method, cut, metrics=timed("cpu", "float32", 100.0 + place)))
        if method != "l1":
            ids.append(runs.run(method, cut, metrics=judged("pruned", 40.0 + 9 * place, 0.5), **gpu))
            ids.append(runs.run(method, cut, metrics=timed("cuda", "bfloat16", 120.0 + place), **gpu))
    document = report(reports, {run: run for run in ids})
    said = " ".join(sentences(document)).replace("\u00a0", " ")
    assert "L2 norm 20 %, bfloat16 decodes fastest: 122.0" in said
    assert "Not dominated in perplexity (passages) and decoding speed" in said
    drawn = next(each for each in document.figures() if each.label == "fig:speed-1")
    assert sorted(point.x for line in drawn.series for point in line.points) == pytest.approx([1.2, 1.21, 1.22])
    assert scales(drawn, FigureNumbers("en"))[0].low > 1  # multiples do not begin at zero, shares do


def test_what_kernels_of_their_own_make_of_a_mask_stands_beneath_it_and_is_held_against_dense(
    runs: Home, reports: Callable[[], Reports]
) -> None:
    gpu = {"device": "cuda:0", "device_name": "NVIDIA H200", "dtype": "bfloat16"}
    protocol = {**SPEED, "device": "cuda", "dtype": "bfloat16"}
    kernels = {**protocol, "kernels": "semi-structured 2:4"}
    timed = [
        metric("dense", "speed", "decode_tokens_per_second", 50.0, 1.0, 5, protocol),
        metric("pruned", "speed", "decode_tokens_per_second", 51.0, 1.0, 5, protocol),
        metric("pruned", "speed/2:4", "decode_tokens_per_second", 4.0, 0.1, 5, kernels),
    ]
    pruning = {"method": "wanda", "ratio": 0.5, "pattern": "2:4"}
    made = {"wanda": runs.run("masked", pruning, metrics=timed, **gpu)}
    document = report(reports, made)
    (found,) = [rows(each) for each in document.tables() if each.label == "tab:speed-1"]
    speeds = {name: next(text for head, text in cells.items() if "Decode" in head) for name, cells in found.items()}
    assert speeds == {
        "Wanda 50\u00a0%, 2:4": "51.00 ± 1.00 (1.02×)",
        "Wanda 50\u00a0%, 2:4, on 2:4 kernels": "4.00 ± 0.10 ▼ (0.08×)",
    }
    said = " ".join(sentences(document))
    assert "1.02 times dense (50.00); the difference is not significant." in said
    assert "bfloat16 on cuda, on 2:4 kernels (P" in said
    assert "on 2:4 kernels, decodes at 0.08 times dense: 4.00 ± 0.10 tokens/s against 50.00." in said


def test_the_sentences_of_a_pair_on_shared_documents_come_from_the_paired_test(
    everything: dict[str, str], reported: Reports
) -> None:
    from dataclasses import replace

    from core.pairs import PerplexityPair, RunPair

    material = reported.material(list(everything.values()), "x")
    own = json.loads(material.points.loc[material.points["metric"] == "perplexity", "protocol"].iloc[0])
    asked = []

    def pair(first: str, second: str) -> RunPair:
        asked.append((first, second))
        return RunPair(first, second, perplexities=(PerplexityPair("passages", 96, 34.4, 42.4, 1.19, 1.28, own),))

    sheet = sheet_of(replace(material, pair=pair))
    groups = {sheet.names.label(group): group for group in sheet.numbers.groups}
    perplexity = next(each for each in sheet.numbers.qualities if each.metric == "perplexity")
    found = contrast(sheet, groups["Taylor (LLM-Pruner) 10\u00a0%"], groups["L1 norm 10\u00a0%"], perplexity)
    assert found is not None
    assert (found.ratio, found.paired, found.low, found.high, found.clear) == (True, True, 1.19, 1.28, True)
    assert asked == [(everything["taylor 0.1"], everything["l1 0.1"])]


def test_the_limits_name_rows_of_one_seed_small_limits_and_leakage(runs: Home, reports: Callable[[], Reports]) -> None:
    metrics = judged("pruned", 30.0, 0.5)
    metrics[0]["details"] = {"leakage": "calibrated on the judged text"}
    ids = {"dense": runs.run("dense"), "a": runs.run(HOSTILE, {"method": "taylor", "ratio": 0.2}, metrics=metrics)}
    said = " ".join(sentences(report(reports, ids)))
    assert "1 of 1 rows are of one seed, of methods in which the seed decides: Taylor (LLM-Pruner) 20\u00a0%." in said
    assert "on the first 200 documents only: about ±7 points" in said
    assert "Rows with † were judged on text that calibration" in said
