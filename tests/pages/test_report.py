"""Report: what it is about, in which language, the document on the page, its downloads."""

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.jobs.rundir import RunDirectory
from core.study import Study

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
TAYLOR = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}


@pytest.fixture
def two(run_folder: Any, service: Any) -> dict[str, str]:
    return {"dense": run_folder("dense"), "taylor": run_folder("taylor", TAYLOR, values=(78.5, 0.57))}


def report_page(**query: Any) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.switch_page("report.py").run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def test_an_empty_store_leads_to_studies_and_launch(service: Any) -> None:
    app = report_page()
    assert {"report_to_studies", "report_to_launch"} <= {str(button.key) for button in app.button}
    assert "No run is complete yet" in html(app)


def test_all_runs_are_shown_as_a_paper_and_can_be_downloaded(two: dict[str, str]) -> None:
    app = report_page()
    shown = html(app)
    assert "Pruning report: 2 runs" in shown
    assert two["taylor"] in shown
    assert 'src="data:image/svg+xml;base64,' not in shown  # one run makes no curve
    keys = {str(each.proto.id).rsplit("-", 1)[-1] for each in app.get("download_button")}
    assert {"report_html", "report_markdown", "report_latex", "report_png"} <= keys


def test_a_report_that_did_not_change_is_drawn_once_for_light_and_once_for_dark(
    two: dict[str, str], service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.report import html as paper

    drawn: list[bool] = []
    plain = paper.article
    monkeypatch.setattr(paper, "article", lambda *of, **how: drawn.append(how["dark"]) or plain(*of, **how))
    app = report_page()
    app.run()
    assert not app.exception
    assert "Pruning report: 2 runs" in html(app)
    assert len(drawn) == 1
    report = service.reports.of_runs(list(two.values()))
    report.articles.clear()
    drawn.clear()
    for dark in (False, True, False, True):
        assert service.reports.shown(report, dark=dark).startswith("<article")
    assert drawn == [False, True]


def test_language_and_marks_are_taken_from_the_url_and_change_the_document(two: dict[str, str]) -> None:
    app = report_page(report_language="Deutsch")
    shown = html(app)
    assert "Ergebnisse" in shown
    assert "78,50 ± 0,79 ▼" in shown
    assert "alle einzelnen Aufgaben" not in shown
    app.toggle(key="report_tasks").set_value(True).run()
    assert "alle einzelnen Aufgaben" in html(app)
    app.segmented_control(key="report_language").set_value("English").run()
    assert "all single tasks" in html(app)


def test_the_runs_that_compare_hands_over_are_those_of_the_report(two: dict[str, str], run_folder: Any) -> None:
    other = run_folder("l1", {"method": "l1", "ratio": 0.2})
    app = report_page(runs=[two["taylor"]])
    shown = html(app)
    assert two["taylor"] in shown
    assert two["dense"] in shown  # what it is held against
    assert other not in shown
    app.selectbox(key="report_about").set_value("all").run()
    assert other in html(app)


def test_compare_and_studies_lead_here(two: dict[str, str], run_folder: Any, service: Any) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.query_params["runs"] = [two["taylor"]]
    app.switch_page("compare.py").run()
    app.button(key="compare_report").click().run()
    assert not app.exception
    assert "Pruning report: taylor" in html(app)


def test_a_study_is_chosen_by_the_url_and_an_unknown_run_is_said(two: dict[str, str], service: Any) -> None:
    study = Study.parse({"name": "Mine <b>x</b>", "base": {"pruning": TAYLOR, "device": "cpu"}})
    service.studies.save(study)
    app = report_page(study=study.id)
    assert app.selectbox(key="report_about").value == f"study:{study.id}"
    assert "No run of the selection has numbers" in html(app)  # another evaluation was asked for than the runs have
    assert "<b>x" not in html(app)
    app = report_page(runs=["20200101-000000-00000000-gone"])
    assert "There is no run" in html(app)


def test_a_study_with_numbers_comes_before_a_newer_one_without(two: dict[str, str], service: Any) -> None:
    measured, planned = (Study.parse({"name": name, "base": {"pruning": TAYLOR}}) for name in ("Measured", "A plan"))
    for study in (measured, planned):
        service.studies.save(study)
    RunDirectory(service.home / "runs" / two["taylor"]).study_file.write_text(
        json.dumps({"v": 1, "study": measured.id})
    )
    service._store.sync(service.home, thorough=True)
    offered = report_page().selectbox(key="report_about").options
    assert offered.index("Measured") < offered.index("A plan")
    assert offered[0] == "Measured"


def test_names_are_shown_as_text(run_folder: Any, service: Any) -> None:
    run_folder("<script>alert(1)</script>", TAYLOR)
    shown = html(report_page())
    assert "&lt;script&gt;alert(1)" in shown
    assert "<script" not in shown


def test_of_very_many_runs_only_the_newest_are_written_up(
    two: dict[str, str], run_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = run_folder("l1", {"method": "l1", "ratio": 0.2})
    monkeypatch.setattr("pages._parts.report_choose.MOST", 1)
    app = report_page()
    assert app.selectbox(key="report_about").options == ["The newest 1 of 3 complete runs"]
    shown = html(app)
    assert newest in shown
    assert two["taylor"] not in shown
