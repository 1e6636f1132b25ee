"""Studies: chosen, written, imported, queued and stopped as one, on the page."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from core.jobs.rundir import RunDirectory, new_run_id
from core.jobs.status import now_iso
from core.service import Service
from core.study import expand
from pages._parts import studies_text as say
from pages._parts import theme

ROOT = Path(__file__).resolve().parent.parent.parent
ENDED = ("RUNNING", "COMPLETE")
MINE = """name: My <b>own</b>
note: What <i>for</i>.
base: {pruning: {ratio: 0.34, layers: [4, 25], calibration: {samples: 8, length: 256}},
       evaluation: {tasks: [piqa], limit: 20, fidelity: false}}
grid: {pruning.method: [taylor, l1], pruning.pattern: [unstructured, "2:4"]}
"""


def page(study: str = "") -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "studies.py"), default_timeout=60)
    if study:
        app.query_params["study"] = study
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


def test_the_list_offers_the_ready_made_studies_and_a_door_for_ones_own(service: Service) -> None:
    app = page()
    shown = html(app)
    assert "The study on SmolLM2</b>" in shown
    assert "42 runs" in shown
    app.button(key="studies_open_quick-look").click().run()
    assert not app.exception
    assert "quick-look" in app.query_params["study"]
    assert "Quick look</h1>" in html(app)
    assert "studies_delete" not in keys(app)


def test_a_study_is_written_previewed_queued_and_stopped(service: Service) -> None:
    app = page()
    app.text_area[0].set_value(MINE).run()
    app.button(key="studies_write").click().run()
    assert not app.exception
    assert "my-b-own-b" in app.query_params["study"]
    shown = html(app)
    assert "<b>own" not in shown
    assert "My &lt;b&gt;own&lt;/b&gt;</h1>" in shown
    assert "<dt>left to do</dt><dd>3 runs</dd>" in shown
    costs = service.studies.preview(service.studies.read(MINE))
    assert costs.seconds > 0
    assert costs.disk_bytes > 0
    assert f"<dt>takes</dt><dd>about {theme.duration(costs.seconds)}</dd>" in shown
    assert f"<dt>keeps on disk</dt><dd>about {theme.size(costs.disk_bytes)}</dd>" in shown
    assert "does not apply to taylor" in shown  # 2:4, left out with its reason
    assert "The dense model is judged once, for all 2 runs" in shown
    assert list(app.dataframe[0].value["state"]) == ["not queued"] * 3
    app.button(key="studies_queue").click().run()
    assert not app.exception
    assert service.status_line().queue_length == 3
    assert "3 waiting" in html(app)
    assert "studies_queue" not in keys(app)
    app.button(key="studies_stop").click().run()
    assert service.status_line().queue_length == 3  # asked first
    app.button(key="studies_yes").click().run()
    assert not app.exception
    assert service.status_line().queue_length == 0
    assert "3 cancelled" in html(app)
    assert "studies_queue" in keys(app)


def test_runs_are_marked_to_keep_their_weights_before_and_while_they_wait(service: Service) -> None:
    service.studies.save(service.studies.read(MINE))
    name, other = (f"My <b>own</b>: {method} 34 %" for method in ("Taylor", "L1 norm"))
    app = page("my-b-own-b")
    choice = app.multiselect(key="studies_keep")
    assert (choice.value, len(choice.options)) == ([], 2)  # the dense model has nothing to keep
    less = service.studies.preview(service.studies.find("my-b-own-b")).disk_bytes
    choice.set_value([name]).run()
    assert not app.exception
    assert app.multiselect(key="studies_keep").value == [name]
    assert list(app.dataframe[0].value["weights"]) == ["", "to keep", "go"]
    assert "keep:\n" in app.text_area(key="studies_text_my-b-own-b").value
    study = service.studies.find("my-b-own-b")
    assert service.studies.preview(study).disk_bytes > less + 100_000_000
    app.button(key="studies_queue").click().run()
    ids = dict(service.studies.status(study).rows.set_index("name")["run_id"])
    folders = {each: RunDirectory.of(service.home / "runs", ids[each]) for each in (name, other)}
    assert {each: folder.keeps_weights() for each, folder in folders.items()} == {name: True, other: False}
    app.multiselect(key="studies_keep").set_value([other]).run()  # those that wait hear of it
    assert not app.exception
    assert {each: folder.keeps_weights() for each, folder in folders.items()} == {name: False, other: True}


def test_marks_do_not_overwrite_yaml_that_somebody_is_writing(service: Service) -> None:
    service.studies.save(service.studies.read(MINE))
    app = page("my-b-own-b")
    area = app.text_area(key="studies_text_my-b-own-b")
    area.set_value(area.value.replace("0.34", "0.2")).run()
    app.multiselect(key="studies_keep").set_value(["My <b>own</b>: Taylor 34 %"]).run()
    assert "is not saved" in html(app)
    assert app.multiselect(key="studies_keep").value == []
    assert "0.2" in app.text_area(key="studies_text_my-b-own-b").value
    assert "keep:" not in (service.home / "studies" / "my-b-own-b.yaml").read_text()


def test_marked_runs_that_kept_nothing_are_made_again_with_one_button(service: Service) -> None:
    study = service.studies.read(MINE + "keep: [{pruning.method: taylor}]\n")
    service.studies.save(study)
    for run in expand(study).runs:
        folder = RunDirectory.of(service.home / "runs", new_run_id(run.key))
        folder.write_experiment(run.experiment)
        folder.study_file.write_text(json.dumps({"v": 1, "study": study.id}))
        states = [{"v": 1, "seq": i, "attempt": 1, "kind": "state", "state": word} for i, word in enumerate(ENDED, 1)]
        folder.events_file.write_text("".join(json.dumps({**each, "time": now_iso()}) + "\n" for each in states))
    app = page(study.id)
    assert list(app.dataframe[0].value["weights"]) == ["", "gone", "gone"]
    button = app.button(key="studies_again")
    assert button.label == "Make 1 model again"
    button.click().run()
    assert not app.exception
    assert service.status_line().queue_length == 1
    assert "studies_again" not in keys(app)


def test_a_price_turns_hours_into_money_and_is_kept(service: Service) -> None:
    app = page("the-study-on-smollm2")
    assert "<dt>costs</dt>" not in html(app)
    app.number_input(key="studies_price").set_value(2.5).run()
    assert not app.exception
    assert "<dt>costs</dt>" in html(app)
    assert service.preferences.price_per_hour() == 2.5
    assert "<dt>costs</dt>" in html(page("the-study-on-smollm2"))


def test_mistakes_in_yaml_are_said_and_nothing_is_kept(service: Service) -> None:
    app = page()
    app.text_area[0].set_value("name: x\ngrid: {pruning.ratoi: [1]}").run()
    app.button(key="studies_write").click().run()
    assert not app.exception
    assert "Did you mean" in html(app)
    assert not (service.home / "studies").exists()
    app.text_area[0].set_value("name: Quick look\nruns: [{pruning.method: l1}]").run()
    app.button(key="studies_write").click().run()
    assert "another study called Quick look" in html(app)


def test_a_changed_study_is_saved_and_can_be_deleted(service: Service) -> None:
    service.studies.save(service.studies.read(MINE))
    app = page("my-b-own-b")
    area = app.text_area(key="studies_text_my-b-own-b")
    area.set_value(area.value.replace("taylor", "l2")).run()
    app.button(key="studies_save").click().run()
    assert not app.exception
    assert "l2" in (service.home / "studies" / "my-b-own-b.yaml").read_text()
    app.button(key="studies_delete").click().run()
    app.button(key="studies_yes").click().run()
    assert not app.exception
    assert not list((service.home / "studies").glob("*.yaml"))
    assert "study" not in app.query_params


def test_an_imported_study_says_where_it_was_measured_and_goes_as_one(
    service: Service, run_folder: Any, tmp_path: Path
) -> None:
    run_id = run_folder("l1", {"method": "l1", "ratio": 0.34})
    folder = RunDirectory(service.home / "runs" / run_id)
    folder.study_file.write_text('{"v": 1, "study": "far-away"}')
    experiment = folder.experiment()
    base = experiment.to_dict()
    del base["name"]
    study = service.studies.read("name: Far away\nbaseline: false")
    study = study.model_copy(update={"base": base})
    file = service.travel.pack(study, tmp_path / "far.parquet", origin="by <us>").file
    service.delete(run_id)
    service.travel.take_in(file)
    assert "imported" in html(page())
    app = page("far-away")
    shown = html(app)
    assert "by &lt;us&gt; · measured on AMD EPYC" in shown
    assert "1 complete" in shown
    assert app.get("download_button")
    app.button(key="studies_delete").click().run()
    app.button(key="studies_yes").click().run()
    assert not app.exception
    assert service.runs().empty
    assert "far-away" not in [study.id for study in service.studies.all()]


def test_runs_of_one_name_are_a_row_each(service: Service) -> None:
    twice = "name: Twice\ngrid: {device: [auto, cpu], pruning.method: [l1], pruning.ratio: [0.34]}"
    service.studies.save(service.studies.read(twice))
    app = page("twice")
    names = list(app.dataframe[0].value["name"])
    assert len(names) == service.studies.count(service.studies.find("twice")) == 4
    assert names[0] == names[1]  # the dense model, once for each device
    assert "Runs<span>4</span>" in html(app)


def test_what_is_left_to_do_is_said_also_where_it_cannot_be_done_here() -> None:
    rows = pd.DataFrame({"problem": ["", ""]})
    done = SimpleNamespace(to_do=0, rows=rows)
    assert say.cost_facts(done) == [("left to do", "nothing: every run is complete")]
    rows.loc[1, "problem"] = "It cannot be had here."
    assert say.cost_facts(done) == [("left to do", "nothing: 1 of its runs cannot run here, as said below")]


def test_a_study_that_is_not_there_leads_back(service: Service) -> None:
    app = page("../secrets")
    assert "There is no study" in html(app)
    app.button(key="studies_back").click().run()
    assert "Ready made" in html(app)


def test_counts_in_words() -> None:
    assert say.counts_line({"NOT QUEUED": 3}) == ""
    assert say.counts_line({"NOT QUEUED": 1, "COMPLETE": 2, "RUNNING": 1}) == "2 complete, 1 running, 1 not queued"
    assert 'aria-valuenow="2"' in say.progress_html({"COMPLETE": 2, "FAILED": 1})
    assert "width:66.67%" in say.progress_html({"COMPLETE": 2, "FAILED": 1})
