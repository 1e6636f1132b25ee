"""Corpora, and the windows cut from them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core.data import corpora, texts
from core.errors import DataError, UnknownNameError
from core.experiment import Calibration, PerplexityCorpus, RecoveryData
from core.files import write_atomic

TEXT = "".join(chr(33 + i % 90) for i in range(1000))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "story.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture
def stream(tiny_tokenizer: Any) -> list[int]:
    ids: list[int] = tiny_tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    return ids


def test_every_corpus_knows_its_held_out_split_and_only_passages_needs_no_network() -> None:
    assert [info.name for info in corpora.corpora()] == ["passages", "wikitext2", "wikitext2-joined", "ptb", "c4"]
    assert [info.name for info in corpora.corpora() if info.offline] == ["passages"]
    for info in corpora.corpora():
        assert info.heldout in info.splits
        assert corpora.resolve_split(info.name, "heldout") == info.heldout
        assert corpora.resolve_split(info.name, "train") == "train"


def test_evaluation_windows_are_the_text_cut_into_equal_pieces(file: str, stream: list, tiny_tokenizer: Any) -> None:
    windows = corpora.evaluation_windows(PerplexityCorpus(path=file, window=64), tiny_tokenizer())
    assert windows.tokens.shape == (1000 // 64, 64)
    assert windows.tokens.flatten().tolist() == stream[: 15 * 64]
    assert windows.info["tokens"] == 15 * 63
    assert windows.info["corpus"] == "story.txt"
    assert windows.info["file_sha256"] == texts.sha256(TEXT.encode())


def test_with_bos_each_window_begins_with_it_and_no_text_is_lost(file: str, stream: list, tiny_tokenizer: Any) -> None:
    windows = corpora.evaluation_windows(PerplexityCorpus(path=file, window=64, bos=True), tiny_tokenizer())
    assert windows.tokens.shape == (1000 // 63, 64)
    assert windows.tokens[:, 0].tolist() == [1] * 15
    assert windows.tokens[:, 1:].flatten().tolist() == stream[: 15 * 63]


def test_max_tokens_keeps_the_first_whole_windows(file: str, stream: list, tiny_tokenizer: Any) -> None:
    for limit, count in ((130, 2), (128, 2), (127, 1), (10, 1), (10_000, 15)):
        choice = PerplexityCorpus(path=file, window=64, max_tokens=limit)
        windows = corpora.evaluation_windows(choice, tiny_tokenizer())
        assert windows.tokens.flatten().tolist() == stream[: count * 64]
        assert windows.info["windows"] == count


def test_calibration_windows_are_pieces_of_the_text_and_the_same_for_the_same_seed(
    file: str, stream: list, tiny_tokenizer: Any
) -> None:
    calibration = Calibration(path=file, samples=20, length=50)
    first, again, other = (corpora.calibration_windows(calibration, tiny_tokenizer(), seed) for seed in (3, 3, 4))
    assert first.shape == (20, 50)
    assert first.dtype == torch.int64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    pieces = {tuple(stream[start : start + 50]) for start in range(951)}
    assert {tuple(row) for row in first.tolist()} <= pieces
    assert len({tuple(row) for row in first.tolist()}) > 10


def test_a_calibrations_own_seed_counts_before_the_experiments(file: str, tiny_tokenizer: Any) -> None:
    own = Calibration(path=file, samples=4, length=50, seed=7)
    free = Calibration(path=file, samples=4, length=50)
    tokenizer = tiny_tokenizer()
    assert torch.equal(corpora.calibration_windows(own, tokenizer, 0), corpora.calibration_windows(free, tokenizer, 7))


def test_a_window_as_long_as_the_text_is_the_text_and_a_longer_one_an_error(
    file: str, stream: list, tiny_tokenizer: Any
) -> None:
    whole = corpora.calibration_windows(Calibration(path=file, samples=2, length=1000), tiny_tokenizer(), 0)
    assert whole.tolist() == [stream, stream]
    with pytest.raises(DataError, match=r"story\.txt has 1000 tokens, fewer than one calibration window of 1001"):
        corpora.calibration_windows(Calibration(path=file, length=1001), tiny_tokenizer(), 0)
    with pytest.raises(DataError, match=r"story\.txt has 1000 tokens, fewer than one window of 1001"):
        corpora.evaluation_windows(PerplexityCorpus(path=file, window=1001), tiny_tokenizer())


def test_passages_windows_are_reproducible_and_held_out_text_is_never_in_calibration(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    calibration = corpora.calibration_windows(Calibration(samples=8, length=64), tokenizer, 0)
    windows = corpora.evaluation_windows(PerplexityCorpus(window=64), tokenizer)
    assert windows.info["corpus"] == "passages"
    assert windows.info["split"] == "heldout"
    letters = {i: chr(0x100 + i) for i in range(96)}  # ids as letters, so that windows can be searched for
    vocabulary = tokenizer.get_vocab()
    train, heldout = (
        "".join(letters[vocabulary.get(c, tokenizer.unk_token_id)] for c in texts.passages(split))
        for split in ("train", "heldout")
    )
    pieces = ["".join(letters[i] for i in row) for row in calibration.tolist()]
    assert all(piece in train and piece not in heldout for piece in pieces)
    again = corpora.evaluation_windows(PerplexityCorpus(window=64), tokenizer)
    assert again.info == windows.info


def test_an_unknown_corpus_or_split_names_what_there_is() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'wikitext2'"):
        corpora.resolve_split("wikitxt2", "test")
    with pytest.raises(UnknownNameError, match="heldout, train, validation"):
        corpora.resolve_split("c4", "test")


def test_a_check_finds_what_cannot_be_had_before_a_run(file: str, tmp_path: Path) -> None:
    assert corpora.check_corpus(PerplexityCorpus(), "evaluation.perplexity.0") == []
    assert corpora.check_corpus(PerplexityCorpus(path=file), "f") == []
    for choice, message in (
        (PerplexityCorpus(corpus="wikitext2"), "offline"),
        (PerplexityCorpus(corpus="nonsense"), "no text corpus 'nonsense'"),
        (PerplexityCorpus(split="tests"), "split of the corpus passages"),
        (PerplexityCorpus(path=str(tmp_path / "gone.txt")), "cannot be read"),
    ):
        (problem,) = corpora.check_corpus(choice, "evaluation.perplexity.0")
        assert message in str(problem)
        assert problem.field == "evaluation.perplexity.0"
        assert problem.advice
    write_atomic(texts.hub_file("wikitext2", "test"), b"kept from a day with a network")
    assert corpora.check_corpus(PerplexityCorpus(corpus="wikitext2"), "f") == []


@pytest.mark.parametrize(
    ("calibration", "evaluation", "said"),
    [
        ({"corpus": "passages"}, {"corpus": "passages"}, ""),
        (
            {"corpus": "passages", "split": "heldout"},
            {"corpus": "passages"},
            "(heldout), the text that calibration",
        ),
        ({"corpus": "wikitext2"}, {"corpus": "wikitext2"}, ""),
        (
            {"corpus": "wikitext2", "split": "test"},
            {"corpus": "wikitext2-joined"},
            "the text that calibration read",
        ),
        ({"corpus": "passages"}, {"corpus": "wikitext2"}, "both come from Wikipedia"),
        ({"corpus": "c4"}, {"corpus": "wikitext2"}, ""),
        ({"path": "/a/x.txt"}, {"path": "/a/../a/x.txt"}, "x.txt, the file that calibration read"),
        ({"path": "/a/x.txt"}, {"path": "/a/y.txt"}, ""),
        ({"path": "/a/x.txt"}, {"corpus": "passages"}, ""),
    ],
)
def test_leakage_is_said(calibration: dict, evaluation: dict, said: str) -> None:
    sentence = corpora.leakage(Calibration(**calibration), PerplexityCorpus(**evaluation))
    assert said in sentence
    assert bool(said) == bool(sentence)


@pytest.mark.parametrize(
    ("data", "evaluation", "said"),
    [
        ({}, {"corpus": "passages"}, ""),  # learned from the part for training, judged on the part held out
        ({}, {"corpus": "passages", "split": "train"}, "passages (train), the text that recovery learned from"),
        ({}, {"corpus": "wikitext2"}, "Recovery (passages) and perplexity (wikitext2) both come from Wikipedia"),
        ({"corpus": "wikitext2"}, {"corpus": "wikitext2-joined", "split": "train"}, "the text that recovery learned"),
        ({"corpus": "alpaca-cleaned", "format": "instructions"}, {"corpus": "wikitext2"}, ""),
        ({"corpus": "generated"}, {"corpus": "passages"}, ""),
        ({"path": "/a/x.jsonl"}, {"path": "/a/../a/x.jsonl"}, "x.jsonl, the file that recovery learned from"),
    ],
)
def test_leakage_of_what_recovery_learned_from_is_said(data: dict, evaluation: dict, said: str) -> None:
    sentence = corpora.training_leakage(RecoveryData(**data), PerplexityCorpus(**evaluation))
    assert said in sentence
    assert bool(said) == bool(sentence)


def test_smollm2_tokenises_wiki_test_raw_to_303415_tokens(test_data: Path, smollm2: Any) -> None:
    path = str(test_data / "wikitext2" / "wiki.test.raw")
    whole = corpora.evaluation_windows(PerplexityCorpus(path=path, window=8), smollm2.tokenizer)
    assert whole.tokens.shape == (303_415 // 8, 8)
    stored = corpora.evaluation_windows(PerplexityCorpus(path=path, window=2048), smollm2.tokenizer)
    assert stored.tokens.shape == (303_415 // 2048, 2048)
