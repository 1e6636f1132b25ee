"""What pages say of where runs go, and how it is changed on Runs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.experiment import Experiment
from core.jobs import cluster as clusters
from core.jobs.cluster import Capacity, Unreachable
from core.service import Service

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL: dict[str, Any] = {"evaluation": {"perplexity": [], "tasks": ["piqa"], "limit": 20}}


class Answers:
    """A cluster that has nodes and is never given anything: the queue is paused."""

    def capacity(self) -> Capacity:
        return Capacity(nodes=2, cpus=64.0, gpus=4.0)


@pytest.fixture(autouse=True)
def queued(service: Service) -> None:
    service.submit([Experiment.parse({"name": "one", **SMALL})])


def settle(question: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not question():
        assert time.monotonic() < end
        time.sleep(0.02)


def page(name: str = "runs.py") -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / name), default_timeout=60).run()
    assert not app.exception
    return app


def said(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def test_a_cluster_is_named_on_runs_and_taken_back_again(service: Service, monkeypatch: Any, home: Path) -> None:
    monkeypatch.setattr(clusters, "_ray", lambda address: Answers())
    service._owner().clusters._connect = clusters._ray  # type: ignore[union-attr]
    app = page()
    app.text_input(key="runs_place_address").set_value("http://head:8265/").run()
    app.button(key="runs_place_set").click().run()
    assert service.places.address() == "http://head:8265"
    settle(lambda: (view := service.places.cluster()) is not None and view.reachable)
    assert "<code>http://head:8265</code> has 2 nodes, 4 GPUs, 64 cores." in said(app.run())
    assert "paused · cluster: 2 nodes, 4 GPUs, 64 cores" in said(page("_main.py"))
    app.text_input(key="runs_place_address").set_value("").run()
    app.button(key="runs_place_set").click().run()
    assert service.places.cluster() is None
    assert "cluster" not in said(page("_main.py"))


def test_an_address_that_is_none_is_refused_beside_the_title_and_changes_nothing(service: Service) -> None:
    app = page()
    app.text_input(key="runs_place_address").set_value("<b>head</b>:6379").run()
    app.button(key="runs_place_set").click().run()
    assert not app.exception
    assert "is not the address of a Ray cluster" in said(app)
    assert "<b>head</b>" not in said(app)
    assert service.places.address() == ""


def test_a_cluster_that_does_not_answer_is_said_on_every_page_and_the_environment_cannot_be_changed(
    service: Service, monkeypatch: Any
) -> None:
    def nobody(address: str) -> Any:
        raise Unreachable("Failed to connect to <head>.")

    service._owner().clusters._connect = nobody
    monkeypatch.setenv("ESPALIER_RAY_ADDRESS", "http://head:8265")
    settle(lambda: "Failed" in (service.places.cluster().problem))  # type: ignore[union-attr]
    app = page()
    assert "does not answer, and nothing is started: Failed to connect to &lt;head&gt;." in said(app)
    assert not app.text_input
    assert "cluster does not answer" in said(page("_main.py"))
