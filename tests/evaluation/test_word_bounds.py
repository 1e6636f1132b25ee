"""Texts cut where words stand alone have the tokens of the whole; where that is not certain, nothing is cut."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from core.evaluation.word_bounds import _LLAMA3, _QWEN2, separable, words_stand_alone

TEXT = [
    "the cat's 123 mats, (and) its\n\nhats…  don't  “fit” — 日本語 naïve\t",
    "return x_1 == 'a';  # 42\r\n  pass",
] * 20
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior)


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
EXACT = {
    "gpt2": GPT2,
    "digits, gpt2": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "llama 3": pre_tokenizers.Sequence([split(_LLAMA3), BYTES]),
    "qwen 2": pre_tokenizers.Sequence([split(_QWEN2), BYTES]),
}


def trained(pre_tokenizer: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def fast(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.fixture(scope="module", params=list(EXACT))
def exact(request: pytest.FixtureRequest) -> Any:
    return fast(trained(EXACT[request.param]))


PIECES = st.text(alphabet=" \n\t\r.,'’s_日́1aé\u200b\u3000\x1c<>", max_size=8)


@given(PIECES, PIECES)
@example("don", " 't")
@example("(", " )")
@example("a\u3000", " b")
@example("1", " 2")
@example("<s", " >")
def test_a_cut_before_a_space_and_a_word_changes_no_token(exact: Any, context: str, rest: str) -> None:
    assert words_stand_alone(exact)
    continuation = f" {rest}"
    if separable(context, continuation):
        whole = exact(context + continuation)["input_ids"]
        assert whole == exact(context)["input_ids"] + exact(continuation, add_special_tokens=False)["input_ids"]


def test_the_built_in_models_words_stand_alone(smollm2: Any) -> None:
    assert words_stand_alone(smollm2.tokenizer)


@pytest.mark.parametrize(
    ("context", "continuation"),
    [("a ", " b"), ("a\n", " b"), ("", " b"), ("a", "b"), ("a", "  b"), ("a", " "), ("a", ""), ("a", "\nb")],
)
def test_other_cuts_are_not_made(context: str, continuation: str) -> None:
    assert not separable(context, continuation)


def changed(**parts: Any) -> Any:
    tokenizer = trained(GPT2)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def with_token(content: str, **how: bool) -> Tokenizer:
    tokenizer = trained(GPT2)
    tokenizer.add_tokens([AddedToken(content, **how)])
    return tokenizer


END = processors.TemplateProcessing(single="$A <s>", special_tokens=[("<s>", 0)])


@pytest.mark.parametrize(
    "tokenizer",
    [
        pytest.param(lambda: trained(pre_tokenizers.Metaspace()), id="spaces are letters"),
        pytest.param(lambda: trained(split(r".{3}")), id="an unknown expression"),
        pytest.param(lambda: trained(split(_LLAMA3, "merged_with_next")), id="what the expression finds is merged"),
        pytest.param(
            lambda: trained(pre_tokenizers.Sequence([GPT2, pre_tokenizers.Metaspace()])), id="an unknown step"
        ),
        pytest.param(lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)), id="a space is added"),
        pytest.param(lambda: changed(normalizer=normalizers.Strip()), id="spaces are stripped"),
        pytest.param(lambda: changed(post_processor=END), id="an end token"),
        pytest.param(lambda: with_token("cat sat"), id="a token of two words"),
        pytest.param(lambda: with_token("<m>", rstrip=True), id="a token that takes the space"),
    ],
)
def test_what_is_not_certain_is_not_cut(tokenizer: Any) -> None:
    assert not words_stand_alone(fast(tokenizer()))


def test_tokenizers_of_other_kinds_are_not_cut(tiny_tokenizer: Any) -> None:
    assert not words_stand_alone(tiny_tokenizer())
    assert not words_stand_alone(object())
