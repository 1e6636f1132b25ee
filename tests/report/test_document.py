"""What a report holds: groups, values, tables, sentences and where they come from. By numbers worked out by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import charts
from core.errors import InputError
from core.report.document import Figure, Items, Paragraph, plain
from core.report.material import NotMade
from core.reports import Reports
from core.study import Study
from tests.report.conftest import SPEED, TASK, Home, judged, metric
from tests.report.reading import MEAN, PPL, report, rows, sentences, table


def test_runs_that_differ_in_seeds_only_are_one_row_with_their_mean_and_error(
    everything: dict[str, str], reported: Reports
) -> None:
    cuts = rows(table(report(reported, everything), "tab:cut"))
    row = cuts["10\u00a0% of layers 4–25: Random"]
    values = [60.0, 63.0, 66.0]
    spread = math.sqrt(sum((each - 63) ** 2 for each in values) / 2)
    assert row[PPL] == f"63.00 ± {spread / math.sqrt(3):.2f} ▼"
    assert row["Seeds"] == "3"
    assert cuts["10\u00a0% of layers 4–25: L1 norm"]["Seeds"] == ""


def test_the_best_of_each_size_is_bold_and_only_it(everything: dict[str, str], reported: Reports) -> None:
    cuts = rows(table(report(reported, everything), "tab:cut"))
    for ratio in (10, 20, 30):
        for method, bold in (("Taylor (LLM-Pruner)", True), ("L1 norm", False), ("Random", False)):
            for column in (PPL, MEAN):
                assert cuts[f"{ratio}\u00a0% of layers 4–25: {method}"][column].startswith("*") is bold


def test_marks_are_those_that_compare_shows(everything: dict[str, str], reported: Reports) -> None:
    made = reported.of_runs(list(everything.values()))
    marks = charts.marks(made.points, charts.qualities(made.points))
    known = {quality.key: quality for quality in charts.qualities(made.points)}
    perplexity = next(key for key, quality in known.items() if quality.metric == "perplexity")
    cuts = rows(table(made.document, "tab:cut"))
    for method in ("l1", "taylor"):
        title = {"l1": "L1 norm", "taylor": "Taylor (LLM-Pruner)"}[method]
        cell = cuts[f"10\u00a0% of layers 4–25: {title}"][PPL].strip("*")
        assert cell.endswith(marks[everything[f"{method} 0.1"], perplexity])
    mean = next(key for key, quality in known.items() if quality.is_mean)
    assert (everything["taylor 0.1"], mean) not in marks
    assert not any(sign in cuts["10\u00a0% of layers 4–25: Taylor (LLM-Pruner)"][MEAN] for sign in "▲▼")


def test_masks_depth_recovery_and_rounded_weights_have_tables_of_their_own(
    everything: dict[str, str], reported: Reports
) -> None:
    document = report(reported, everything)
    assert set(rows(table(document, "tab:dense"))) == {"dense", "Q8_0"}
    masks = table(document, "tab:mask")
    assert [column.head for column in masks.columns[:2]] == ["Method", "Zeros [%]"]
    assert "Parameters [M]" not in [column.head for column in masks.columns]
    assert set(rows(masks)) == {"50\u00a0% of all layers: Wanda", "50\u00a0% of all layers: Wanda, 2:4"}
    assert set(rows(table(document, "tab:depth"))) == {"20\u00a0% of all layers: Last layers"}
    (row,) = rows(table(document, "tab:recovery-1")).values()
    assert row["Pruned"] == "58.20 ± 0.58"
    assert row["Recovered"] == "35.00 ± 0.35"
    assert row["Came back [%]"] == f"{100 * (58.2 - 35) / (58.2 - 26.5):.0f}"
    for label in ("tab:cut", "tab:mask", "tab:depth"):
        assert all(everything["lora"] not in each.runs for each in table(document, label).rows)


def test_rounded_weights_stand_beneath_the_dense_model_also_with_measures_that_it_cannot_have(
    runs: Home, reports: Callable[[], Reports]
) -> None:
    alone = [row for row in judged("pruned", 26.5, 0.52) if not row["task"].startswith("fidelity")]
    ids = {"dense": runs.run("dense", metrics=alone), "q8": runs.run("q8", model={"quantised": "q8_0"})}
    document = report(reports, ids)
    found = rows(table(document, "tab:dense"))
    (kl,) = {column for row in found.values() for column in row if column.startswith("KL from dense")}
    assert (found["dense"][kl], found["Q8_0"][kl]) == ("–", "0.2650 ± 0.0020")
    assert [each.label for each in document.tables() if "tasks" in each.label] == ["tab:tasks-dense"]


def test_the_marks_of_gains_are_said_to_be_against_before_recovery(
    everything: dict[str, str], reported: Reports
) -> None:
    document = report(reported, everything)
    (note,) = table(document, "tab:recovery-1").notes
    assert "than before recovery" in note
    assert any("than dense" in note for note in table(document, "tab:cut").notes)


def test_masks_never_share_a_figure_of_sizes_with_real_cuts(everything: dict[str, str], reported: Reports) -> None:
    figures = {each.label: each for each in report(reported, everything).figures()}

    def shown(figure: Figure) -> set[str]:
        return {run for series in figure.series for point in series.points for run in point.runs}

    masks = {everything["wanda unstructured"], everything["wanda 2:4"]}
    assert shown(figures["fig:masks-1"]) == masks
    assert not shown(figures["fig:cuts-1"]) & masks
    assert masks < shown(figures["fig:speed-1"])
    assert everything["q8_0"] in shown(figures["fig:speed-1"])


def test_speeds_of_two_devices_stand_apart_each_beneath_its_own_name(
    runs: Home, reports: Callable[[], Reports]
) -> None:
    cut = {"method": "l1", "ratio": 0.3}
    gpu = {**SPEED, "dtype": "bfloat16", "device": "cuda", "memory": "CUDA allocator"}
    timed = [
        metric(stage, "speed", "decode_tokens_per_second", value, 0.4, 7, gpu)
        for stage, value in (("dense", 100.0), ("pruned", 120.0))
    ]
    timed.append(metric("pruned", "speed", "macs", 6e10, None, 1, {"batch": 1, "length": 512}))  # of any device
    judged_there = runs.run("l1", cut, device="cuda:0", device_name="NVIDIA H200", dtype="bfloat16")
    timed_there = runs.run("l1", cut, metrics=timed, device="cuda:0", device_name="NVIDIA H200", dtype="bfloat16")
    timed_here = runs.run("l1", cut, metrics=judged("pruned", 40.0, 0.4, 1.1)[-4:])
    document = report(reports(), {name: name for name in (judged_there, timed_there, timed_here)})
    found = {name: tuple(row.runs for row in each.rows) for each in document.tables() if (name := each.label)}
    assert found["tab:cut"] == ((judged_there, timed_there),)
    tables = {str(table(document, label).caption): found[label] for label in ("tab:speed-1", "tab:speed-2")}
    for device, other, own in (("NVIDIA H200", "AMD EPYC", found["tab:cut"]), ("AMD EPYC", "NVIDIA", ((timed_here,),))):
        ((caption, rows_of),) = ((each, made) for each, made in tables.items() if device in each)
        assert other not in caption
        assert ("memory CUDA allocator" in caption) == ("H200" in caption)
        assert rows_of == own


def test_figures_hold_the_values_of_the_tables(everything: dict[str, str], reported: Reports) -> None:
    figure = next(each for each in report(reported, everything).figures() if each.label == "fig:cuts-1")
    taylor = next(series for series in figure.series if series.name == "Taylor (LLM-Pruner)")
    assert [(point.x, round(point.y, 3)) for point in taylor.points] == [
        (pytest.approx(6 * place), round(26.5 * 1.3**place, 3)) for place in (1, 2, 3)
    ]
    assert taylor.points[0].high - taylor.points[0].y == pytest.approx(26.5 * 1.3 / 100)
    assert [level.value for level in figure.levels] == [26.5]


def test_a_broken_model_does_not_press_the_others_into_a_line(runs: Home, reports: Callable[[], Reports]) -> None:
    ids = {"dense": runs.run("dense")}
    for method, value in (("taylor", 40.0), ("l2", 800.0), ("l1", 5e9)):
        ids[method] = runs.run(method, {"method": method, "ratio": 0.2}, perplexity=value)
    (drawn,) = (each for each in report(reports, ids).figures() if each.label == "fig:cuts-1")
    assert sorted(point.y for each in drawn.series for point in each.points) == [40.0, 800.0]
    assert plain(drawn.caption).endswith("Beyond the axis: L1 norm 20\u00a0%: 5,000,000,000.")


def test_every_run_and_every_protocol_stands_in_the_appendix(everything: dict[str, str], reported: Reports) -> None:
    document = report(reported, everything)
    traced = {row.cells[0].text: row for row in table(document, "tab:runs").rows}
    assert set(traced) == set(everything.values())
    assert traced[everything["random 0.1 2"]].cells[2].text == "2"
    assert traced[everything["taylor 0.1"]].cells[3].text == everything["dense"]
    protocols = " ".join(row.cells[2].text for row in table(document, "tab:protocols").rows)
    assert 'harness="0.4.13"' in protocols
    assert f'tokens_sha256="{"ab" * 32}"' in protocols
    for each in document.tables():
        if not each.of_text:
            assert all(set(row.runs) <= set(everything.values()) and row.runs for row in each.rows)


def test_the_methods_section_says_what_the_stored_protocols_say(runs: Home, reports: Callable[[], Reports]) -> None:
    odd = {**TASK, "shots": 5, "limit": None, "harness": "9.9.9", "chat_template": True}
    row = {"stage": "pruned", "task": "piqa", "metric": "acc", "value": 0.6, "stderr": 0.01, "n": 1838, "protocol": odd}
    ids = {"taylor": runs.run("x", {"method": "taylor"}, metrics=[row])}
    said = " ".join(sentences(report(reports, ids)))
    assert "with 5 examples was measured by lm-eval 9.9.9 on PIQA" in said
    assert "on all documents, each question in the chat template" in said
    assert "Perplexity was measured" not in said
    assert "Every value is of a single run" in said


def test_a_recovery_is_named_by_what_differs_among_those_of_its_kind(
    runs: Home, reports: Callable[[], Reports]
) -> None:
    made = {}
    full = {"kind": "distillation", "full_weights": True, "epochs": 1, "data": {"corpus": "generated"}}
    recipes: list[dict[str, Any]] = [{"kind": "lora"}, {"kind": "lora", "rank": 16}, full]
    for place, recipe in enumerate(recipes):
        cut = {"method": "taylor", "ratio": 0.3}
        made[str(place)] = runs.run("cut", cut, perplexity=60.0, recovery=recipe, after=(40.0 + place, 0.5))
    document = report(reports, made)
    row = "Taylor (LLM-Pruner) 30\u00a0%"
    expected = {f"{row}, LoRA, rank 8", f"{row}, LoRA, rank 16", f"{row}, distillation"}
    assert set(rows(table(document, "tab:recovery-1"))) == expected
    (distilled,) = [each for each in sentences(document) if each.startswith("Recovery by distillation")]
    assert "generated (text), prompt tokens 128, target modules all-linear, learning rate" in distilled
    assert "rank" not in distilled


def test_the_same_report_in_german_has_its_chapters_words_and_decimal_commas(
    everything: dict[str, str], reported: Reports
) -> None:
    document = report(reported, everything, "de")
    said = " ".join(sentences(document))
    headings = [block.title for block in document.blocks if hasattr(block, "title")]
    assert {"Methoden", "Ergebnisse", "Diskussion"} <= set(headings)
    assert "ist die Perplexität (passages) am niedrigsten mit Taylor (LLM-Pruner): 34,45 ± 0,34" in said
    cells = [cell.text for each in document.tables() if not each.of_text for row in each.rows for cell in row.cells]
    assert "34,45 ± 0,34 ▼" in cells
    assert all(figure.y.title for figure in document.figures() if figure.y.kind != "names")
    english = report(reported, everything)
    assert len(document.blocks) == len(english.blocks)
    assert {figure.label for figure in document.figures()} == {figure.label for figure in english.figures()}


def test_every_method_is_cited_and_every_citation_is_in_the_list(everything: dict[str, str], reported: Reports) -> None:
    cited = {reference.key: reference for reference in report(reported, everything).cited()}
    assert {"ma2023llmpruner", "sun2024simple", "hu2021lora", "holm1979", "mcnemar1947"} <= set(cited)
    assert cited["ma2023llmpruner"].url == "https://arxiv.org/abs/2305.11627"


def test_a_study_says_which_of_its_runs_were_not_made(runs: Home, reports: Callable[[], Reports], home: Path) -> None:
    study = Study.parse({
        "name": "My <b>own</b> & study", "note": "What it_is for.",
        "base": {"pruning": {"layers": [4, 25]}, "device": "cpu"},
        "grid": {"pruning.method": ["l1", "l2"], "pruning.ratio": [0.2]}, "baseline": False,
    })  # fmt: skip
    runs.run("a", {"method": "l1", "ratio": 0.2, "layers": [4, 25]}, study=study.id)
    runs.run("b", {"method": "l2", "ratio": 0.2, "layers": [4, 25]}, study=study.id, state="FAILED")
    made = reports().of_study(study)
    assert made.document.title == "Pruning report: My <b>own</b> & study"
    assert plain(made.document.lead).startswith("What it_is for. 1 complete run of")
    (row,) = table(made.document, "tab:not-made").rows
    assert [cell.text for cell in row.cells][1:] == ["failed", "No & space_left."]
    assert made.stem == study.id


def test_runs_without_a_dense_run_are_said_and_get_no_marks(runs: Home, reports: Callable[[], Reports]) -> None:
    ids = {"a": runs.run("a", {"method": "l1", "ratio": 0.2}), "b": runs.run("b", {"method": "taylor", "ratio": 0.2})}
    document = report(reports, ids)
    assert any("Without a dense run judged in the same way" in each for each in sentences(document))
    assert not any(sign in cell.text for each in document.tables() for row in each.rows for cell in row.cells
                   for sign in "▲▼")  # fmt: skip


def test_values_of_several_protocols_stand_in_columns_of_their_own(runs: Home, reports: Callable[[], Reports]) -> None:
    other = [{**row, "protocol": {**row["protocol"], "window": 2048, "tokens_sha256": "cd" * 32}}
             for row in judged("pruned", 20.0, 0.5)[:1]]  # fmt: skip
    metrics = judged("pruned", 30.0, 0.5)[:1] + other
    document = report(reports, {"a": runs.run("a", {"method": "l1", "ratio": 0.2}, metrics=metrics)})
    (row,) = rows(table(document, "tab:cut")).values()
    assert row["Perplexity (passages, window 512)"] == "30.00 ± 0.30"
    assert row["Perplexity (passages, window 2,048)"] == "20.00 ± 0.20"
    assert any("was measured in 2 ways" in each for each in sentences(document))


def test_of_two_runs_with_equal_seeds_the_newest_counts(runs: Home, reports: Callable[[], Reports]) -> None:
    pruning = {"method": "l1", "ratio": 0.2}
    ids = {"old": runs.run("old", pruning, perplexity=50.0), "new": runs.run("new", pruning, perplexity=40.0)}
    (row,) = rows(table(report(reports, ids), "tab:cut")).values()
    assert row[PPL] == "40.00 ± 0.40"


def test_what_cannot_be_reported_on_is_said(runs: Home, reports: Callable[[], Reports]) -> None:
    failed = runs.run("b", {"method": "l2"}, state="FAILED")
    with pytest.raises(InputError, match="No run of the selection has numbers"):
        reports().of_runs([failed])
    with pytest.raises(InputError, match="No run's id begins with '2020'"):
        reports().of_runs(["2020"])
    with pytest.raises(InputError, match="No run was chosen"):
        reports().of_runs([])
    runs.run("c", {"method": "l2"})
    with pytest.raises(InputError, match="The ids of 2 runs begin with"):
        reports().of_runs(["20261123"])
    with pytest.raises(InputError, match="no words for 'fr'"):
        reports().of_runs([runs.run("d", {"method": "l1"})], "fr")  # type: ignore[arg-type]


def test_missing_pieces_of_hand_edited_files_leave_gaps_not_errors(
    runs: Home, reports: Callable[[], Reports], home: Path
) -> None:
    run = runs.run("a", {"method": "l1", "ratio": 0.2})
    path = home / "runs" / run / "results.json"
    content = json.loads(path.read_text())
    content["environment"] = "none"
    content["pruning"] = {}
    content["metrics"] = [{"task": "piqa", "metric": "acc", "value": 0.5, "stderr": None, "n": None, "protocol": None}]
    path.write_text(json.dumps(content))
    document = report(reports, {"a": run})
    assert any(isinstance(block, Items | Paragraph) for block in document.blocks)
    assert NotMade("x", "FAILED").reason == ""
