"""What is typed into a page, stands in an address, or in a file, becomes no path that leads out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import roots
from core.errors import EspalierError, ExperimentError, InputError
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory, new_run_id
from core.service import Service

NAMES = [
    "..", "../..", "../../etc", "/etc/passwd", "a/b", "", ".", "x" * 300, "20261123-201854-1a2b3c4d-x7y9/../..",
    "20261123-201854-1a2b3c4d-x7y9\n", "20261123-201854-1a2b3c4d-x7y9\x00", "20261123-201854-1A2B3C4D-X7Y9", "~",
    "٢٠٢٦١١٢٣-201854-1a2b3c4d-x7y9", "%2e%2e", "CON", "20261123-201854-1a2b3c4d-x7y9 ", "<script>",
]  # fmt: skip


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    made = Service()
    made.pause()
    yield made
    made.close()


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder that pages may read from, and its neighbour."""
    open_, secret = tmp_path / "open", tmp_path / "openly-not"
    for folder in (open_, secret):
        folder.mkdir()
        (folder / "text.txt").write_text("text " * 100)
    monkeypatch.setenv("ESPALIER_ROOTS", str(open_))
    return open_, secret


@pytest.mark.parametrize("name", NAMES)
def test_no_text_of_an_address_becomes_a_run(service: Service, name: str) -> None:
    asked = (
        service.run_detail, service.log_tail, service.cancel, service.retry, service.delete, service.exports,
        service.export_choices, lambda run: service.start_export(run, "hf", ""), lambda run: service.pair(run, run),
    )  # fmt: skip
    for question in asked:
        with pytest.raises(InputError):
            question(name)


@pytest.mark.parametrize("name", ["../x", "/etc", "..", "a/../../b", "\x00", "gguf-../../x"])
def test_no_name_of_an_export_leads_out(service: Service, home: Path, name: str) -> None:
    run = RunDirectory(home / "runs" / new_run_id("0" * 16))
    run.write_experiment(Experiment())
    with pytest.raises(EspalierError):
        service.start_export(run.id, name, "float32")
    with pytest.raises(EspalierError):
        service.start_export(run.id, "gguf", name)
    service.cancel_export(run.id, name)  # nothing by that name runs
    assert [path.name for path in home.parent.iterdir() if path.name == "x"] == []


def test_an_export_that_says_it_lies_elsewhere_is_not_offered_for_download(service: Service, home: Path) -> None:
    run = RunDirectory(home / "runs" / new_run_id("0" * 16))
    run.write_experiment(Experiment())
    (run.path / "export").mkdir()
    for place, there in (("/etc/passwd", 0), ("../experiment.yaml", 0), (str(run.path / "export" / "m.gguf"), 1)):
        word = {"format": "gguf", "dtype": "q8_0", "state": "COMPLETE", "path": place, "bytes": 1}
        (run.path / "export" / "gguf-q8_0.json").write_text(json.dumps(word))
        (run.path / "export" / "m.gguf").write_bytes(b"x")
        assert len(service.exports(run.id)) == there, place


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "\x00", "<b>", "con\nfig"])
def test_no_name_of_a_study_leads_out(service: Service, home: Path, name: str) -> None:
    from core.study import Study

    before = {path for path in home.parent.rglob("*") if not path.is_relative_to(home)}
    try:
        service.studies.save(Study.parse({"name": name, "base": {}, "grid": {"seed": [1, 2]}}))
    except InputError:
        pass
    else:
        assert all(path.parent == home / "studies" for path in (home / "studies").iterdir())
    assert {path for path in home.parent.rglob("*") if not path.is_relative_to(home)} == before


# --- roots


def fields(data: dict[str, Any]) -> list[str]:
    return [problem.field for problem in roots.outside(Experiment.parse(data))]


def naming(path: str) -> dict[str, Any]:
    """An experiment that names the path wherever one can stand."""
    return {
        "pruning": {"method": "wanda", "ratio": 0.3, "calibration": {"path": path}},
        "recovery": {"kind": "lora", "data": {"path": path}},
        "evaluation": {"perplexity": ["passages", {"path": path}], "tasks": ["piqa", f"{path}.yaml"]},
    }


EVERYWHERE = ["pruning.calibration.path", "recovery.data.path", "evaluation.perplexity.1.path", "evaluation.tasks.1"]


def test_every_path_of_an_experiment_stays_under_the_roots(closed: tuple[Path, Path]) -> None:
    open_, secret = closed
    assert fields(naming(str(open_ / "text.txt"))) == []
    places = (
        secret / "text.txt",
        open_ / ".." / "openly-not" / "text.txt",
        "/etc/passwd",
        "../x",
        "~/.ssh/id",
        "/",
        "a\x00b",
    )
    for place in places:
        assert fields(naming(str(place))) == EVERYWHERE, place
    for name in (str(secret), "/etc", "~nobody", "..", "./x", "\x00"):
        assert fields({"model": {"name": name}}) == ["model.name"], name
    for name in ("builtin:smollm2-135m-instruct", "org/model", str(open_)):
        assert fields({"model": {"name": name}}) == [], name


def test_links_are_resolved_before_they_are_judged(closed: tuple[Path, Path]) -> None:
    open_, secret = closed
    (open_ / "file").symlink_to(secret / "text.txt")
    (open_ / "folder").symlink_to(secret)
    (open_ / "circle").symlink_to(open_ / "circle")
    (secret / "back").symlink_to(open_)
    assert fields(naming(str(open_ / "file"))) == [field for field in EVERYWHERE if field != "evaluation.tasks.1"]
    assert fields(naming(str(open_ / "folder" / "text.txt"))) == EVERYWHERE
    assert "recovery.data.path" in fields(naming(str(open_ / "circle"))) or not (open_ / "circle").exists()
    assert fields(naming(str(secret / "back" / "text.txt"))) == []


def test_a_folder_in_the_working_directory_that_looks_like_a_hub_id_is_a_path(
    closed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = closed
    (secret / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(secret)
    assert fields({"model": {"name": "org/model"}}) == ["model.name"]


def test_pages_neither_preview_nor_queue_what_lies_outside(service: Service, closed: tuple[Path, Path]) -> None:
    _, secret = closed
    asked = Experiment.parse(naming(str(secret / "text.txt")))
    shown = service.preview(asked)
    assert [problem.field for problem in shown.problems] == EVERYWHERE
    assert all("ESPALIER_ROOTS" in problem.advice for problem in shown.problems)
    with pytest.raises(ExperimentError, match="outside the folders"):
        service.submit([asked])
    with pytest.raises(ExperimentError, match="outside the folders"):
        service.architecture(str(secret))
    assert list((service.home / "runs").glob("2*")) == []


def test_without_a_setting_system_folders_are_outside_and_ones_own_inside(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESPALIER_ROOTS", raising=False)
    for place in ("/etc/passwd", "/proc/self/environ", "/dev/zero", "/var/log", "/", "/home", "/root/../etc"):
        assert not roots.inside(place), place
    for place in (home / "runs", Path.home() / "models", "/mnt/disk/model", "/workspace/x", "text.txt"):
        assert roots.inside(str(place)), place
    monkeypatch.setenv("ESPALIER_ROOTS", "/")
    assert roots.inside("/etc/passwd")
