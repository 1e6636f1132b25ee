"""Recovery on Runs and Compare: what is shown while it trains, and what it brought back."""

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.jobs.rundir import RunDirectory
from tests.pages.conftest import write_curve

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
TAYLOR = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}
WANDA = {"method": "wanda", "ratio": 0.5}


def page(name: str, **query: Any) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.switch_page(name).run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def titles(app: AppTest) -> list[str]:
    return [json.loads(chart.proto.spec)["layout"]["title"]["text"] for chart in app.get("plotly_chart")]


def test_a_running_training_shows_its_stages_and_its_curve(run_folder: Any, home: Path) -> None:
    from core.service import close_service, get_service

    events = [
        {"kind": "stage", "stage": "recover", "status": "started"},
        {"kind": "progress", "stage": "recover", "task": "train", "done": 90, "total": 100, "unit": "steps"},
    ]
    run_id = run_folder("tuned", TAYLOR, state="RUNNING", events=events, recovery={"kind": "lora"})
    folder = RunDirectory(home / "runs" / run_id)
    write_curve(folder)
    with folder.lock():
        get_service().pause()
        board = html(page("runs.py"))
        assert '<li class="now" aria-current="step">recover</li><li class="">evaluate again</li>' in board
        assert "30 % · layers 4–25 · LoRA" in board
        app = page("runs.py", run=run_id)
        assert "train · 90 of 100 steps" in html(app)
        assert titles(app) == ["Training"]
        close_service()


def test_before_training_there_is_no_curve_and_nothing_is_said_of_recovery(run_folder: Any, home: Path) -> None:
    from core.service import close_service, get_service

    events = [{"kind": "stage", "stage": "prune", "status": "started"}]
    run_id = run_folder("tuned", TAYLOR, state="RUNNING", events=events, recovery={"kind": "lora"})
    with RunDirectory(home / "runs" / run_id).lock():
        get_service().pause()
        app = page("runs.py", run=run_id)
        assert titles(app) == []
        assert '<h2 class="esp-section">Recovery' not in html(app)
        close_service()


def test_an_opened_run_shows_what_recovery_brought_back(run_folder: Any, recovered: Any, service: Any) -> None:
    run_folder("dense", values=(26.5, 0.65))
    run_id = recovered("tuned", (33.0, 0.61), values=(78.5, 0.57), removed=0.169)
    app = page("runs.py", run=run_id)
    shown = html(app)
    assert "LoRA, rank 8, on passages" in shown
    assert "90 of 100 steps, ended after 1.5 min, as set · 12,000 tokens learned from 59 documents" in shown
    assert "validation 4.500 → 3.250 nats a token on 1 held-out document<" in shown
    assert "micro-batches of 4 rows, 2 a step · float32 · activations computed twice" in shown
    assert '<td class="dense">78.50 ± 0.79</td>' in shown
    assert "−45.50 ± 0.85 ▲" in shown
    assert '<td class="dense">88 %</td>' in shown
    assert "after recovery" in shown
    assert "<span>evaluate again</span>" in shown
    assert titles(app) == ["Training"]


def test_a_training_that_was_called_off_says_why(recovered: Any, service: Any) -> None:
    run_id = recovered("tuned", (33.0, 0.61), diverged="the loss is nan at step 91")
    shown = html(page("runs.py", run=run_id))
    assert "Called off: the loss is nan at step 91. What was judged is the model of step 90." in shown
    compared = html(page("compare.py", runs=[run_id], compare_chart="Recovery"))
    assert "tuned: called off, the loss is nan at step 91" in compared


@pytest.mark.parametrize(("pruning", "fills"), [(TAYLOR, False), (WANDA, True)])
def test_the_adapter_is_said_to_be_loadable_and_where_zeros_are_in_danger(
    run_folder: Any, recovered: Any, service: Any, home: Path, pruning: dict[str, Any], fills: bool
) -> None:
    run_id = recovered("tuned", (33.0, 0.61))
    folder = RunDirectory(home / "runs" / run_id)
    (folder.recovery_dir / "adapter").mkdir()
    experiment = folder.experiment().with_changes({"pruning": pruning})
    folder.write_experiment(experiment)
    app = page("runs.py", run=run_id)
    (code,) = [code.value for code in app.code if "PeftModel" in code.value]
    assert str(folder.recovery_dir / "adapter") in code
    assert "trust_remote_code=True" in code
    assert ("fill this mask" in html(app)) == fills


