"""The weights of an opened run: kept or not while it waits, let go when it is over."""

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.errors import InputError, QueueError
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from core.service import Service
from pages._parts import theme

ROOT = Path(__file__).resolve().parent.parent.parent
WANDA = {"method": "wanda", "ratio": 0.5}


def opened(run_id: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "runs.py"), default_timeout=60)
    app.query_params["run"] = run_id
    app.run()
    assert not app.exception
    return app


def keys(app: AppTest) -> set[str]:
    return {str(button.key) for button in app.button}


def test_a_run_that_waits_is_told_to_keep_its_weights_and_not_to(service: Service) -> None:
    fields = {"pruning": {"method": "l1", "ratio": 0.3}, "evaluation": {"tasks": []}, "save_model": False}
    (run_id,) = service.submit([Experiment.parse(fields)])
    folder = RunDirectory.of(service.home / "runs", run_id)
    app = opened(run_id)
    assert app.toggle(key="runs_keep").value is False
    app.toggle(key="runs_keep").set_value(True).run()
    assert not app.exception
    assert folder.keeps_weights()
    assert opened(run_id).toggle(key="runs_keep").value is True  # also to the next visitor
    app.toggle(key="runs_keep").set_value(False).run()
    assert not folder.keeps_weights()
    with pytest.raises(QueueError, match="is not over"):
        service.weights.let_go(run_id)


def test_a_dense_run_has_no_weights_of_its_own(service: Service) -> None:
    (run_id,) = service.submit([Experiment.parse({"evaluation": {"tasks": []}})])
    assert not opened(run_id).toggle


def test_weights_of_a_run_that_is_over_go_after_a_question_and_can_be_made_again(
    service: Service, run_folder: Any
) -> None:
    run_id, without = run_folder("wanda", WANDA), run_folder("bare", WANDA)
    folder = RunDirectory.of(service.home / "runs", run_id)
    for place in (folder.model_dir, folder.recovered_dir):
        place.mkdir()
        (place / "model.safetensors").write_bytes(bytes(1_000_000))
    export = folder.path / "export" / "gguf-q8_0"
    export.mkdir(parents=True)
    assert "runs_let_go" not in keys(opened(without))
    app = opened(run_id)
    assert "runs_again" not in keys(app)
    app.button(key="runs_let_go").click().run()
    assert folder.model_dir.is_dir()  # asked first
    assert f"{theme.size(2_000_000)} on disk" in "".join(str(each.proto.body) for each in app.get("html"))
    app.button(key="runs_let_go_yes").click().run()
    assert not app.exception
    assert not folder.model_dir.exists()
    assert not folder.recovered_dir.exists()
    assert export.is_dir()
    assert {"runs_again"} <= keys(app)
    assert "runs_let_go" not in keys(app)
    with pytest.raises(InputError, match="nothing to let go"):
        service.weights.let_go(run_id)
    with pytest.raises(QueueError, match="is over"):
        service.weights.keep(run_id, True)


def test_weights_that_the_system_does_not_let_go_are_said_and_still_offered(
    service: Service, run_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = run_folder("wanda", WANDA)
    folder = RunDirectory.of(service.home / "runs", run_id)
    folder.model_dir.mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "model.safetensors"))

    monkeypatch.setattr("core.keeping.shutil.rmtree", refuse)
    app = opened(run_id)
    app.button(key="runs_let_go").click().run()
    app.button(key="runs_let_go_yes").click().run()
    assert not app.exception
    shown = "".join(str(each.proto.body) for each in app.get("html"))
    assert "could not be removed: Permission denied (model.safetensors)" in shown
    assert "runs_let_go" in keys(app)
