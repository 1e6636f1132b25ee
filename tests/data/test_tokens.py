"""Token streams and their cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.tokens import token_stream, tokenizer_fingerprint
from core.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Text:
    """A text that counts how often it is read."""

    def __init__(self, text: str) -> None:
        self.text, self.reads = text, 0

    def __call__(self) -> str:
        self.reads += 1
        return self.text


def test_a_text_is_tokenised_without_special_tokens(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    stream = token_stream("a", Text("abc"), tokenizer)
    assert stream.tolist() == [tokenizer.convert_tokens_to_ids(c) for c in "abc"]


def test_the_second_time_the_text_is_not_read(tiny_tokenizer: Any) -> None:
    text = Text("hello")
    first, second = (token_stream("a", text, tiny_tokenizer()) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert text.reads == 1


def test_another_text_or_another_tokenizer_is_not_taken_from_the_cache(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    token_stream("a", Text("hello"), tokenizer)
    assert len(token_stream("b", Text("hi"), tokenizer)) == 2
    tokenizer.add_tokens(["hello"])
    assert len(token_stream("a", Text("hello"), tokenizer)) == 1


def test_padding_and_truncation_do_not_change_a_tokenizers_fingerprint(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before


def test_a_damaged_cache_file_is_made_again(cache: Path, tiny_tokenizer: Any) -> None:
    text = Text("hello")
    stream = token_stream("a", text, tiny_tokenizer())
    (stored,) = (cache / "tokens").iterdir()
    stored.write_bytes(stored.read_bytes()[:-3])
    assert token_stream("a", text, tiny_tokenizer()).tolist() == stream.tolist()
    assert text.reads == 2
    assert np.load(stored, allow_pickle=False).tolist() == stream.tolist()


def test_a_text_without_tokens_is_an_error(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="gives no tokens"):
        token_stream("a", Text(""), tiny_tokenizer())
