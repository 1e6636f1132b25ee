"""What pages say of how far numbers can be trusted: pairs of runs, flips, marks, rates, leakage, drift by layer."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from streamlit.testing.v1 import AppTest

from core.evaluation.outcomes import write_documents, write_samples

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
TAYLOR = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}
HARNESS = "lm_eval 0.4.13"
N = 100
NASTY = "<script>alert(1)</script> **bold** $x$"


def open_page(path: str, **query: Any) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.switch_page(path).run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def texts_of_table(app: AppTest) -> list[str]:
    table = next(frame for frame in app.dataframe if "Run" in frame.value.columns)
    shown = pa.ipc.open_stream(table.proto.arrow_data.styler.display_values).read_pandas()
    return [str(cell) for cell in shown.to_numpy().ravel()]


def rows(right: list[bool]) -> list[dict[str, Any]]:
    return [
        {
            "task": "piqa", "doc": i, "doc_hash": f"{i:016x}", "target": "1", "choice": int(each), "correct": each,
            "loglikelihoods": [-30.5, -20.25] if each else [-20.25, -30.5],
        }
        for i, each in enumerate(right)
    ]  # fmt: skip


def edit(home: Path, run_id: str, change: Any) -> None:
    path = home / "runs" / run_id / "results.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def with_rates(content: dict[str, Any]) -> None:
    for row in content["metrics"]:
        if row["task"] == "piqa":
            row["protocol"]["harness"] = HARNESS
            row["details"] = {"chance": 0.5, "majority": 0.55}


@pytest.fixture
def two(run_folder: Any, home: Path) -> tuple[str, str]:
    """A dense and a pruned run that answered the same hundred documents; thirty flipped one way, five the other."""
    first = [True] * 70 + [False] * 30
    second = [*first]
    for place in [*range(30), *range(95, 100)]:
        second[place] = not second[place]
    dense = run_folder("dense", values=(26.5, 0.7))
    taylor = run_folder("taylor", TAYLOR, values=(78.5, 0.45), removed=0.169)
    for run_id, right in ((dense, first), (taylor, second)):
        write_samples(home / "runs" / run_id / "samples.parquet", rows(right))
        edit(home, run_id, with_rates)
    documents = [
        {"doc_hash": f"{i:016x}", "prompt": f"goal {i} {NASTY}", "choices": [f"way {i}", "other"], "target": "1"}
        for i in range(N)
    ]
    write_documents(home / "documents", HARNESS, "piqa", documents)
    return dense, taylor


def two_runs(two: tuple[str, str]) -> AppTest:
    app = open_page("compare.py", runs=list(two))
    app.segmented_control(key="compare_chart").set_value("Two runs").run()
    assert not app.exception
    return app


def test_two_runs_are_held_against_each_other_document_by_document(two: tuple[str, str], service: Any) -> None:
    app = two_runs(two)
    page = html(app)
    quiet = '<td class="dense">'
    assert f"<td>piqa acc</td>{quiet}100</td>{quiet}70.0\u00a0%</td><td>45.0\u00a0%</td>" in page
    assert "−25.0 <small>" in page
    assert "<td>30</td><td>5</td><td>&lt; 0.001</td>" in page
    app.selectbox(key="compare_pair_first").set_value(two[1]).run()
    assert "Both are the same run" in html(app)


def test_flipped_documents_show_prompt_choices_and_both_log_likelihoods_as_text(
    two: tuple[str, str], service: Any
) -> None:
    app = two_runs(two)
    page = html(app)
    assert page.count("<h3>Document") == 20
    assert "goal 0 &lt;script&gt;" in page
    assert "<script>" not in page
    assert 'other <i>right answer</i></td><td class="chosen"><b>−20.25</b></td><td>−30.50</td>' in page
    app.selectbox(key="compare_flips_page_piqa_acc_True").set_value(2).run()
    assert html(app).count("<h3>Document") == 10
    app.segmented_control(key="compare_flips_way").set_value("wrong → right").run()
    assert not app.exception
    shown = html(app)
    assert [f"Document {i}" in shown for i in (94, 95, 99)] == [False, True, True]


def test_runs_that_share_no_document_say_so(run_folder: Any, service: Any) -> None:
    app = two_runs((run_folder("dense"), run_folder("taylor", TAYLOR)))
    assert "share no document" in html(app)


def test_single_tasks_are_marked_only_when_asked_for(two: tuple[str, str], service: Any) -> None:
    app = open_page("compare.py", runs=list(two))
    unmarked = [text for text in texts_of_table(app) if "points" in text]
    shown = "−25.0 (−35.6 to −14.4) points"  # 1.96 · √((35/100 − 0.25²) / 99): paired, not ± 13.5 as of others
    assert unmarked == [shown]
    app.toggle(key="compare_mark_tasks").set_value(True).run()
    assert [text for text in texts_of_table(app) if "points" in text] == [f"{shown} ▼"]


def test_guessing_and_the_most_frequent_answer_stand_beneath_the_scores(two: tuple[str, str], service: Any) -> None:
    app = open_page("compare.py", runs=list(two))
    table = next(frame.value for frame in app.dataframe if "Run" in frame.value.columns)
    assert table["Run"].tolist()[-2:] == ["guessing", "majority"]
    assert table["piqa acc"].tolist() == pytest.approx([0.7, 0.45, 0.5, 0.55])
    opened = html(open_page("runs.py", run=two[1]))
    assert "<span>tasks: 0 shots, first 100 documents (±10 points)</span>" in opened
    assert "piqa acc<small>guessing 50.0 %, majority 55.0 %</small>" in opened


def test_the_whole_protocol_shows_on_hover_in_tables_and_charts(two: tuple[str, str], service: Any) -> None:
    app = open_page("compare.py", runs=list(two))
    column = json.loads(next(f for f in app.dataframe if "Run" in f.value.columns).proto.columns)["piqa acc"]
    assert "first 100 documents" in column["help"]
    app.selectbox(key="compare_quality").select_index(1).run()
    hovers = [
        custom[1]
        for chart in app.get("plotly_chart")
        for trace in json.loads(chart.proto.spec)["data"]
        for custom in trace.get("customdata", [])
        if len(custom) > 1  # one that names a run alone belongs to a mark without words
    ]
    assert hovers
    assert all(f"harness {HARNESS}" in text and "majority 55.0 %" in text for text in hovers)
    assert any("on the same documents" in text for text in hovers)
    assert f'title="0 shots · first 100 documents · without chat template · harness {HARNESS}' in html(
        open_page("runs.py", run=two[1])
    )


def test_leakage_is_flagged_on_the_run_and_in_the_table(two: tuple[str, str], service: Any, home: Path) -> None:
    sentence = "Perplexity is measured on the text of passages that calibration read."

    def leak(content: dict[str, Any]) -> None:
        content["metrics"][0]["details"] = {"leakage": sentence, "calibrated_on": "passages, train"}
        content["warnings"] = [sentence, "Another thing to know."]

    edit(home, two[1], leak)
    service._store.ingest(home / "runs" / two[1])
    app = open_page("compare.py", runs=list(two))
    assert "78.50 ± 0.79 †" in texts_of_table(app)
    assert f"† taylor: {sentence}" in html(app)
    opened = html(open_page("runs.py", run=two[1]))
    assert f"† {sentence}" in opened
    assert opened.count(sentence) == 2  # the remark, and on hover
    assert "Another thing to know." in opened


def test_values_of_another_protocol_are_said_not_to_compare(two: tuple[str, str], service: Any, home: Path) -> None:
    edit(home, two[1], lambda content: content["metrics"][0]["protocol"].update(window=1024))
    service._store.ingest(home / "runs" / two[1])
    page = html(open_page("compare.py", runs=list(two)))
    assert "Measured in 2 ways (window 1024; window 512): perplexity, passages." in page


def test_an_opened_run_draws_the_drift_by_layer_or_says_why_there_is_none(
    two: tuple[str, str], service: Any, home: Path
) -> None:
    draw = random.Random(0)
    layers = [{"layer": i, "error": draw.random(), "stderr": 0.01, "removed": i == 2} for i in range(6)]
    found = {"protocol": {"corpus": "passages", "positions": 8192}, "layers": layers, "reason": ""}
    edit(home, two[1], lambda content: content.update(layer_errors=found))
    app = open_page("runs.py", run=two[1])
    (chart,) = app.get("plotly_chart")
    points = [x for trace in json.loads(chart.proto.spec)["data"] for x, *_ in trace.get("customdata", [])]
    assert sorted(points) == list(range(6))
    worst = max(layers, key=lambda row: row["error"])["layer"]
    assert f"Largest after layer {worst}" in chart.proto.alt
    reason = "The stream is 512 channels wide instead of 576: its states do not compare."
    edit(home, two[1], lambda content: content.update(layer_errors={"layers": [], "reason": reason}))
    app = open_page("runs.py", run=two[1])
    assert not app.get("plotly_chart")
    assert reason in html(app)
