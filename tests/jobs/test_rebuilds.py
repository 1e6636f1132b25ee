"""The model of a run that kept only its numbers, made again and handed over; and what is not handed over."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.__main__ import main
from core.errors import EspalierError, InputError, QueueError
from core.experiment import Experiment
from core.jobs.letters import Letters
from core.jobs.rundir import RunDirectory
from core.service import Service


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def until(condition: Any, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("this took too long")


def complete(service: Service, run_id: str) -> bool:
    return str(RunDirectory.of(service.home / "runs", run_id).status().state) == "COMPLETE"


@pytest.fixture
def wanda(experiment: Any, text: Path) -> Experiment:
    """A mask that reads text, of a run that keeps no weights."""
    calibration = {"path": str(text), "samples": 4, "length": 16}
    pruning = {"method": "wanda", "ratio": 0.5, "calibration": calibration}
    made: Experiment = experiment(pruning=pruning, save_model=False)
    return made


def test_a_model_is_made_again_bit_for_bit_and_the_helper_goes(service: Service, wanda: Experiment) -> None:
    (run_id,) = service.submit([wanda])
    until(lambda: complete(service, run_id))
    folder = RunDirectory.of(service.home / "runs", run_id)
    assert not folder.model_dir.exists()
    assert service.rebuilds.missing(run_id)
    assert service.rebuilds.of(run_id) is None
    results = folder.results_file.read_bytes()
    helper = service.rebuilds.start(run_id)
    with pytest.raises(QueueError, match=helper):
        service.rebuilds.start(run_id)
    again = until(lambda: (now := service.rebuilds.of(run_id)) and now.weights and now)
    assert again.weights == "same"
    assert not again.trained
    assert (folder.model_dir / "config.json").is_file()
    assert not (service.home / "runs" / helper).exists()
    assert folder.results_file.read_bytes() == results
    assert run_id in [model.run_id for model in service.chat_models()]
    assert list(service.runs()["id"]) == [run_id]
    assert not service.rebuilds.missing(run_id)
    with pytest.raises(InputError, match="has its model"):
        service.rebuilds.start(run_id)
    shutil.rmtree(folder.model_dir)  # to save room, say: it can be made once more
    assert service.rebuilds.missing(run_id)
    service.pause()
    assert service.rebuilds.start(run_id) != helper


@pytest.mark.parametrize("keep", [True, False])
def test_what_was_said_of_weights_while_a_run_waited_counts_for_more_than_its_yaml(
    service: Service, wanda: Experiment, keep: bool
) -> None:
    service.pause()
    (run_id,) = service.submit([wanda.model_copy(update={"save_model": not keep})])
    service.weights.keep(run_id, keep)
    service.pause(False)
    until(lambda: complete(service, run_id))
    assert service.weights.there(run_id) is keep
    assert (service.weights.size(run_id) > 10_000) is keep


def handed(home: Path, wanda: Experiment, **changed: Any) -> tuple[RunDirectory, RunDirectory]:
    """A complete run without weights, and a complete helper that made a model for it, written by hand."""
    found = []
    for place, keeps in enumerate((False, True)):
        folder = RunDirectory(home / "runs" / f"20261123-20000{place}-0a1b2c3d-run{place}")
        folder.write_experiment(wanda.with_changes({"save_model": keeps}))
        states = [{"state": "RUNNING"}, {"state": "COMPLETE"}]
        lines = [{"v": 1, "seq": i, "attempt": 1, "time": "2026-11-23T20:00:00.000Z", "kind": "state", **state}
                 for i, state in enumerate(states, 1)]  # fmt: skip
        folder.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        pruned = {"params_before": 10, "params_after": 8, "nonzero_after": 8, "layers": [{"layer": 0, "channels": [1]}]}
        folder.write_results({"pruning": pruned | (changed if keeps else {}), "metrics": []})
        found.append(folder)
    mine, helper = found
    (helper.path / "rebuild.json").write_text(json.dumps({"v": 1, "of": mine.id}))
    (mine.path / "model_again.json").write_text(json.dumps({"v": 1, "run": helper.id}))
    helper.model_dir.mkdir()
    (helper.model_dir / "config.json").write_text("{}")
    return mine, helper


def test_a_helper_that_was_complete_when_the_app_died_is_handed_over_at_the_next_start(
    home: Path, wanda: Experiment
) -> None:
    mine, helper = handed(home, wanda)
    service = Service()
    try:
        assert (mine.model_dir / "config.json").is_file()
        assert not helper.path.exists()
        again = service.rebuilds.of(mine.id)
        assert again is not None
        assert again.weights == "alike"  # the units are the same; of the bits nobody knows
        assert list(service.runs()["id"]) == [mine.id]
    finally:
        service.close()


@pytest.mark.parametrize("changed", [{"params_after": 7}, {"layers": [{"layer": 0, "channels": [2]}]}])
def test_another_cut_is_not_passed_off_as_the_one_that_was_measured(
    home: Path, wanda: Experiment, changed: dict[str, Any]
) -> None:
    mine, helper = handed(home, wanda, **changed)
    service = Service()
    try:
        assert not mine.model_dir.exists()
        again = service.rebuilds.of(mine.id)
        assert again is not None
        assert again.apart
        assert again.run_id == helper.id
    finally:
        service.close()


def test_an_imported_run_keeps_to_its_numbers(home: Path, wanda: Experiment) -> None:
    mine, helper = handed(home, wanda)
    mine.study_file.write_text('{"study": "x", "imported": true}')
    service = Service()
    try:
        assert not mine.model_dir.exists()
        assert helper.model_dir.is_dir()
    finally:
        service.close()


def test_a_forged_order_reaches_no_other_folder(home: Path, wanda: Experiment, tmp_path: Path) -> None:
    _mine, helper = handed(home, wanda)
    (tmp_path / "home" / "experiment.yaml").write_text("name: x")
    (helper.path / "rebuild.json").write_text('{"of": "../../home"}')
    service = Service()
    try:
        assert helper.model_dir.is_dir()
        assert not (tmp_path / "home" / "model").exists()
    finally:
        service.close()


def test_what_made_no_model_has_none_to_make(home: Path, experiment: Any) -> None:
    service = Service(supervisor=False)
    try:
        mine, _ = handed(home, experiment())
        assert not service.rebuilds.missing(mine.id)
        with pytest.raises(InputError, match="never made one"):
            service.rebuilds.start(mine.id, by=Letters(home))
        with pytest.raises(EspalierError):
            service.rebuilds.start("20261123-200009-0a1b2c3d-none", by=Letters(home))
    finally:
        service.close()


@pytest.mark.slow
def test_the_command_line_makes_a_model_again(
    home: Path, wanda: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wanda.yaml"
    file.write_text(wanda.to_yaml())
    assert main(["run", str(file)]) == 0
    (folder,) = (path for path in (home / "runs").iterdir() if path.name[0] == "2")
    assert not (folder / "model").exists()
    capsys.readouterr()
    assert main(["rebuild", folder.name[:20]]) == 0
    assert "bit for bit the same" in capsys.readouterr().out
    assert (folder / "model" / "config.json").is_file()
    assert main(["rebuild", folder.name]) == 2
