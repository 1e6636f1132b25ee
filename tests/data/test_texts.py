"""Texts behind the corpus names."""

from pathlib import Path

import pytest

from core.data import texts
from core.errors import DataError
from core.files import write_atomic


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def documents() -> dict[str, list[str]]:
    return texts.passage_documents()


def test_passages_are_803_squad_passages_of_48_articles_and_497_coqa_stories_each_once(documents: dict) -> None:
    squad = {name: found for name, found in documents.items() if name.startswith("squad:")}
    coqa = {name: found for name, found in documents.items() if name.startswith("coqa:")}
    assert (len(squad), sum(map(len, squad.values()))) == (48, 803)
    assert (len(coqa), sum(map(len, coqa.values()))) == (497, 497)
    every = [text for found in documents.values() for text in found]
    assert len(set(every)) == len(every)
    assert not any(text.startswith(("Title:", "Background:")) or "\nQuestion:" in text for text in every)


def test_held_out_passages_share_no_document_and_no_passage_with_those_for_calibration(documents: dict) -> None:
    train, heldout = texts.passages("train"), texts.passages("heldout")
    for name, found in documents.items():
        inside, outside = (heldout, train) if texts.is_held_out(name) else (train, heldout)
        for text in found:
            assert text in inside
            assert text not in outside
    runs = [{tuple(words[i : i + 13]) for i in range(len(words) - 12)} for words in (train.split(), heldout.split())]
    assert runs[0]
    assert not runs[0] & runs[1]
    assert 0.05 < len(heldout) / len(train) < 0.25


def test_the_split_is_the_same_on_every_machine() -> None:
    # First eight hexadecimal digits of `printf squad:Teacher | sha256sum`, and so on; held out if divisible by eight.
    assert texts.is_held_out("squad:Teacher")  # 37b56e48
    assert not texts.is_held_out("squad:Super_Bowl_50")  # cde83307
    assert texts.sha256(texts.passages("heldout").encode())[:16] == "20015a68f229d1e0"


def test_the_raw_wikitext_file_is_rebuilt_byte_for_byte_from_the_hubs_rows(test_data: Path) -> None:
    raw = (test_data / "wikitext2" / "wiki.test.raw").read_bytes()
    lines = raw.decode("utf-8").split("\n")[:-1]
    rows = [f"{line}\n" if line.strip() else "" for line in lines]  # what the hub's loader makes of the file
    rebuilt = texts.wikitext_raw(rows).encode("utf-8")
    assert rebuilt == raw
    assert texts.sha256(rebuilt) == texts.WIKITEXT2_TEST_SHA256


def test_a_hub_corpus_offline_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"wikitext2 \(test\) comes from a data hub.*offline\. Use `passages`"):
        texts.hub_text("wikitext2", "test")


def test_a_hub_corpus_that_was_fetched_once_is_read_from_the_cache() -> None:
    write_atomic(texts.hub_file("ptb", "test"), b"no it was n't black monday")
    assert texts.hub_text("ptb", "test") == "no it was n't black monday"


def test_a_text_file_is_read_as_it_is_line_ends_included(tmp_path: Path) -> None:
    file = tmp_path / "a.tokens"
    file.write_bytes(b" = A = \r\n\n b \n")
    assert texts.file_text(str(file), texts.file_bytes(str(file))) == " = A = \r\n\n b \n"


def test_a_jsonl_file_gives_its_text_fields_joined_by_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one\\ntwo", "id": 1}\n\n{"text": "three\u2028four"}\n', encoding="utf-8")
    assert texts.file_text(str(file), texts.file_bytes(str(file))) == "one\ntwo\n\nthree\u2028four"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"body": "two"}\n', r"Line 2 of .*a\.jsonl has no field `text`"),
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', r"Line 2 of .*a\.jsonl is no JSON"),
        ("a.jsonl", b'["one"]\n', r"Line 1 of .*a\.jsonl has no field `text`"),
        ("a.txt", b"caf\xe9", "is no UTF-8 text: byte 3 is 0xe9"),
        ("a.txt", b" \n", "is empty"),
    ],
)
def test_a_file_that_is_no_text_says_where_and_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts.file_text(str(file), texts.file_bytes(str(file)))


def test_a_file_that_is_missing_or_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        texts.file_bytes(str(tmp_path / "no.txt"))
    with pytest.raises(DataError, match="is a folder"):
        texts.file_bytes(str(tmp_path))
