"""What can be learned from, and what is said where it cannot be had; no network is asked."""

from pathlib import Path
from typing import Any

import pytest

from core.experiment import Recovery
from core.recovery.offered import check_data, lessons


def problems(**data: Any) -> list[tuple[str, str]]:
    recovery = Recovery.model_validate({"kind": "lora", "data": data})
    return [(each.field, each.message) for each in check_data(recovery)]


def test_passages_and_the_dense_models_own_text_need_no_network() -> None:
    assert {each.name for each in lessons() if each.here} >= {"passages", "generated"}
    assert problems() == problems(corpus="passages") == problems(corpus="generated") == []


@pytest.mark.parametrize(
    ("data", "field", "said"),
    [
        ({"format": "instructions"}, "format", "passages is plain text, not instructions"),
        ({"corpus": "generated", "format": "chat"}, "format", "plain text"),
        ({"corpus": "generated", "path": "rows.txt"}, "corpus", "a file (rows.txt)"),
        ({"corpus": "alpaca-cleaned"}, "format", "rows of instruction"),
        ({"corpus": "alpaca-cleaned", "format": "instructions"}, "corpus", "work offline"),
        ({"corpus": "someone/chats", "format": "chat"}, "corpus", "work offline"),
        ({"corpus": "someone/chats"}, "corpus", "no text corpus"),
        ({"corpus": "wikitext2"}, "corpus", "work offline"),
    ],
)
def test_names_that_cannot_be_had_are_refused(
    data: dict[str, Any], field: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    ((where, message),) = problems(**data)
    assert where == f"recovery.data.{field}"
    assert said in message


def test_a_hub_set_that_was_fetched_before_is_taken_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "hub" / "datasets--yahma--alpaca-cleaned" / "snapshots").mkdir(parents=True)
    assert problems(corpus="alpaca-cleaned", format="instructions") == []


@pytest.mark.parametrize(
    ("name", "content", "format_", "said"),
    [
        ("rows.jsonl", '{"instruction": "a", "output": "b"}\n', "instructions", ""),
        ("rows.jsonl", '\n{"messages": [{"role": "user", "content": "a"}]}\n', "chat", ""),
        ("rows.jsonl", '{"text": "a"}\n', "text", ""),
        ("rows.txt", "Grüße", "text", ""),
        ("rows.jsonl", '{"instruction": "a"}\n', "instructions", "no text under `output`"),
        ("rows.jsonl", '{"text": "a"}\n', "chat", "no list `messages`"),
        ("rows.jsonl", "[1, 2]\n", "chat", "no JSON object"),
        ("rows.jsonl", "nonsense\n", "text", "no JSON object"),
        ("rows.txt", "words", "instructions", "no JSONL file"),
        ("rows.txt", " \n", "text", "is empty"),
        ("", "", "text", "is a folder"),
    ],
)
def test_a_file_is_looked_into_as_far_as_its_first_row(
    name: str, content: str, format_: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name:
        path.write_text(content, encoding="utf-8")
    found = problems(path=str(path), format=format_)
    assert [said in message for _, message in found] == ([True] if said else [])


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"\xff\xfe\x00words")
    ((_, message),) = problems(path=str(path))
    assert "no UTF-8" in message
