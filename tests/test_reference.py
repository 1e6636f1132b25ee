"""The study that comes with Espalier: taken in once, marked, read-only, and taken back."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from core import settings
from core.errors import QueueError
from core.service import Service
from core.study import Study, expand, key_of

STUDY = Path(__file__).parents[1] / "benchmarks" / "studies" / "smollm2-reference.yaml"


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.delenv("ESPALIER_REFERENCE")
    opened = Service(home)
    yield opened
    opened.close()


def test_it_is_taken_in_once_marked_with_its_origin_and_may_be_removed_and_brought_back(service: Service) -> None:
    file = settings.reference_file()
    assert file is not None
    found = service.travel.take_in_once(file)
    assert found is not None
    assert (found.study, found.name) == ("reference-smollm2-135m", "Reference: SmolLM2-135M")
    assert "Espalier project" in found.origin
    assert found.devices == ("NVIDIA H200", "Intel(R) Xeon(R) Processor")
    assert found.packages["lm-eval"] == "0.4.13"
    assert service.travel.nothing_of_this_machine()  # so that Launch still greets who comes the first time
    runs = service.runs()
    asked = {key_of(experiment) for run in found.runs if (experiment := service.run_detail(run).experiment)}
    planned = expand(Study.from_yaml(STUDY.read_text(encoding="utf-8"))).runs
    assert len(runs) == len(found.runs) == len(asked) == 165
    missing = [run.experiment.pruning for run in planned if run.key not in asked]
    assert len(missing) == len(planned) - 165
    assert {pruning.ratio for pruning in missing if pruning} == {
        0.3,
        0.4,
        0.5,
    }  # whole layers, which docs/results.md lists
    assert set(runs["state"]) == {"COMPLETE"}
    detail = service.run_detail(found.runs[0])
    assert {"perplexity", "acc"} <= set(detail.metrics["metric"])
    assert all(detail.metrics["protocol"])  # every number says how it was measured
    unpruned = [service.run_detail(run) for run in runs[runs["method"].isna()]["id"]]
    dense = pd.concat(detail.metrics for detail in unpruned if detail.experiment and detail.experiment.dense)
    values = dense[dense["metric"] == "perplexity"]["value"].round(2).tolist()
    assert values == [29.97, 21.78]  # another implementation's: 29.97 and 21.77, in float32
    with pytest.raises(QueueError):
        service.cancel(found.runs[0])
    service.travel.remove(found.study)
    assert service.runs().empty
    assert service.travel.take_in_once(file) is None  # it stays away …
    assert len(service.travel.take_in(file).runs) == len(found.runs)  # … until somebody asks for it


def test_it_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_REFERENCE", "0")
    assert settings.reference_file() is None


def test_a_home_that_is_opened_twice_takes_it_in_once(
    service: Service, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arriving, take_in = [], service.travel.take_in
    monkeypatch.setattr(
        service.travel, "take_in", lambda file: arriving.append(service.travel.arriving) or take_in(file)
    )
    service.travel.take_reference_in()
    assert arriving == [True]  # pages say so meanwhile
    assert not service.travel.arriving
    assert [each.study for each in service.travel.all()] == ["reference-smollm2-135m"]
    service.travel.remove("reference-smollm2-135m")
    service.travel.take_reference_in()
    assert service.travel.all() == []
    assert not list((home / "studies").glob("*.import.json"))


def test_a_damaged_one_keeps_nobody_from_working(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "reference.parquet"
    damaged.write_bytes(b"PAR1")
    monkeypatch.setattr(settings, "reference_file", lambda: damaged)
    service.travel.take_reference_in()
    assert service.runs().empty
