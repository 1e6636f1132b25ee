"""Anatomy: runs in the URL, one view at a time, and the way of a scan's range into the form."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest

from core.anatomy_file import FILE, write_anatomy
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from core.pruning.anatomy import Anatomy
from core.storage.finding import Wanted

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
TAYLOR = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}
WANDA = {"method": "wanda", "ratio": 0.5}


def page(runs: list[str] | None = None, view: str = "") -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60)
    if runs is not None:
        app.query_params["run"] = runs
    if view:
        app.query_params["view"] = view
    app.switch_page("anatomy.py").run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def titles(app: AppTest) -> list[str]:
    return [json.loads(chart.proto.spec)["layout"]["title"]["text"] for chart in app.get("plotly_chart")]


@pytest.fixture
def two(run_folder: Any, service: Any, home: Path) -> dict[str, str]:
    runs = {
        "taylor": run_folder("<b>taylor</b>", TAYLOR, removed=0.169),
        "wanda": run_folder("wanda", WANDA, removed=0.39),
    }
    anatomy = Anatomy()
    anatomy.scores(4, "mlp", "MLP channel", torch.rand(1536), torch.arange(1024))
    write_anatomy(home / "runs" / runs["taylor"] / FILE, anatomy.rows)
    masks = Anatomy()
    masks.weights(0, "q", torch.rand(576, 576), torch.rand(576, 576) > 0.5)
    write_anatomy(home / "runs" / runs["wanda"] / FILE, masks.rows)
    folder = RunDirectory(home / "runs" / runs["taylor"])
    results = folder.results() or {}
    rows = [{"layer": i, "error": 0.1 * i, "stderr": 0.01, "removed": False, "kl": 0.02 * i} for i in range(30)]
    folder.write_results({**results, "layer_errors": {"protocol": {"positions": 10}, "layers": rows, "reason": ""}})
    return runs


def test_an_empty_store_offers_the_quick_look(service: Any) -> None:
    app = page()
    app.button(key="anatomy_quick").click().run()
    assert service.status_line().queue_length == len(service.quick_look())


def test_the_newest_run_opens_and_the_url_chooses_others(two: dict[str, str]) -> None:
    assert titles(page()) == ["What was removed"]
    app = page([two["taylor"], two["wanda"]])
    assert titles(app) == ["What was removed"] * 2
    assert "&lt;b&gt;taylor&lt;/b&gt;" in html(app)
    app.selectbox(key="anatomy_beside").select("").run()
    assert app.query_params["run"] == two["taylor"]


def test_a_run_that_is_not_there_is_said_as_text(two: dict[str, str]) -> None:
    app = page(["<script>", two["wanda"]])
    assert "There is no pruned run &lt;script&gt;" in html(app)
    assert app.selectbox(key="anatomy_run").value == two["wanda"]


def test_importances_stand_with_their_cut_or_say_why_there_are_none(two: dict[str, str], home: Path) -> None:
    assert titles(page([two["taylor"]], "Importance")) == ["Importance of layer 4, MLP"]
    (home / "runs" / two["taylor"] / FILE).unlink()
    app = page([two["taylor"]], "Importance")
    assert "it is older than they are" in html(app)
    app.button(key=f"anatomy_copy_{two['taylor']}").click().run()
    assert app.slider(key="launch_layers").value == (4, 25)


def test_both_runs_lines_share_a_chart_and_missing_ones_say_why(two: dict[str, str]) -> None:
    assert titles(page([two["taylor"], two["wanda"]], "Error by layer")) == [
        "Error of the hidden states",
        "KL by layer",
    ]
    assert "fidelity was switched off" in html(page([two["wanda"]], "Error by layer"))


def test_parameters_stand_part_by_part(two: dict[str, str]) -> None:
    app = page([two["taylor"]], "Parameters")
    assert titles(app) == ["Parameters by part"]
    assert "134,515,008 →" in html(app)


def test_the_image_of_a_mask_is_shown_without_its_weights(two: dict[str, str]) -> None:
    app = page([two["wanda"]], "Density")
    assert titles(app) == ["Density of layer 0, q_proj"]
    assert "it cannot be zoomed" in html(app)
    app.selectbox(key="anatomy_role_a").select("down").run()
    assert "Neither this run" in html(app)
    assert "Density" not in page([two["taylor"]]).segmented_control(key="anatomy_view").options


def test_a_run_without_a_scan_queues_one(two: dict[str, str], service: Any) -> None:
    app = page([two["taylor"]], "Scan of layers")
    app.button(key="anatomy_scan_queue_a").click().run()
    assert not app.exception
    waiting = service.run_list().query("state == 'WAITING'")
    assert list(waiting["kind"]) == ["scan"]
    assert list(waiting["method"]) == ["taylor"]


@pytest.fixture
def scan(two: dict[str, str], home: Path, service: Any) -> str:
    run_id = "20261123-235900-0a1b2c3d-scan"
    folder = RunDirectory(home / "runs" / run_id)
    text = {"corpus": "passages", "max_tokens": 4096}
    data = {"name": "a scan", "pruning": {"method": "taylor", "ratio": 0.3}, "scan": {}}
    folder.write_experiment(Experiment.parse({**data, "evaluation": {"perplexity": [text]}, "device": "cpu"}))
    lines = [{"kind": "state", "state": "RUNNING"}, {"kind": "state", "state": "COMPLETE"}]
    folder.events_file.write_text(
        "".join(
            json.dumps({"v": 1, "seq": i, "attempt": 1, "time": "2026-11-23T23:59:00Z", **line}) + "\n"
            for i, line in enumerate(lines, 1)
        )
    )
    costs = [1.0 if i < 4 or i > 25 else 0.1 for i in range(30)]
    rows = [
        {"layer": i, "part": "layer", "perplexity": 20.0 + cost, "stderr": 0.1, "cost": cost, "removed": 5}
        for i, cost in enumerate(costs)
    ]
    folder.write_results({"scan": {"by": "layer", "dense": {"perplexity": 18.0, "windows": 8}, "layers": rows}})
    return run_id


def test_the_range_of_a_scan_goes_into_the_form(scan: str, two: dict[str, str]) -> None:
    app = page([two["taylor"]], "Scan of layers")
    assert titles(app) == ["Each layer by itself"]
    assert app.select_slider(key=f"anatomy_range_a_{scan}").value == (4, 25)
    app.select_slider(key=f"anatomy_range_a_{scan}").set_value((6, 20)).run()
    app.button(key="anatomy_use_a").click().run()
    assert not app.exception
    assert app.slider(key="launch_layers").value == (6, 20)
    assert app.session_state["launch_method"] == "taylor"
    assert app.session_state["launch_ratio"] == 30
    assert len(app.session_state["launch_tasks"]) == 7
    assert "From the scan" in html(app)


def test_a_scan_opens_with_its_curve_alone_and_stays_out_of_compare(scan: str, service: Any) -> None:
    app = page([scan])
    assert titles(app) == ["Each layer by itself"]
    ids = service.compare.ids(Wanted())
    assert ids
    assert scan not in ids


def test_launch_offers_a_scan_of_what_the_form_holds(service: Any) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    app.button(key="launch_scan").click().run()
    assert not app.exception
    assert list(service.run_list()["kind"]) == ["scan"]


def test_an_opened_scan_leads_to_its_curve(scan: str, service: Any) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.query_params["run"] = scan
    app.switch_page("runs.py").run()
    assert not app.exception
    assert "runs_compare" not in {str(button.key) for button in app.button}
    assert "scan of layers" in html(app)
    app.button(key="runs_anatomy").click().run()
    assert titles(app) == ["Each layer by itself"]
