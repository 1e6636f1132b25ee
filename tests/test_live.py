"""The board for many visitors: one look serves all of them, and nobody is shown what was before his own change."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import live
from core.experiment import Experiment
from core.service import Service

CUT = {"pruning": {"method": "l1", "ratio": 0.3}, "evaluation": {"tasks": []}, "device": "cpu"}


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(live, "FRESH_S", 60.0)
    made = Service()
    made.pause()
    made.live.forget()
    yield made
    made.close()


def looks(service: Service, monkeypatch: pytest.MonkeyPatch, before: Any = lambda: None) -> list[None]:
    """Counts how often the files are looked at; `before` each look."""
    found: list[None] = []
    plain = service.live._look

    def look() -> Any:
        found.append(None)
        before()
        return plain()

    monkeypatch.setattr(service.live, "_look", look)
    return found


def test_twenty_visitors_of_whom_nobody_has_seen_it_yet_share_one_look(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = threading.Barrier(20)
    seen: list[Any] = []
    found = looks(service, monkeypatch)

    def visit() -> None:
        ready.wait()
        seen.append(service.live.now())

    visitors = [threading.Thread(target=visit) for _ in range(20)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert len(found) == 1
    assert len({id(each) for each in seen}) == 1


def test_a_run_that_was_just_queued_is_seen_however_fresh_the_last_look_was(service: Service) -> None:
    assert service.live.now().empty
    (run_id,) = service.submit([Experiment.parse(CUT)])
    assert [status.id for status in service.live.now().statuses] == [run_id]
    service.delete(run_id)
    assert service.live.now().empty


def test_a_look_that_a_change_fell_into_is_not_kept(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.submit([Experiment.parse(CUT)])
    found = looks(service, monkeypatch, before=service.live.forget)  # somebody moves a run meanwhile
    service.live.now()
    service.live.now()
    assert len(found) == 2
