"""Runs: the board, and one opened run. What cannot be clicked here (table rows) tests/browser clicks."""

import errno
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from pages._parts import runs_text

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
TAYLOR = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}
CHEAP = {"evaluation": {"tasks": [], "perplexity": [{"max_tokens": 512}], "speed": False}, "device": "cpu"}


def runs_page(run_id: str | None = None) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60)
    if run_id is not None:
        app.query_params["run"] = run_id
    app.switch_page("runs.py").run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def keys(app: AppTest) -> list[str]:
    return [str(button.key) for button in app.button]


def finished(app: AppTest) -> Any:
    return next(frame.value for frame in app.dataframe if "state" in frame.value.columns)


def test_an_empty_board_offers_the_quick_look_and_queues_it(service: Any) -> None:
    app = runs_page()
    assert {"runs_quick", "runs_to_launch"} <= set(keys(app))
    app.button(key="runs_quick").click().run()
    assert not app.exception
    assert service.status_line().queue_length == len(service.quick_look())
    assert "Quick look: dense" in html(app)


def test_finished_runs_are_listed_newest_first_with_what_they_cut_and_why_they_failed(
    run_folder: Any, service: Any
) -> None:
    run_folder("dense")
    run_folder("taylor", TAYLOR, removed=0.169)
    run_folder("wanda", {"method": "wanda", "ratio": 0.5}, removed=0.39)
    run_folder("broken", TAYLOR, state="FAILED", reason="No memory is left.", advice="Lower the batch size.")
    table = finished(runs_page())
    assert table["name"].tolist() == ["broken", "wanda", "taylor", "dense"]
    assert table["state"].tolist() == ["failed", "complete", "complete", "complete"]
    assert table["removed"].tolist() == ["", "39.0 % zeros", "16.9 %", ""]
    assert table["reason"].tolist()[0] == "No memory is left."
    assert table["what"].tolist()[2].endswith("30 % · layers 4–25")
    assert table["tree"].str.startswith("data:image/svg+xml").tolist() == [False, True, True, True]


def test_waiting_runs_stand_in_the_order_of_the_queue_and_move(service: Any) -> None:
    first, second = service.submit(
        [Experiment.parse({"name": name, "seed": i, **CHEAP}) for i, name in enumerate("ab")]
    )
    app = runs_page()
    assert app.button(key=f"runs_up_{first}").disabled
    assert app.button(key=f"runs_down_{second}").disabled
    app.button(key=f"runs_up_{second}").click().run()
    waiting = service.run_list()
    assert waiting[waiting["state"] == "WAITING"]["id"].tolist() == [second, first]
    assert app.button(key=f"runs_up_{second}").disabled


def test_the_queue_is_paused_and_resumed_and_a_waiting_run_cancelled(service: Any) -> None:
    (run_id,) = service.submit([Experiment.parse({"name": "a", **CHEAP})])
    app = runs_page()
    assert app.button(key="runs_pause").label == "Resume queue"
    app.button(key=f"runs_cancel_{run_id}").click().run()
    assert not app.exception
    assert service.run_detail(run_id).status.state == "CANCELLED"


