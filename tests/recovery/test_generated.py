"""Text that the dense model writes itself: seeded, kept, and cut where the model ends it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from core.errors import Cancelled, DataError
from core.experiment import Recovery
from core.recovery import generated as module
from core.recovery import recover
from core.recovery.generated import generated
from tests.conftest import TINY_FAMILIES

PROMPT = 8


@pytest.fixture(autouse=True)
def passages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passages in the tiny tokenizer's letters, one of them held out."""
    documents = {"one": ["abcdefghij" * 20], "two": ["klmnopqrst" * 20], "held": ["!" * 200]}
    monkeypatch.setattr(module.texts, "passage_documents", lambda: documents)
    monkeypatch.setattr(module.texts, "is_held_out", lambda name: name == "held")


def write(model: Any, tokenizer: Any, folder: Path, **changes: Any) -> list[list[int]]:
    how = {"fingerprint": "f", "documents": 6, "length": 24, "prompt": PROMPT, "seed": 3, **changes}
    return generated(model, tokenizer, folder=folder, **{"progress": lambda *_: None, **how})


def test_the_same_seed_writes_the_same_text_and_another_seed_another(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    first = write(model, tokenizer, tmp_path / "a")
    torch.rand(7)  # whatever else drew numbers meanwhile
    assert write(model, tokenizer, tmp_path / "b") == first
    assert write(model, tokenizer, tmp_path / "c", seed=4) != first
    assert len(first) == 6
    assert all(PROMPT < len(each) <= 24 for each in first)


def test_it_begins_with_passages_that_are_not_held_out(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    starts = {tokenizer.decode(each[:PROMPT]).replace(" ", "") for each in write(tiny_llama(), tokenizer, tmp_path)}
    assert starts <= {("abcdefghij" * 2)[:PROMPT], ("klmnopqrst" * 2)[:PROMPT]}


def test_a_longer_beginning_leaves_less_to_write(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    for given in (11, 12):
        steps: list[float] = []
        made = write(
            model, tokenizer, tmp_path, prompt=given, progress=lambda done, *_, steps=steps: steps.append(done)
        )
        starts = {tokenizer.decode(each[:given]).replace(" ", "") for each in made}
        assert starts <= {("abcdefghij" * 2)[:given], ("klmnopqrst" * 2)[:given]}
        assert len({tuple(each[: given + 1]) for each in made}) > 2  # from there on the model writes
        assert max(each for each in steps if each < 6) == pytest.approx(6 * (24 - given) / 24)
    with pytest.raises(DataError, match="No passage has 300 tokens"):
        write(model, tokenizer, tmp_path, prompt=300, length=1000)


@pytest.mark.parametrize(
    ("cutoff", "asked", "given"),
    [(24, {"prompt_tokens": 8}, 8), (24, {}, 12), (24, {"prompt_tokens": 500}, 12), (300, {}, 128)],
)
def test_what_was_learned_says_how_much_of_a_passage_each_document_begins_with(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, cutoff: int, asked: dict[str, int], given: int
) -> None:
    def silent(_task: str) -> Any:
        return lambda *_: None

    tokenizer = tiny_tokenizer()
    data = {"corpus": "generated", "max_samples": 4, **asked}
    choice = Recovery.model_validate({"kind": "distillation", "cutoff": cutoff, "data": data})
    found = recover._material(choice, tiny_llama(), tokenizer, "f", 3, tmp_path, silent)
    assert found.info["prompt_tokens"] == given
    passages = {("abcdefghij" * 20)[:given], ("klmnopqrst" * 20)[:given]}
    assert {tokenizer.decode(each[:given].tolist()).replace(" ", "") for each in found.train.ids} <= passages


def test_what_was_written_is_kept_and_read_again(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    first = write(model, tokenizer, tmp_path)
    model.generate = None
    assert write(model, tokenizer, tmp_path) == first
    assert len(list(tmp_path.glob("*.json"))) == 1
    with pytest.raises(TypeError):
        write(model, tokenizer, tmp_path, fingerprint="another model")


def test_whatever_decides_the_text_has_a_file_of_its_own(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    first = write(model, tokenizer, tmp_path)
    monkeypatch.setitem(module._AT_ONCE, "cpu", 4)  # a batch draws its random numbers together
    fewer = write(model, tokenizer, tmp_path)
    assert fewer != first
    monkeypatch.setattr(module.texts, "passage_documents", lambda: {"one": ["zyxwvutsrq" * 20]})
    other = write(model, tokenizer, tmp_path)
    assert other[0][:PROMPT] != first[0][:PROMPT]
    model.generation_config.eos_token_id = [2, *range(40, 60)]
    assert write(model, tokenizer, tmp_path) != other
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_a_document_ends_where_the_model_ends_it(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """By the tokenizer's end token or any that the model's settings name, and without the padding behind it."""
    assert module._cut([*range(10, 10 + PROMPT), 5, 2, 7], {2}, PROMPT) == [*range(10, 10 + PROMPT), 5]
    assert module._cut([2, *range(10, 10 + PROMPT), 5], {2}, PROMPT) == [2, *range(10, 10 + PROMPT), 5]
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    ends = range(4, 50)
    model.generation_config.eos_token_id = list(ends)
    made = write(model, tokenizer, tmp_path)
    assert not {*ends, tokenizer.pad_token_id, tokenizer.eos_token_id} & {i for each in made for i in each[PROMPT:]}
    assert len({len(each) for each in made}) > 1


def test_the_models_settings_for_answers_do_not_bend_what_it_writes(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    first = write(model, tokenizer, tmp_path / "a")
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_p = 0.9
    assert write(model, tokenizer, tmp_path / "b") == first
    assert model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("length", [10, 24])
def test_room_for_keys_and_values_changes_no_text(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, length: int
) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    first = write(model, tokenizer, tmp_path / "a", length=length)
    monkeypatch.setattr(module, "_cache", lambda *_: {})
    assert write(model, tokenizer, tmp_path / "b", length=length) == first


def test_a_llama_reads_what_it_holds_and_no_empty_room(tiny_llama: Any) -> None:
    model = tiny_llama()
    cache = module._cache(model, 24)["past_key_values"]
    ids = torch.arange(10, 34)[None]
    with torch.inference_mode():
        whole = model(input_ids=ids).logits
        parts = [model(input_ids=each, past_key_values=cache).logits for each in ids.split([16, *[1] * 8], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    assert {layer.keys.shape[2] for layer in cache.layers} == {24}
    assert {layer.keys.untyped_storage().nbytes() for layer in cache.layers} == {24 * 2 * 4 * 4}  # heads, size, bytes


def test_the_random_numbers_of_the_rest_of_the_run_are_not_touched(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    write(tiny_llama(0), tiny_tokenizer(), tmp_path)  # making the model seeds, too
    torch.manual_seed(11)
    assert torch.equal(torch.rand(3), expected)


def test_of_two_runs_that_want_the_same_text_one_writes_and_the_other_waits(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.02)
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    first = write(model, tokenizer, tmp_path)
    (file,) = tmp_path.glob("*.json")
    text = file.read_text()
    file.unlink()
    lock = FileLock(f"{file}.lock", thread_local=False)
    lock.acquire()
    told: list[float] = []

    def progress(done: float, _total: float, _unit: str) -> None:
        told.append(done)
        if len(told) == 3:  # the other one is done
            file.write_text(text)
            lock.release()

    model.generate = None
    assert write(model, tokenizer, tmp_path, progress=progress) == first
    assert len(told) == 3


def test_writing_that_was_killed_goes_on_behind_the_last_whole_batch(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._AT_ONCE, "cpu", 2)
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    whole = write(model, tokenizer, tmp_path / "whole")
    told: list[float] = []

    def progress(done: float, _total: float, _unit: str) -> None:
        told.append(done)
        if len(told) > 1 and 4 < done < 6:  # within the third batch of three
            raise Cancelled

    with pytest.raises(Cancelled):
        write(model, tokenizer, tmp_path / "killed", progress=progress)
    told[:] = [0.0]
    assert write(model, tokenizer, tmp_path / "killed", progress=lambda done, *_: told.append(done)) == whole
    assert told[1] > 4
    assert [each.suffix for each in (tmp_path / "killed").iterdir() if each.suffix != ".lock"] == [".json"]


def test_it_tells_of_every_token_and_can_be_cancelled_within_a_batch(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    told: list[float] = []

    def progress(done: float, total: float, _unit: str) -> None:
        told.append(done / total)
        if len(told) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        write(tiny_llama(), tiny_tokenizer(), tmp_path, progress=progress)
    assert told == sorted(told)
    assert told[-1] < 1
    assert not list(tmp_path.glob("*.json"))
