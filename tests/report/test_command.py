"""`python -m core report`, and images of charts where Kaleido and a Chrome are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core import charts_images
from core.__main__ import main
from core.errors import InputError
from core.report.gallery import gallery
from core.reports import Reports
from core.storage.store import Store
from tests.report.conftest import Home

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def two(runs: Home) -> list[str]:
    return [runs.run("dense"), runs.run("taylor", {"method": "taylor", "ratio": 0.3, "layers": [4, 25]})]


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("html", {"mine.html", "mine-numbers.csv"}),
        ("latex", {"mine.tex", "references.bib", "mine-numbers.csv", "figures"}),
        ("markdown", {"mine.md", "mine-numbers.csv"}),
    ],
)
def test_each_format_is_written_under_the_name_that_was_given(
    two: list[str], form: str, names: set[str], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    asked = ["report", "--runs", *two, "--format", form, "--language", "de", "--out", str(out), "--name", "mine"]
    assert main(asked) == 0
    assert {path.name for path in out.iterdir()} - {"mine-figures", "figures"} == names - {"figures"}
    document = next(path for path in out.iterdir() if path.suffix in (".html", ".tex", ".md"))
    assert "Ergebnisse" in document.read_text()
    assert f"{document}, with" in capsys.readouterr().out


def test_it_works_while_another_process_has_the_store_open(two: list[str], home: Path, tmp_path: Path) -> None:
    store = Store.open(home)
    try:
        command = [sys.executable, "-m", "core", "report", "--runs", two[1], "--out", str(tmp_path / "out")]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "ESPALIER_HOME": str(home)}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not store.read_only
    finally:
        store.close()
    text = (tmp_path / "out" / "report.html").read_text()
    assert two[0] in text  # the dense run that it is held against comes along
    assert "<table" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runs", "2020"], "No run's id begins with '2020'"),
        (["--study", "nothing"], "no study 'nothing'"),
        (["--study", "gone.yaml"], "gone.yaml cannot be read"),
        (["--study", "quick-look"], "No run of the selection has numbers"),
        (["--runs", "2026", "--name", "../x"], "is no name for a file"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(options: list[str], said: str, capsys: Any) -> None:
    assert main(["report", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said(two: list[str], tmp_path: Path, capsys: Any) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["report", "--runs", two[0], "--out", str(blocked / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_gallery_keeps_masks_apart_and_names_its_files_plainly(
    everything: dict[str, str], reported: Reports
) -> None:
    chosen = [everything[name] for name in ("dense", "taylor 0.1", "taylor 0.2", "wanda 2:4", "wanda unstructured")]
    chosen += [everything[f"random {ratio} {seed}"] for ratio in (0.1, 0.2) for seed in (0, 1, 2)]
    found = gallery(reported.of_runs(chosen).points, most=2)
    assert {"1-size-cut", "1-size-mask", "1-ratio-cut", "2-ratio-mask"} <= set(found)
    assert "tasks" not in found  # too many runs for it
    assert "Zeros" in found["1-size-mask"].layout.title.text


@pytest.mark.parametrize("missing", ["kaleido", "chrome"])
def test_without_kaleido_or_chrome_a_sentence_says_what_to_do(
    missing: str, everything: dict[str, str], reported: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "kaleido":
        monkeypatch.setitem(sys.modules, "kaleido", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    else:
        monkeypatch.setattr(charts_images, "chrome", lambda: None)
    report = reported.of_runs(list(everything.values()))
    expected = "pip install kaleido" if missing == "kaleido" else "none is installed"
    assert expected in reported.why_no_images()
    with pytest.raises(InputError, match=expected):
        reported.charts(report, "png")


@pytest.mark.browser
@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium on this machine")
def test_charts_become_images_with_one_browser(everything: dict[str, str], reported: Reports) -> None:
    report = reported.of_runs([everything["dense"], everything["taylor 0.1"]])
    figures = dict(list(gallery(report.points, most=1).items())[:1])
    found = charts_images.images(figures, "png")
    assert list(found) == list(figures)
    assert all(content.startswith(b"\x89PNG\r\n") and len(content) > 10_000 for content in found.values())