def test_a_failed_training_keeps_the_numbers_from_before_and_its_curve(
    run_folder: Any, service: Any, home: Path
) -> None:
    run_id = run_folder("tuned", TAYLOR, state="FAILED", recovery={"kind": "lora"}, reason="Memory ran out.")
    folder = RunDirectory(home / "runs" / run_id)
    write_curve(folder)
    from tests.pages.conftest import results

    folder.write_results(results(run_id, folder.experiment(), (78.5, 0.57), 0.169))
    app = page("runs.py", run=run_id)
    shown = html(app)
    assert "Memory ran out." in shown
    assert "before recovery" in shown
    assert "Training did not end." in shown
    assert "78.50 ± 0.79" in shown
    assert titles(app) == ["Training"]


def test_after_a_failed_training_the_pruned_model_is_there_to_talk_to_and_export(
    run_folder: Any, service: Any, home: Path
) -> None:
    from tests.pages.conftest import results

    run_id = run_folder("tuned", TAYLOR, state="FAILED", recovery={"kind": "lora"}, reason="Memory ran out.")
    folder = RunDirectory(home / "runs" / run_id)
    assert not {"runs_chat", "runs_export"} & {str(button.key) for button in page("runs.py", run=run_id).button}
    for name in ("save", "evaluate"):
        folder.write_stage(name, {"seconds": 1.0})
    folder.write_results(results(run_id, folder.experiment(), (78.5, 0.57), 0.169))
    (folder.path / "model").mkdir()
    (folder.path / "model" / "config.json").write_text('{"model_type": "llama"}')
    service._store.ingest(folder.path)
    keys = {str(button.key) for button in page("runs.py", run=run_id).button}
    assert {"runs_chat", "runs_retry"} <= keys
    assert "runs_export" not in keys  # a config without sizes: there is nothing to choose from
    assert [model.key for model in service.chat_models() if model.run_id] == [f"{run_id}:pruned"]


def test_results_that_somebody_edited_do_not_break_the_pages(recovered: Any, service: Any, home: Path) -> None:
    run_id = recovered("tuned", (33.0, 0.61))
    folder = RunDirectory(home / "runs" / run_id)
    content = folder.results() or {}
    for damage in ({"training": {"steps": "many", "seconds": None}, "data": []}, ["x"], {"training": "none"}):
        folder.write_results({**content, "recovery": damage})
        page("runs.py", run=run_id)
        page("compare.py", runs=[run_id], compare_chart="Recovery")


def test_compare_draws_and_lists_the_gains_of_recovered_runs(run_folder: Any, recovered: Any, service: Any) -> None:
    dense = run_folder("dense", values=(26.5, 0.65))
    plain = run_folder("plain", TAYLOR, values=(78.5, 0.57))
    tuned = recovered("tuned", (33.0, 0.61), values=(78.5, 0.57))
    taught = recovered("taught", (30.0, 0.6), values=(78.5, 0.57), kind="distillation")
    app = page("compare.py", runs=[dense, plain, tuned, taught], compare_chart="Recovery")
    (chart,) = app.get("plotly_chart")
    spec = json.loads(chart.proto.spec)
    ids = {custom[0] for trace in spec["data"] for custom in trace.get("customdata", [])}
    assert ids == {tuned, taught}
    assert spec["layout"]["title"]["text"].startswith("Before and after")
    rows = app.dataframe[1].value
    assert set(rows["Trained"]) == {"LoRA on <b>rows</b>.jsonl", "distillation on <b>rows</b>.jsonl"}
    assert rows.set_index("Run").loc["tuned", "Gain"] == pytest.approx(-45.5)
    assert rows["Training"].tolist() == [1.5, 1.5]
    assert app.selectbox(key="compare_gain_quality").options == ["perplexity, passages", "piqa acc"]
    app.selectbox(key="compare_gain_quality").select_index(1).run()
    assert not app.exception
    assert app.dataframe[1].value.set_index("Run").loc["taught", "Gain"] == pytest.approx(0.03)


def test_without_recovered_runs_compare_offers_no_such_view(run_folder: Any, service: Any) -> None:
    run_id = run_folder("plain", TAYLOR)
    app = page("compare.py", runs=[run_id])
    assert "Recovery" not in app.segmented_control(key="compare_chart").options
