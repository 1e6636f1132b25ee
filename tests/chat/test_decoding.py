"""The token loop against transformers' own generate(), a naive sampler, and hand-made token texts."""

from typing import Any

import pytest
import torch

from core.chat import decoding
from core.chat.decoding import CHUNK, LIKELIEST, Answer, Kept, TextStream, Until, choose, encode
from core.chat.protocol import Message, Sampling
from core.errors import InputError, NumericalError


def answer(model: Any, tokenizer: Any, ids: list[int], kept: Kept | None = None, **sampling: Any) -> tuple[Answer, str]:
    made = Answer(model, tokenizer, ids, Sampling(**sampling), kept or Kept(), model.config.max_position_embeddings)
    with torch.inference_mode():
        return made, "".join(text or "" for text in made.steps())


@pytest.fixture
def pair(tiny_llama: Any, tiny_tokenizer: Any) -> tuple[Any, Any]:
    return tiny_llama(max_position_embeddings=256, eos_token_id=None), tiny_tokenizer()


@pytest.mark.parametrize("length", [5, CHUNK["cpu"], CHUNK["cpu"] + 1, 2 * CHUNK["cpu"] + 7])
def test_greedy_text_equals_generate_for_prompts_within_and_beyond_a_chunk(pair: Any, length: int) -> None:
    model, tokenizer = pair
    ids = torch.randint(4, 96, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with torch.no_grad():
        output = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, length), max_new_tokens=20, do_sample=False
        )
    expected = [token for token in output[0, length:].tolist() if token != tokenizer.eos_token_id]
    made, text = answer(model, tokenizer, ids, max_tokens=20)
    assert text == tokenizer.decode(expected, skip_special_tokens=True)
    assert made.prompt_tokens == length


def test_a_kept_cache_gives_the_same_text_as_starting_over_and_computes_only_what_is_new(pair: Any) -> None:
    model, tokenizer = pair
    kept = Kept()
    first = list(range(10, 50))
    made, _ = answer(model, tokenizer, first, kept, max_tokens=12)
    assert made.tokens == 12
    with torch.no_grad():
        said = model.generate(
            torch.tensor([first]), attention_mask=torch.ones(1, 40), max_new_tokens=12, do_sample=False
        )
    second = [*said[0].tolist(), 60, 61, 62]
    reused, with_cache = answer(model, tokenizer, second, kept, max_tokens=12)
    fresh, without = answer(model, tokenizer, second, max_tokens=12)
    assert with_cache == without
    assert fresh.reused_tokens == 0
    assert reused.reused_tokens == len(first) + 11  # the last token said was never fed to the model


def test_a_cache_of_another_conversation_is_cut_back_to_what_they_share(pair: Any) -> None:
    model, tokenizer = pair
    kept = Kept()
    answer(model, tokenizer, [*range(10, 40), 70, 71, 72], kept, max_tokens=5)
    other = [*range(10, 40), 80, 81]
    reused, text = answer(model, tokenizer, other, kept, max_tokens=10)
    assert reused.reused_tokens == 30
    assert text == answer(model, tokenizer, other, max_tokens=10)[1]


def test_an_answer_stopped_between_two_steps_leaves_a_cache_that_is_whole(pair: Any) -> None:
    model, tokenizer = pair
    kept = Kept()
    ids = list(range(10, 50))
    made = Answer(model, tokenizer, ids, Sampling(max_tokens=30), kept, 256)
    with torch.inference_mode():
        steps = made.steps()
        for _ in range(6):
            next(steps)
        steps.close()  # type: ignore[attr-defined]
    assert len(kept.ids) == kept.cache.get_seq_length() >= len(ids)
    again, text = answer(model, tokenizer, [*ids, 90], kept, max_tokens=8)
    assert again.reused_tokens == len(ids)
    assert text == answer(model, tokenizer, [*ids, 90], max_tokens=8)[1]


def test_an_answer_ends_where_the_context_is_full_and_says_so(pair: Any) -> None:
    model, tokenizer = pair
    made = Answer(model, tokenizer, list(range(10, 30)), Sampling(max_tokens=100), Kept(), 25)
    with torch.inference_mode():
        list(made.steps())
    assert made.reason in ("context", "stop")
    assert made.tokens <= 5


def test_a_conversation_longer_than_the_context_is_refused_with_both_numbers(pair: Any) -> None:
    model, tokenizer = pair
    with pytest.raises(InputError, match="30 tokens long, but this model holds 25"):
        Answer(model, tokenizer, list(range(10, 40)), Sampling(), Kept(), 25)


def test_output_that_is_not_finite_is_an_error_and_not_a_token() -> None:
    with pytest.raises(NumericalError):
        choose(torch.tensor([0.0, float("nan")]), Sampling(), torch.Generator())


def test_sampling_draws_from_the_nucleus_with_the_softmax_frequencies() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, -1.0])
    sampling = Sampling(temperature=1.0, top_p=0.95)
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([choose(logits, sampling, generator) for _ in range(4000)])
    probabilities = torch.softmax(logits, 0)
    assert probabilities[[1, 2]].sum() < 0.95 < probabilities[[0, 1, 2]].sum()  # so the nucleus is 1, 2, 0
    expected = probabilities / probabilities[:3].sum()
    frequencies = torch.bincount(draws, minlength=4) / 4000
    assert frequencies[3] == 0
    assert torch.allclose(frequencies[:3], expected[:3], atol=0.03)


