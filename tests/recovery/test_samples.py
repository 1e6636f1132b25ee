"""Documents in tokens: what is learned, how rows are packed, and what bad files are answered with."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import DataError
from core.experiment import RecoveryData
from core.recovery.samples import Document, material, pack


def document(length: int, first: int = 10) -> Document:
    return Document(tuple(range(first, first + length)), (True,) * length)


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def decoded(tokenizer: Any, rows: Any) -> list[tuple[str, str]]:
    """(all text, learned text) of each packed document."""
    found = []
    for row in range(len(rows)):
        starts = [i for i, place in enumerate(rows.positions[row].tolist()) if place == 0] + [rows.ids.shape[1]]
        for start, stop in itertools.pairwise(starts):
            ids, learned = rows.ids[row, start:stop], rows.learned[row, start:stop]
            if bool(learned.any()):
                found.append((tokenizer.decode(ids).replace(" ", ""), tokenizer.decode(ids[learned]).replace(" ", "")))
    return found


def test_rows_hold_whole_documents_and_positions_start_again() -> None:
    rows = pack([document(5), document(4, 30), document(3, 50)], length=8, pad=0)
    assert rows.ids.tolist() == [[10, 11, 12, 13, 14, 50, 51, 52], [30, 31, 32, 33, 0, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert rows.learned.int().tolist() == [[0, 1, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 0, 0, 0, 0]]
    assert rows.tokens == 4 + 2 + 3


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_documents_in_one_row_do_not_see_each_other(tiny_model: Any, family: str) -> None:
    """What the model makes of a document is the same alone and behind others."""
    model = tiny_model(family)
    rows = pack([document(9), document(7, 40), document(6, 60)], length=24, pad=0)
    with torch.no_grad():
        packed = model.base_model(input_ids=rows.ids, position_ids=rows.positions, use_cache=False).last_hidden_state
        start = 0
        for alone in (document(9), document(7, 40), document(6, 60)):
            stop = start + len(alone.ids)
            own = model.base_model(input_ids=torch.tensor([alone.ids]), use_cache=False).last_hidden_state
            assert torch.allclose(packed[0, start:stop], own[0], atol=1e-5)
            start = stop


def test_the_answer_alone_is_learned_framed_by_the_chat_template(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    path = write(tmp_path / "rows.jsonl", [{"instruction": "add", "input": "12", "output": "three"}])
    made = material(RecoveryData(path=path, format="instructions"), tokenizer, length=64, validation=0, seed=0)
    ((whole, learned),) = decoded(tokenizer, made.train)
    assert whole.startswith("user:add")
    assert whole.endswith("assistant:three")
    assert learned.endswith("three")
    assert "add" not in learned
    assert "12" not in learned


def test_every_answer_of_a_chat_is_learned(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "more"), ("assistant", "no")]
    path = write(tmp_path / "rows.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}])
    made = material(RecoveryData(path=path, format="chat"), tokenizer, length=96, validation=0, seed=0)
    ((whole, learned),) = decoded(tokenizer, made.train)
    assert "user:hi" in whole
    assert "yes" in learned
    assert "no" in learned
    assert "more" not in learned


def test_without_a_template_headings_frame_it_and_the_end_token_is_learned(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    path = write(tmp_path / "rows.jsonl", [{"instruction": "add", "output": "three"}])
    made = material(RecoveryData(path=path, format="instructions"), tokenizer, length=96, validation=0, seed=0)
    learned = made.train.ids[made.train.learned]
    assert learned[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learned[:-1]).replace(" ", "") == "three"


def test_text_is_cut_into_pieces_and_split_by_document_with_the_seed(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": chr(97 + i) * 20} for i in range(10)]
    choice = RecoveryData(path=write(tmp_path / "rows.jsonl", rows), format="text")
    made = [material(choice, tiny_tokenizer(), length=8, validation=0.2, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(made[0].train.ids, made[1].train.ids)
    assert made[0].info == made[1].info
    assert made[0].info["sha256"] != made[2].info["sha256"]
    assert made[0].info["documents"] + made[0].info["validation_documents"] == 30
    assert made[0].validation is not None
    assert made[0].info["validation_documents"] == 6


def test_fewer_samples_can_be_asked_for(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "abcdef"}] * 10)
    made = material(RecoveryData(path=path, max_samples=4), tiny_tokenizer(), length=8, validation=0, seed=0)
    assert made.info["documents"] == 4
    assert made.validation is None


@pytest.mark.parametrize(
    ("text", "form", "said"),
    [
        ("{broken", "instructions", "Line 1"),
        ("[1]", "instructions", "no JSON object"),
        ('{"question": "a"}', "instructions", "`instruction`"),
        ('{"instruction": "a", "output": 3}', "instructions", "`output`"),
        ('{"messages": [{"role": "user"}]}', "chat", "`messages`"),
        ('{"body": "a"}', "text", "`text`"),
        ('{"instruction": "' + "a" * 99 + '", "output": "b"}', "instructions", "nothing to learn"),
    ],
)
def test_bad_files_are_answered_with_what_and_where(
    tiny_tokenizer: Any, tmp_path: Path, text: str, form: Any, said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(DataError, match=said):
        material(RecoveryData(path=str(path), format=form), tiny_tokenizer(), length=32, validation=0, seed=0)


def test_an_instruction_set_of_the_hub_is_refused_offline(tiny_tokenizer: Any) -> None:
    choice = RecoveryData(corpus="alpaca-cleaned", format="instructions")
    with pytest.raises(DataError, match="alpaca-cleaned cannot be had"):
        material(choice, tiny_tokenizer(), length=32, validation=0, seed=0)
