"""The feed: what it says is what pages draw, made once for all, and what only a script can draw changes its mark."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from streamlit.testing.v1 import AppTest

from core.errors import StoreError
from core.jobs.rundir import RunDirectory
from core.service import Service, close_service, get_service
from pages._parts import feed
from tests.pages.test_main import MAIN
from tests.pages.test_runs import TAYLOR, html, runs_page
from tests.pages.test_studies import page as studies_page

HOSTILE = "<img src=x onerror=alert(1)>\" onload='alert(2)'"
MARK = re.compile(r'data-live-mark="([^"]+)" data-live-is="([^"]+)"')


def said(service: Service) -> dict[str, Any]:
    service.live.forget()
    content: dict[str, Any] = json.loads(feed.made(service))
    return content


@pytest.fixture
def running(run_folder: Any, home: Path) -> Any:
    """A run that works, what it does having a hostile name; the queue is paused."""
    events = [
        {"kind": "stage", "stage": "prune", "status": "started"},
        {"kind": "progress", "stage": "prune", "task": HOSTILE, "done": 12, "total": 30, "unit": "layers"},
    ]
    run_id = run_folder(HOSTILE, TAYLOR, state="RUNNING", events=events)
    with RunDirectory(home / "runs" / run_id).lock():
        get_service().pause()
        yield run_id
        close_service()


def goes_on(home: Path, run_id: str, **event: Any) -> None:
    line = {"v": 1, "seq": 9, "attempt": 1, "time": "2026-11-23T21:30:00.000Z", **event}
    with RunDirectory(home / "runs" / run_id).events_file.open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_the_page_and_the_line_on_top_draw_what_the_feed_says(running: str) -> None:
    app = runs_page()
    content, shown = said(get_service()), html(app)
    assert set(content["slots"]) == {"line:device", "line:work", "line:queue", f"run:{running}"}
    assert f'data-live="run:{running}">{content["slots"][f"run:{running}"]}</div>' in shown
    assert f'data-live="line:work">{content["slots"]["line:work"]}</span>' in shown
    assert dict(MARK.findall(shown)) == content["marks"]
    assert {feed.BOARD, feed.LINE} == set(content["marks"])


@pytest.mark.parametrize(
    "made",
    [{}, {"pruning": TAYLOR}, {"pruning": TAYLOR, "recovery": {"kind": "lora", "data": {"corpus": "passages"}}}],
    ids=["dense", "pruned", "recovered"],
)
def test_an_opened_run_draws_what_the_feed_says_and_hears_of_its_end(
    made: dict[str, Any], run_folder: Any, home: Path
) -> None:
    events = [{"kind": "progress", "stage": "evaluate", "done": 12, "total": 30, "unit": "documents"}]
    run_id = run_folder("mine", made.get("pruning"), recovery=made.get("recovery"), state="RUNNING", events=events)
    with RunDirectory(home / "runs" / run_id).lock():
        get_service().pause()
        app = runs_page(run_id)
        content = said(get_service())
        assert f'data-live="run:{run_id}">{content["slots"][f"run:{run_id}"]}</div>' in html(app)
        assert dict(MARK.findall(html(app))) == content["marks"]
    goes_on(home, run_id, kind="state", state="FAILED", reason="It was too hot.")
    get_service().live.forget()
    app.button(key=feed.BOARD).click().run()
    assert not app.exception
    assert "It was too hot." in html(app)
    close_service()


def test_an_opened_study_hears_of_its_runs(service: Service) -> None:
    service.pause()
    study = service.studies.all()[0]
    service.studies.queue(study)
    shown = html(studies_page(study.id))
    assert dict(MARK.findall(shown))[feed.BOARD] == said(service)["marks"][feed.BOARD]


def test_nothing_that_a_run_says_is_html(running: str) -> None:
    content = json.dumps(said(get_service()))
    assert "&lt;img src=x onerror=alert(1)&gt;" in content
    assert "<img" not in content
    assert "onload='" not in content


def test_progress_moves_no_mark_and_an_end_does(running: str, home: Path) -> None:
    first = said(get_service())
    goes_on(home, running, kind="progress", stage="prune", done=13, total=30, unit="layers")
    second = said(get_service())
    assert "13 of 30 layers" in second["slots"][f"run:{running}"]
    assert second["marks"] == first["marks"]
    goes_on(home, running, kind="state", state="FAILED", reason="It was too hot.")
    third = said(get_service())
    assert f"run:{running}" not in third["slots"]
    assert all(third["marks"][name] != first["marks"][name] for name in first["marks"])


def test_what_waits_and_a_pause_are_the_boards_alone(running: str) -> None:
    service = get_service()
    before = said(service)["marks"]
    service.submit(service.quick_look())
    more = said(service)["marks"]
    assert more[feed.BOARD] != before[feed.BOARD]
    assert more[feed.LINE] == before[feed.LINE]
    order = said(service)["marks"]
    service.move(last_waiting(service), -1)
    assert said(service)["marks"][feed.BOARD] != order[feed.BOARD]


def last_waiting(service: Service) -> str:
    frame = service.run_list()
    return str(frame[frame["state"] == "WAITING"]["id"].iloc[-1])


def test_it_is_made_once_for_all_who_ask(running: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = get_service()
    monkeypatch.setattr("core.live.FRESH_S", 60.0)
    service.live.forget()
    assert any(feed.made(service) is feed.made(service) for _ in range(20))  # the store may take a run in meanwhile


def test_the_more_pages_ask_the_longer_they_have_to_draw(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    feed._asked.clear()
    monkeypatch.setattr(feed, "EVERY_S", 60.0)  # however slow this machine is
    for _ in range(20):
        feed.answer(Request({"type": "http"}))
    assert said(service)["spread"] == 20 * feed.SPREAD_MS
    monkeypatch.setattr(feed, "EVERY_S", 0.0)
    assert said(service)["spread"] == 0


def test_a_store_that_cannot_be_read_is_no_traceback_a_second(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Service) -> bytes:
        raise StoreError("The disk is full.")

    assert feed.answer(Request({"type": "http"})).status_code == 200
    monkeypatch.setattr(feed, "made", broken)
    assert feed.answer(Request({"type": "http"})).status_code == 503


def test_a_page_asks_while_something_moves_and_not_otherwise(service: Any, run_folder: Any) -> None:
    def asks() -> bool:
        app = AppTest.from_file(MAIN, default_timeout=60).run()
        assert not app.exception
        return "<i data-live-on" in html(app)

    run_folder("dense")
    assert not asks()
    service.pause()
    service.submit(service.quick_look())
    assert asks()