def test_the_smallest_nucleus_is_the_likeliest_token() -> None:
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=2.0, top_p=0.01)
    assert {choose(torch.tensor([0.1, 0.2, 0.3]), sampling, generator) for _ in range(50)} == {2}


def drawn_from_all(logits: torch.Tensor, sampling: Sampling, drawn: float) -> int:
    """The nucleus over the whole vocabulary, in plain Python: by falling probability, then by id."""
    probabilities = torch.softmax(logits.float() / sampling.temperature, 0).double().tolist()
    kept, mass = [], 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: (-probabilities[token], token)):
        kept.append(token)
        mass += probabilities[token]
        if sampling.top_p < 1 and mass >= sampling.top_p:
            break
    reached = 0.0
    for token in kept:
        reached += probabilities[token]
        if reached > drawn * mass:
            return token
    return kept[-1]


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 8.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
def test_a_large_vocabulary_is_drawn_from_as_if_all_of_it_were_sorted(spread: float, top_p: float) -> None:
    letters = torch.Generator().manual_seed(int(10 * spread))
    sampling = Sampling(temperature=0.8, top_p=top_p)
    for seed in range(6):
        logits = (spread * torch.randn(3000, generator=letters)).bfloat16()  # of which many are equal
        drawn = float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        token = choose(logits, sampling, torch.Generator().manual_seed(seed))
        assert token == drawn_from_all(logits, sampling, drawn)


@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_a_vocabulary_is_sorted_whole_only_where_it_must_be(monkeypatch: pytest.MonkeyPatch, top_p: float) -> None:
    counts: list[int] = []
    draw = decoding._draw

    def counted(probabilities: torch.Tensor, top_p: float, drawn: torch.Tensor, count: int) -> Any:
        counts.append(count)
        return draw(probabilities, top_p, drawn, count)

    monkeypatch.setattr(decoding, "_draw", counted)
    sampling, letters = Sampling(temperature=1.0, top_p=top_p), torch.Generator().manual_seed(0)
    choose(8 * torch.randn(50_000, generator=letters), sampling, torch.Generator().manual_seed(0))
    assert counts == [LIKELIEST]
    flat = {choose(torch.zeros(50_000), sampling, torch.Generator().manual_seed(seed)) for seed in range(20)}
    assert max(flat) > LIKELIEST
    assert counts == [LIKELIEST, *[LIKELIEST, 50_000] * 20]


def test_equal_seeds_draw_equal_tokens_and_others_do_not(pair: Any) -> None:
    model, tokenizer = pair
    ids = list(range(10, 30))
    texts = [answer(model, tokenizer, ids, max_tokens=30, temperature=1.5, seed=seed)[1] for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


class Bytes:
    """A tokenizer of single bytes: the hardest case for text in pieces."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_text_in_pieces_never_ends_inside_a_character_and_loses_nothing() -> None:
    text = "Grüße, 木の枝 🌿!"
    stream = TextStream(Bytes())
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join(pieces) + stream.flush() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_shown_as_such_when_the_answer_ends() -> None:
    stream = TextStream(Bytes())
    pieces = [stream.push(byte) for byte in "a🌿".encode()[:3]]
    assert pieces == ["a", "", ""]
    assert stream.flush() == "\ufffd"


def test_without_a_chat_template_the_texts_are_continued(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    messages = [Message(role="user", content="ab"), Message(role="assistant", content="c")]
    with_template = tokenizer.decode(encode(tokenizer, messages)).replace(" ", "")
    tokenizer.chat_template = None
    without = tokenizer.decode(encode(tokenizer, messages)).replace(" ", "")
    assert with_template == "user:abassistant:c"
    assert without.replace("<unk>", "") == "abc"


def test_a_template_that_refuses_says_so_in_its_own_words(tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('system role not supported') }}"
    with pytest.raises(InputError, match="system role not supported"):
        encode(tokenizer, [Message(role="system", content="x")])


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("text", "stops", "said", "reached"),
    [
        ("one two three", ["two"], "one ", True),
        ("ab abc", ["abc"], "ab ", True),
        ("aaab", ["aab"], "a", True),
        ("User: me\nUser: you", ["\nUser:", "you"], "User: me", True),
        ("ends with a begin", ["beginning"], "ends with a begin", False),
        ("nothing", [], "nothing", False),
    ],
)
def test_text_ends_before_the_first_stop_in_whatever_pieces_it_comes(
    text: str, stops: list[str], said: str, reached: bool, size: int
) -> None:
    until = Until(stops)
    parts = []
    for start in range(0, len(text), size):
        parts.append(until.push(text[start : start + size]))
        assert said.startswith("".join(parts))  # nothing of a stop was ever said
    parts.append(until.flush())
    assert "".join(parts) == said
    assert until.reached is reached


def test_an_answer_ends_at_a_stop_and_keeps_the_tokens_it_chose(pair: Any) -> None:
    model, tokenizer = pair
    ids = list(range(10, 50))
    whole, text = answer(model, tokenizer, ids, max_tokens=20)
    stop = text[7:9]
    stopped, said = answer(model, tokenizer, ids, max_tokens=20, stop=(stop,))
    assert said == text[: text.index(stop)]
    assert stopped.reason == "stop"
    assert stopped.ids == whole.ids[: len(stopped.ids)]
    assert stopped.tokens == len(stopped.ids) < 20
    layers, heads, width = 2, 2, 4
    assert whole.cache_bytes() == 2 * layers * heads * width * 4 * (40 + 19)  # the last token was never fed
