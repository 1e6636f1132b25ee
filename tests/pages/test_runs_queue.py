"""What pages do with runs: places in the queue, copies to edit, models made again, and what comes after the queue."""

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.__main__ import main
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from core.service import Service
from pages._parts import launch_copy

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL: dict[str, Any] = {"evaluation": {"perplexity": [], "tasks": ["piqa"], "limit": 20}}


def page(name: str, **query: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / f"{name}.py"), default_timeout=60)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    bodies = [str(element.proto.body) for element in app.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style"))


def keys(app: AppTest) -> set[str]:
    return {str(button.key) for button in app.button}


@pytest.fixture(autouse=True)
def paused(service: Service) -> None:
    service.pause()


def waiting(service: Service, *names: str) -> list[str]:
    return service.submit([Experiment.parse({"name": name, **SMALL}) for name in names])


def order(service: Service) -> list[str]:
    runs = service.run_list()
    return list(runs[runs["state"] == "WAITING"].sort_values("position")["name"])


def test_waiting_runs_show_their_place_and_go_to_the_front(service: Service) -> None:
    ids = waiting(service, "a", "b", "c")
    app = page("runs")
    assert [f'esp-place">{place}<' in html(app) for place in (1, 2, 3, 4)] == [True, True, True, False]
    app.button(key=f"runs_first_{ids[2]}").click().run()
    assert not app.exception
    assert order(service) == ["c", "a", "b"]
    assert app.button(key=f"runs_first_{ids[2]}").disabled
    app.button(key=f"runs_down_{ids[2]}").click().run()
    assert order(service) == ["a", "c", "b"]


def test_a_run_that_waits_for_room_says_why_and_can_be_started_all_the_same(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    (run,) = waiting(service, "large")
    owner = service._owner()
    owner._queue.waits = {run: "It needs about 20.0 GB of <b>memory</b>."}
    owner._queue.write()
    for app in (page("runs"), page("runs", run=run)):
        assert "Waits for room. It needs about 20.0 GB of &lt;b&gt;memory&lt;/b&gt;." in html(app)
        assert "Waiting for its turn" not in html(app)
        app.button(key=f"runs_anyway_{run}").click().run()
        assert not app.exception
        assert owner._anyway == {run}
        owner._anyway.clear()
    assert main(["queue", "show"]) == 0
    assert "It needs about 20.0 GB" in capsys.readouterr().out


def test_a_waiting_run_is_deleted_after_a_question(service: Service) -> None:
    first, second = waiting(service, "a", "b")
    app = page("runs", run=first)
    app.button(key="runs_delete").click().run()
    assert order(service) == ["a", "b"]
    app.button(key="runs_delete_yes").click().run()
    assert not app.exception
    assert order(service) == ["b"]
    assert not (service.home / "runs" / first).exists()
    assert (service.home / "runs" / second).exists()


COPIES: list[dict[str, Any]] = [
    {"pruning": {"method": "taylor", "ratio": 0.25, "layers": [2, 20], "parts": ["mlp"],
                 "options": {"order": "second"}},
     "recovery": {"kind": "lora", "rank": 16, "epochs": 1},
     "evaluation": {"tasks": ["piqa"], "limit": 50, "shots": 2}},
    {"pruning": {"method": "wanda", "pattern": "2:4", "calibration": {"samples": 8, "seed": 3}}, "seed": 5},
    {"pruning": {"method": "block_influence", "ratio": 0.2}, "save_model": False},
    {"pruning": {"method": "obs", "ratio": 0.2, "target": "model", "allocation": "measured", "reconstruct": True}},
    {"evaluation": {"perplexity": [{"corpus": "passages", "window": 256, "max_tokens": 4096}], "tasks": []}},
    {"model": {"quantised": "q8_0"}},
]  # fmt: skip


@pytest.mark.parametrize("data", COPIES, ids=lambda data: str((data.get("pruning") or {}).get("method", "dense")))
def test_a_copy_on_launch_is_the_run_itself_until_it_is_changed(service: Service, data: dict[str, Any]) -> None:
    experiment = Experiment.parse({"name": "Mine", "device": "cpu", **data})
    (run_id,) = service.submit([experiment])
    app = AppTest.from_file(str(ROOT / "pages" / "_main.py"), default_timeout=60)
    app.session_state["launch_copy"] = run_id
    app.run()
    assert not app.exception
    assert "A copy of Mine: change what should differ" in html(app)
    app.button(key="launch_queue").click().run()
    assert not app.exception
    runs = [each for each in (service.home / "runs").iterdir() if each.name[0] == "2" and each.name != run_id]
    (copied,) = [RunDirectory(each).experiment() for each in runs]
    assert launch_copy.lost_fields(experiment, copied) == []


def test_what_the_form_cannot_hold_is_said(service: Service) -> None:
    texts = [{"corpus": "passages", "window": 128}, {"corpus": "passages", "window": 512}]
    (run_id,) = service.submit([Experiment.parse({"name": "Two", "evaluation": {"perplexity": texts, "tasks": []}})])
    app = AppTest.from_file(str(ROOT / "pages" / "_main.py"), default_timeout=60)
    app.session_state["launch_copy"] = run_id
    app.run()
    assert not app.exception
    assert "cannot hold all of it, look at: evaluation.perplexity" in html(app)
    app.button(key="launch_copied_away").click().run()
    assert "cannot hold" not in html(app)


def test_a_run_without_weights_offers_to_make_them_again(run_folder: Any, service: Service) -> None:
    run_id = run_folder("l1", {"method": "l1", "ratio": 0.34})
    app = page("runs", run=run_id)
    app.button(key="runs_again").click().run()
    assert not app.exception
    assert service.status_line().queue_length == 1
    assert "Its model is being made again" in html(app)
    assert "runs_again" not in keys(app)
    app.button(key="runs_again_open").click().run()
    assert "l1: its model again</h1>" in html(app)
    dense = run_folder("dense")
    assert "runs_again" not in keys(page("runs", run=dense))


def test_an_imported_run_says_so(run_folder: Any, service: Service, tmp_path: Path) -> None:
    run_id = run_folder("l1", {"method": "l1", "ratio": 0.34})
    folder = RunDirectory(service.home / "runs" / run_id)
    folder.study_file.write_text('{"v": 1, "study": "far"}')
    base = {name: value for name, value in folder.experiment().to_dict().items() if name != "name"}
    study = service.studies.read("name: Far\nbaseline: false").model_copy(update={"base": base})
    file = service.travel.pack(study, tmp_path / "far.parquet", origin="by <us>").file
    service.delete(run_id)
    service.travel.take_in(file)
    assert "by &lt;us&gt; · measured on AMD EPYC" in html(page("runs", run=run_id))
    (table,) = page("runs").dataframe
    assert list(table.value["state"]) == ["complete, imported"]


def test_a_command_for_the_empty_queue_is_switched_on_only_after_it_was_shown(service: Service) -> None:
    waiting(service, "a")
    assert "runs_after_on" not in keys(page("runs"))
    service.after_queue.set_command("shutdown <now>")
    app = page("runs")
    assert "shutdown &lt;now&gt;" in html(app)
    app.button(key="runs_after_on").click().run()
    assert not service.after_queue.view().on
    assert any("shutdown <now>" in block.value for block in app.code)
    app.button(key="runs_after_yes").click().run()
    assert not app.exception
    assert service.after_queue.view().on
    assert "Runs once" in html(app)
    app.button(key="runs_after_off").click().run()
    assert not service.after_queue.view().on
    assert not [field for field in (*app.text_input, *app.text_area) if "shutdown" in str(field.value)]
