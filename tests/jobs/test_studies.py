"""Studies as one: previewed, queued, stopped, resumed, seen; from the door and from the command line."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.__main__ import main
from core.errors import ExperimentError, UnknownNameError
from core.jobs.letters import Letters
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.service import Service
from core.storage.store import Store
from core.study import Study


@pytest.fixture
def study(experiment: Any) -> Any:
    """A study of the tiny model: dense, L1 and random, in seconds."""

    def make(*, slow: bool = False, **changes: Any) -> Study:
        base = experiment(slow=slow).to_dict()
        del base["name"], base["save_model"]
        base["pruning"] = {"ratio": 0.5, "round_to": 8}
        return Study.parse({"name": "Tiny", "base": base, "grid": {"pruning.method": ["l1", "random"]}, **changes})

    return make


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    """A service that owns its queue."""
    service = Service()
    yield service
    for run_id in service.run_list().query("state == 'RUNNING'")["id"]:
        service.cancel(run_id)
    service.close()


@pytest.fixture
def shown(home: Path) -> Iterator[Service]:
    """A service that runs no queue."""
    service = Service(supervisor=False)
    yield service
    service.close()


def until(condition: Any, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("this took too long")


def states(service: Service, study: Study) -> list[str]:
    return list(service.studies.status(study).rows["state"])


def test_a_preview_says_what_it_costs_and_queues_nothing(
    shown: Service, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shown.studies.preview(study(grid={"pruning.method": ["l1", "l2"], "pruning.ratio": [0.5, 2]}), 3.6)
    assert list(found.rows["name"]) == [
        "tiny, dense", "Tiny: L1 norm 50 %", "Tiny: L2 norm 50 %",
        "pruning.method=l1, pruning.ratio=2", "pruning.method=l2, pruning.ratio=2",
    ]  # fmt: skip
    assert "less than 1" in found.rows["problem"].iloc[-1]
    assert found.to_do == 3
    assert found.seconds == pytest.approx(found.rows["seconds"].sum())
    assert found.seconds > 0
    assert found.disk_bytes == found.rows["disk_bytes"].sum() > 0
    assert found.memory_bytes == found.rows["memory_bytes"].max()
    assert found.money == pytest.approx(found.seconds / 1000)
    assert shown.studies.preview(study()).money is None
    monkeypatch.setenv("ESPALIER_PRICE_PER_HOUR", "7.2")
    assert shown.studies.preview(study()).money == pytest.approx(shown.studies.preview(study()).seconds / 500)
    assert shown.runs().empty


def test_several_gpus_make_the_hours_fewer_and_the_money_less(
    shown: Service, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = shown.studies.preview(study(), price_per_hour=2.0)
    monkeypatch.setenv("ESPALIER_CPU_RUNS", "2")
    two = shown.studies.preview(study(), price_per_hour=2.0)
    assert (alone.at_once, two.at_once) == (1, 2)
    longest = alone.rows["seconds"].max()
    assert two.seconds == pytest.approx(max(alone.seconds / 2, longest))
    assert two.money == pytest.approx(2 * two.seconds / 3600)


def test_a_study_that_cannot_have_its_model_is_refused_and_not_kept(shown: Service, study: Any) -> None:
    asked = study()
    asked.base["model"] = {"name": "nobody/has-it"}
    assert shown.studies.preview(asked).to_do == 0
    with pytest.raises(ExperimentError, match="nobody/has-it"):
        shown.studies.queue(asked, by=Letters(shown.home))
    assert not (shown.home / "studies").exists()
    assert shown.runs().empty


def test_a_study_runs_once_and_is_seen_as_one(service: Service, study: Any) -> None:
    tiny = study()
    assert service.studies.status(tiny).counts == {"NOT QUEUED": 3}
    ids = service.studies.queue(tiny)
    assert len(ids) == 3
    assert service.studies.find("tiny") == service.studies.find("Tiny") == tiny
    until(lambda: service.studies.status(tiny).counts == {"COMPLETE": 3})
    assert list(service.studies.status(tiny).rows["run_id"]) == ids == service.studies.run_ids(tiny)
    assert service.studies.queue(tiny) == []  # all there
    runs = service.runs()
    assert set(runs["study"]) == {"tiny"}
    assert not any(RunDirectory.of(service.home / "runs", run_id).model_dir.exists() for run_id in ids)
    assert service.studies.preview(tiny).to_do == 0

    wider = study(grid={"pruning.method": ["l1", "random", "l2"]}, name="Wider")
    assert len(service.studies.queue(wider)) == 1  # others did the rest
    until(lambda: service.studies.status(wider).counts == {"COMPLETE": 4})
    fresh = Store()
    fresh.reindex(service.home)
    assert set(fresh.runs()["study"]) == {"tiny", "wider"}
    fresh.close()


def test_a_study_is_stopped_and_goes_on(service: Service, study: Any) -> None:
    slow = study(slow=True)
    ids = service.studies.queue(slow)
    until(lambda: service.studies.status(slow).counts.get("RUNNING"))
    assert set(service.studies.stop(slow)) == set(ids)
    until(lambda: service.studies.status(slow).counts == {"CANCELLED": 3})
    assert service.studies.stop(slow) == []
    service.pause()
    again = service.studies.queue(slow)
    assert len(again) == 3
    assert not set(again) & set(ids)
    assert service.studies.status(slow).counts == {"WAITING": 3}
    service.studies.stop(slow)


def test_the_owner_of_the_queue_finds_what_the_command_line_left(service: Service, study: Any) -> None:
    service.pause()
    tiny = study()
    other = Service(supervisor=False)
    try:
        ids = other.studies.queue(tiny, by=Letters(other.home))
        until(lambda: len(service.status_line().notice) == 0 and service.status_line().queue_length == 3)
        assert list(service.run_list().sort_values("position")["id"]) == ids  # the dense model first
        assert other.studies.stop(tiny, by=Letters(other.home)) == ids[::-1]
    finally:
        other.close()
    service.pause(False)
    until(lambda: service.status_line().queue_length == 0)
    assert states(service, tiny) == ["CANCELLED"] * 3
    assert all(RunDirectory.of(service.home / "runs", run_id).status().state is State.CANCELLED for run_id in ids)


def test_the_command_line_runs_a_file_to_its_end(
    home: Path, study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(study().to_yaml())
    assert main(["study", "show", str(file), "--price", "2"]) == 0
    assert "3 runs to do" in (said := capsys.readouterr().out)
    assert "costs" in said
    assert main(["study", "run", str(file), "--queue"]) == 0
    assert "3 runs queued" in capsys.readouterr().out
    assert main(["study", "status", "tiny"]) == 0
    assert "3 waiting" in capsys.readouterr().out
    assert main(["study", "run", "Tiny"]) == 0
    said = capsys.readouterr().out
    assert "0 runs queued" in said
    assert said.count("complete ") == 3
    assert main(["study", "stop", "tiny"]) == 0
    assert "0 runs cancelled" in capsys.readouterr().out
    assert main(["study", "list"]) == 0
    assert "the-study-on-smollm2" in (said := capsys.readouterr().out)
    assert said.startswith("tiny ")


def test_a_name_that_nobody_has_is_refused(shown: Service, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownNameError, match="quick-look"):
        shown.studies.find("quik-look")
    assert main(["study", "show", "../secrets"]) == 2
    assert "There is no study" in capsys.readouterr().err
    assert main(["study", "show", "nothing.yaml"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_file_that_is_no_study_hides_no_other(shown: Service) -> None:
    (shown.home / "studies").mkdir()
    (shown.home / "studies" / "broken.yaml").write_text("name: [")
    assert "quick-look" in [one.id for one in shown.studies.all()]