def test_a_full_disk_is_said_where_something_was_asked_for(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("core.jobs.rundir.write_atomic", full)
        app = runs_page()
        app.button(key="runs_quick").click().run()
        assert not app.exception
        assert "The disk is full." in html(app)
        assert service.run_list().empty
    service.submit(service.quick_look())
    with monkeypatch.context() as patch:
        patch.setattr("core.jobs.queue.write_atomic", full)
        app = runs_page()
        app.button(key="runs_pause").click().run()
        assert not app.exception
        assert "The disk is full." in html(app)


def test_a_running_run_stands_on_top_with_stage_progress_and_time_left(run_folder: Any, home: Path) -> None:
    from core.service import close_service, get_service

    events = [
        {"kind": "stage", "stage": "prune", "status": "started"},
        {"kind": "progress", "stage": "prune", "done": 12, "total": 30, "unit": "layers", "eta_s": 125},
    ]
    run_id = run_folder("taylor <b>bold</b>", TAYLOR, state="RUNNING", events=events)
    with RunDirectory(home / "runs" / run_id).lock():
        get_service().pause()
        app = runs_page()
        shown = html(app)
        assert "taylor &lt;b&gt;bold&lt;/b&gt;" in shown
        assert "12 of 30 layers · about 2 min left" in shown
        assert 'aria-valuenow="40"' in shown
        assert '<li class="now" aria-current="step">prune</li>' in shown
        assert f"runs_cancel_{run_id}" in keys(app)
        app.button(key=f"runs_open_{run_id}").click().run()
        assert not app.exception
        assert "12 of 30 layers" in html(app)
        assert "runs_cancel" in keys(app)
        close_service()


def test_an_opened_run_shows_its_numbers_against_dense_with_standard_errors(run_folder: Any, service: Any) -> None:
    run_folder("dense", values=(26.5, 0.65))
    run_id = run_folder("taylor", TAYLOR, values=(78.5, 0.57), removed=0.169)
    app = runs_page(run_id)
    shown = html(app)
    assert "Numbers against dense" in shown
    assert "78.50 ± 0.79" in shown
    assert "+52.00 ± 0.83 ▼" in shown
    assert "−8.0 ± 6.8 points" in shown
    assert "16.9 % of the whole model removed" in shown
    assert "<span>evaluate</span>" in shown
    assert any("<svg" in element.value for element in app.markdown)
    assert any("method: taylor" in element.value for element in app.code)
    assert any("core run" in element.value for element in app.code)
    assert {"runs_compare", "runs_delete"} <= set(keys(app))


def test_a_mask_says_that_it_is_not_smaller(run_folder: Any, service: Any) -> None:
    run_id = run_folder("wanda", {"method": "wanda", "ratio": 0.5}, removed=0.39)
    assert "39.0 % of them set to zero: not smaller" in html(runs_page(run_id))


def test_without_a_dense_run_an_opened_run_offers_to_queue_it(run_folder: Any, service: Any) -> None:
    app = runs_page(run_folder("taylor", TAYLOR))
    app.button(key="runs_baseline").click().run()
    assert not app.exception
    waiting = service.run_list().query("state == 'WAITING'")
    assert len(waiting) == 1
    assert waiting["method"].isna().all()


def test_a_failed_run_says_what_happened_and_what_to_do_with_the_log_beside_it(run_folder: Any, service: Any) -> None:
    run_id = run_folder(
        "broken", TAYLOR, state="FAILED", reason="No <b>memory</b> is left.", advice="Lower it.", log="Traceback 123"
    )
    app = runs_page(run_id)
    shown = html(app)
    assert "No &lt;b&gt;memory&lt;/b&gt; is left." in shown
    assert "Lower it." in shown
    assert any("Traceback 123" in element.value for element in app.code)
    assert "What it would have cut" in shown
    app.button(key="runs_retry").click().run()
    assert not app.exception
    assert service.status_line().queue_length == 1
    assert app.query_params["run"] != [run_id]


def test_what_helps_a_failed_run_is_one_button_that_changes_it_and_queues_it(run_folder: Any, service: Any) -> None:
    calibrating = [{"kind": "stage", "stage": "calibrate", "status": "started"}]
    failed = {"state": "FAILED", "reason": "The memory of the GPU ran out.", "advice": "Lower it.", "cause": "memory"}
    run_id = run_folder("broken", TAYLOR, events=calibrating, **failed)
    app = runs_page(run_id)
    labels = [app.button(key=f"runs_remedy_{number}").label for number in (0, 1)]
    assert labels == ["Calibrate one window at a time and retry", "Lower the calibration samples to 16 and retry"]
    app.button(key="runs_remedy_1").click().run()
    assert not app.exception
    again = "".join(app.query_params["run"])
    assert again != run_id
    queued = service.run_detail(again)
    assert str(queued.status.state) == "WAITING"
    assert queued.experiment.pruning.calibration.samples == 16
    assert service.run_detail(run_id).experiment.pruning.calibration.samples == 32


@pytest.mark.parametrize("cause", ["gated", "data", "", "<script>alert(1)</script>"])
def test_where_no_change_helps_no_button_is_offered(cause: str, run_folder: Any) -> None:
    run_id = run_folder("broken", TAYLOR, state="FAILED", reason="It is <i>gated</i>.", advice="Log in.", cause=cause)
    app = runs_page(run_id)
    assert not app.exception
    assert not any(str(button.key).startswith("runs_remedy") for button in app.button)
    assert "<script>" not in html(app)


def test_a_run_is_deleted_only_after_it_was_confirmed(run_folder: Any, service: Any) -> None:
    run_id = run_folder("taylor", TAYLOR)
    app = runs_page(run_id)
    app.button(key="runs_delete").click().run()
    assert (service.home / "runs" / run_id).is_dir()
    app.button(key="runs_delete_yes").click().run()
    assert not app.exception
    assert not (service.home / "runs" / run_id).exists()
    assert "run" not in app.query_params


def test_an_id_that_is_not_there_leads_back_to_the_board(service: Any) -> None:
    app = runs_page("20200101-000000-00000000-none")
    assert "There is no run" in html(app)
    app.button(key="runs_back").click().run()
    assert "Nothing has run yet" in html(app)


@pytest.mark.parametrize(("stage", "dense", "now"), [("evaluate.task.piqa", False, "evaluate"), ("load", True, "load")])
def test_parts_of_the_evaluation_count_as_evaluation(stage: str, dense: bool, now: str) -> None:
    shown = runs_text.stages_html(stage, dense=dense)
    assert f'<li class="now" aria-current="step">{now}</li>' in shown
    assert ("prune" in shown) is not dense


def test_a_run_that_has_not_said_its_progress_yet_is_starting() -> None:
    assert "starting" in runs_text.progress_html({"stage": None, "done": None, "total": float("nan")}, dense=True)
    spoke = (datetime.now(UTC) - timedelta(minutes=12, seconds=5)).isoformat()
    assert "nothing new for 12 min" in runs_text.progress_html({"stage": "load", "spoke": spoke}, dense=True)
    now = datetime.now(UTC).isoformat()
    assert "nothing new" not in runs_text.progress_html({"stage": "load", "spoke": now}, dense=True)


def test_times_are_shown_on_the_visitors_clock() -> None:
    assert runs_text.when("2026-11-23T21:20:39.674Z", "Europe/Berlin") == "23 Nov, 22:20"
    assert runs_text.when("2026-11-23T21:20:39.674Z", "No/Where") == "23 Nov, 21:20"
    assert runs_text.when("yesterday", None) == ""


def rewrite(home: Path, run_id: str, **pruned: Any) -> None:
    """Another outcome of the cut in a run's results."""
    file = home / "runs" / run_id / "results.json"
    content = json.loads(file.read_text())
    content["pruning"] |= pruned
    file.write_text(json.dumps(content))


WHOLE = {"heads_before": 9, "kv_before": 3, "mlp_before": 1536, "heads_after": 9, "kv_after": 3, "mlp_after": 1536}
GONE = {**WHOLE, "heads_after": 0, "kv_after": 0, "mlp_after": 0}


def test_a_run_that_removed_layers_says_and_draws_which(run_folder: Any, service: Any, home: Path) -> None:
    run_id = run_folder("last", {"method": "last", "ratio": 0.1}, removed=0.05)
    rewrite(home, run_id, layers=[{"layer": i, **(GONE if i in (7, 9) else WHOLE)} for i in range(10)])
    app = runs_page(run_id)
    assert "; layers 7, 9 removed, 8 left" in html(app)
    assert any("Layer 9: removed" in m.value for m in app.markdown)
    assert finished(runs_page())["removed"].tolist() == ["5.0 %"]


def test_a_run_that_narrowed_the_stream_says_and_draws_it(run_folder: Any, service: Any, home: Path) -> None:
    run_id = run_folder("hidden", {"method": "hidden", "ratio": 0.25}, removed=0.25)
    rewrite(home, run_id, hidden_before=576, hidden_after=432, layers=[{"layer": i, **WHOLE} for i in range(3)])
    app = runs_page(run_id)
    assert "; the stream 576 → 432 channels wide" in html(app)
    assert any("stream 576 → 432" in m.value for m in app.markdown)
    assert finished(runs_page())["what"].tolist() == ["Hidden channels 25 %"]


def test_layers_that_were_not_pruned_are_drawn_whole_though_real_weights_hold_a_few_zeros() -> None:
    from core.espalier import branches_of_rows

    sizes = {"heads_before": 9, "kv_before": 3, "mlp_before": 1536, "heads_after": 9, "kv_after": 3, "mlp_after": 1536}
    whole, masked = branches_of_rows([{"layer": 0, **sizes, "density": 0.9997}, {"layer": 1, **sizes, "density": 0.5}])
    assert not whole.changed
    assert masked.changed
