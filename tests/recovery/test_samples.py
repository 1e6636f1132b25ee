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


@pytest.fixture
def spaced_tokenizer() -> Any:
    """As Llama's: every text that is tokenised by itself begins with a space of its own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", "▁", ":", "\n", *map(chr, range(97, 123))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    return fast


def test_an_answer_is_learned_in_the_tokens_that_follow_its_prompt_when_somebody_asks(
    spaced_tokenizer: Any, tmp_path: Path
) -> None:
    """The prompt as chat tokenises it, then the answer: no space between them that nobody wrote."""
    path = write(tmp_path / "rows.jsonl", [{"instruction": "add", "output": "three"}])
    made = material(RecoveryData(path=path, format="instructions"), spaced_tokenizer, length=64, validation=0, seed=0)
    question = [{"role": "user", "content": "add"}]
    prompt = spaced_tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    ids, learned = made.train.ids[0].tolist(), made.train.learned[0].tolist()
    assert ids[: len(prompt)] == prompt
    assert not any(learned[: len(prompt)])
    answer = [token for token, mine in zip(ids, learned, strict=True) if mine]
    assert spaced_tokenizer.convert_ids_to_tokens(answer) == [*"three", "</s>"]


THOUGHT = (  # an earlier answer loses its thought once there is a later one, as with Qwen3
    "{% for m in messages %}{{ m['role'] }}:"
    "{% if m['role'] == 'assistant' and loop.last %}??{% endif %}{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PROMPTED = (  # the prompt opens a thought that an answer in the data does not have
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:??{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "documents"),
    [
        (
            THOUGHT,
            [("user:hi;assistant:??yes;", "??yes;"), ("user:hi;assistant:yes;user:more;assistant:??no;", "??no;")],
        ),
        (PROMPTED, [("user:hi;assistant:yes;user:more;assistant:no;", "yes;no;")]),
    ],
)
def test_every_answer_is_learned_whatever_the_template_makes_of_earlier_ones(
    tiny_tokenizer: Any, tmp_path: Path, template: str, documents: list[tuple[str, str]]
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    turns = [("user", "hi"), ("assistant", "yes"), ("user", "more"), ("assistant", "no")]
    path = write(tmp_path / "rows.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}])
    made = material(RecoveryData(path=path, format="chat"), tokenizer, length=96, validation=0, seed=0)
    assert sorted(decoded(tokenizer, made.train)) == sorted(documents)


def test_a_row_that_the_template_refuses_is_named(tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    path = write(tmp_path / "rows.jsonl", [{"instruction": "add", "output": "three"}])
    with pytest.raises(DataError, match=r"Row 1 of rows.jsonl does not fit .* roles must alternate"):
        material(RecoveryData(path=path, format="instructions"), tokenizer, length=64, validation=0, seed=0)


def test_pieces_of_one_text_are_learned_or_judged_by_never_both(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": chr(97 + i) * 20} for i in range(10)]
    choice = RecoveryData(path=write(tmp_path / "rows.jsonl", rows), format="text")
    for seed in range(5):
        made = material(choice, tiny_tokenizer(), length=8, validation=0.2, seed=seed)
        assert made.validation is not None
        learned, judged = ({*each.ids[each.learned].tolist()} for each in (made.train, made.validation))
        assert (len(learned), len(judged)) == (8, 2)
        assert not learned & judged


def test_text_of_one_document_alone_is_split_into_its_pieces(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("abcdefgh" * 10)
    made = material(RecoveryData(path=str(path)), tiny_tokenizer(), length=8, validation=0.99, seed=0)
    assert (made.info["documents"], made.info["validation_documents"]) == (1, 9)


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


def test_a_line_separator_within_a_text_and_a_mark_at_the_start_of_the_file_end_no_row(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "ab\u2028cd"}, {"text": "ef\x85gh"}]
    path.write_text("\ufeff" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    made = material(RecoveryData(path=str(path)), tiny_tokenizer(), length=16, validation=0, seed=0)
    assert made.info["documents"] == 2


def test_a_row_that_is_no_utf8_is_named(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "abc"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"Line 2 of rows.jsonl is no UTF-8"):
        material(RecoveryData(path=str(path)), tiny_tokenizer(), length=16, validation=0, seed=0)


def test_an_instruction_set_of_the_hub_is_refused_offline(tiny_tokenizer: Any) -> None:
    choice = RecoveryData(corpus="alpaca-cleaned", format="instructions")
    with pytest.raises(DataError, match="alpaca-cleaned cannot be had"):
        material(choice, tiny_tokenizer(), length=32, validation=0, seed=0)
