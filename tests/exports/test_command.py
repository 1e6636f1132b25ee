"""`python -m core export` in processes of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "core", "export", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


def test_a_model_becomes_a_gguf_and_a_folder(saved: Any, tmp_path: Path) -> None:
    source = saved(name="tiny")
    made = command("--model", str(source), "--to", "gguf", "--dtype", "q8_0", "--out", str(tmp_path / "out"))
    assert made.returncode == 0, made.stderr
    assert str(tmp_path / "out" / "tiny-Q8_0.gguf") in made.stdout
    assert "read again: 29 tensors" in made.stdout
    again = command("--model", str(source), "--to", "hf", "--out", str(tmp_path / "out"))
    assert again.returncode == 0, again.stderr
    assert "reloaded in a fresh process" in again.stdout
    assert (tmp_path / "out" / "config.json").is_file()
    assert not (tmp_path / "out" / "tiny-Q8_0.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "gguf"], "Give a RUN"),
        (["20261123", "--model", "x", "--to", "gguf"], "two things"),
        (["20261123", "--to", "gguf"], "There is no run"),
        (["--model", "x", "--to", "hf", "--stage", "pruned"], "--stage is of a run"),
        (["--model", "builtin:smollm2-135m-instruct", "--to", "hf", "--dtype", "q8_0"], "float32, float16, bfloat16"),
        (["--model", "/nowhere", "--to", "hf"], "/nowhere"),
        (["--model", "builtin:smollm2-135m-instruct", "--to", "hf", "--push", "a b"], "organisation/name"),
        (["--model", "builtin:smollm2-135m-instruct", "--to", "onnx"], "invalid choice"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments: list[str], said: str, home: Path) -> None:
    refused = command(*arguments)
    assert refused.returncode == 2, refused.stdout
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (home / "exports").exists()


def test_a_tokenizer_without_a_place_is_refused_and_leaves_nothing(tiny_folder: Any, tmp_path: Path) -> None:
    refused = command("--model", str(tiny_folder()), "--to", "gguf", "--out", str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "WordLevel" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_ends_with_1_and_says_where_the_export_is(saved: Any, tmp_path: Path) -> None:
    target = tmp_path / "out"
    failed = command("--model", str(saved()), "--to", "gguf", "--out", str(target), "--push", "me/x")
    assert failed.returncode == 1
    assert "HF_HUB_OFFLINE" in failed.stderr
    assert str(target) in failed.stderr
    assert list(target.glob("*.gguf"))
