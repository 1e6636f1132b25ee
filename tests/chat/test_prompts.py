"""Prompts of one's own: kept, not twice, gone when removed, and a damaged file is no error."""

from pathlib import Path

import pytest

from core.chat.prompts import FILE, MOST, OFFERED, OwnPrompts
from core.errors import InputError


def test_prompts_are_kept_once_and_removed(tmp_path: Path) -> None:
    own = OwnPrompts(tmp_path / "chat")
    assert own.read() == []
    for text in ("  What is a scion?\n", "Wie heißt du?", "What is a scion?", OFFERED[0]):
        own.add(text)
    assert OwnPrompts(tmp_path / "chat").read() == ["What is a scion?", "Wie heißt du?"]
    own.remove("What is a scion?")
    own.remove("never there")
    assert own.read() == ["Wie heißt du?"]


def test_what_is_no_prompt_and_one_too_many_are_refused(tmp_path: Path) -> None:
    own = OwnPrompts(tmp_path)
    for wrong in ("", "  \n", "x" * 20_001):
        with pytest.raises(InputError, match="cannot be saved"):
            own.add(wrong)
    for number in range(MOST):
        own.add(f"prompt {number}")
    with pytest.raises(InputError, match="saved already"):
        own.add("one more")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"prompts": 3}', '{"prompts": [1, "", "a"]}'])
def test_a_damaged_file_offers_what_can_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert OwnPrompts(tmp_path).read() == (["a"] if '"a"' in content else [])
