"""The model behind lm-eval against the stock class: the same tokens, the same answers, whatever is asked."""

from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import Cancelled
from core.evaluation.harness import WatchedLM, hurried_harness
from core.progress import silent

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away", "from", "them"]
PAIRS = [
    ("the quick brown", " fox"),
    ("the quick brown", " fox jumps over"),
    ("the quick brown", " fox runs"),
    ("the quick brown ", "dog"),
    ("the lazy dog", " sleeps"),
    ("the lazy cat", " sleeps"),
    ("", "a word on its own"),
    ("", "<s>begun with the prefix"),
    ("<s>the quick", " fox"),
    (" ".join(WORDS * 3), " and so on"),
    (" ".join(WORDS * 3), " and that was it"),
    ("x" * 61, "yz"),
    ("x" * 62, "yz"),
    ("x" * 63, "yz"),
    ("x" * 64, "yz"),
]


def requests(pairs: list[Any]) -> list[Any]:
    return [SimpleNamespace(args=pair, task_name="t") for pair in pairs]


def stock(model: Any, tokenizer: Any, **how: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", **how)


def ours(model: Any, tokenizer: Any, progress: Any = silent, batch_size: int | str = "auto") -> WatchedLM:
    return WatchedLM(model, tokenizer, batch_size=batch_size, progress=progress)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_answers_are_those_of_the_stock_class_for_every_family(
    tiny_model: Any, tiny_tokenizer: Any, model_type: str
) -> None:
    model = tiny_model(model_type)
    expected = stock(model, tiny_tokenizer()).loglikelihood(requests(PAIRS), disable_tqdm=True)
    found = ours(model, tiny_tokenizer()).loglikelihood(requests(PAIRS))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_continuation_that_the_model_itself_would_write_is_greedy(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    import torch

    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with torch.inference_mode():
        written = model.generate(
            torch.tensor([tokenizer("the quick")["input_ids"]]), max_new_tokens=4, do_sample=False, eos_token_id=95
        )
    continuation = tokenizer.decode(written[0, 9:]).replace(" ", "")
    assert tokenizer("the quick" + continuation)["input_ids"] == written[0].tolist()
    answers = ours(model, tokenizer).loglikelihood(
        requests([("the quick", continuation), ("the quick", continuation[:-1] + "~")])
    )
    assert [greedy for _, greedy in answers] == [True, False]


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_many_texts_at_once_give_the_tokens_of_one_at_a_time(
    smollm2: Any, monkeypatch: pytest.MonkeyPatch, add_bos: bool | None
) -> None:
    monkeypatch.setattr("core.evaluation.harness._TEXTS_AT_ONCE", 3)
    lm = ours(smollm2.model, smollm2.tokenizer)
    lm.add_bos_token = add_bos
    texts = ["Question: Why?\nAnswer:", " two  spaces", "naïve — 日本語", "<|endoftext|>begun", "", "a" * 300, "1 2 3 "]
    expected = {text: lm.tok_encode(text) for text in texts}
    assert lm._tokens_of(texts + texts) == expected
    monkeypatch.setattr(type(lm.tokenizer), "backend_tokenizer", None)  # a tokenizer in Python alone
    assert lm._tokens_of(texts) == expected


def test_real_text_is_split_into_context_and_continuation_as_stock_does(smollm2: Any) -> None:
    pairs = [
        ("Roof shingle removal: A man ", "is sitting."),
        ("Answer:", " yes"),
        ("new", "s"),
        ("", "Yes"),
        ("a\n\n", "b"),
    ]
    seen: list[Any] = []

    def note(found: list[Any], **_: Any) -> list[Any]:
        seen.append([(context, continuation) for _, context, continuation in found])
        return []

    for lm in (stock(smollm2.model, smollm2.tokenizer), ours(smollm2.model, smollm2.tokenizer)):
        lm._loglikelihood_tokens = note
        lm.loglikelihood(requests(pairs))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_rolling_log_likelihoods_are_those_of_the_stock_class(
    tiny_llama: Any, tiny_tokenizer: Any, batch_size: int | str
) -> None:
    model = tiny_llama()
    texts = [(" ".join(WORDS * 5),), ("short",), ("x" * 64,), ("x" * 65,)]  # longer than the model's 64 tokens, too
    expected = stock(model, tiny_tokenizer(), batch_size=1).loglikelihood_rolling(requests(texts), disable_tqdm=True)
    found = ours(model, tiny_tokenizer(), batch_size=batch_size).loglikelihood_rolling(requests(texts))
    assert found == pytest.approx(expected, abs=1e-2, rel=1e-5)


def test_what_cannot_be_scored_is_refused(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    lm = ours(tiny_llama(), tiny_tokenizer())
    with pytest.raises(ValueError, match="65 to score, of 64 at most"):
        lm.loglikelihood(requests([("a", "b" * 65)]))
    with pytest.raises(ValueError, match="0 to score"):
        lm.loglikelihood(requests([("a", "")]))


def test_a_run_can_stop_while_texts_are_tokenised(
    tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.evaluation.harness._TEXTS_AT_ONCE", 2)

    def stop(done: float, _total: float, unit: str) -> None:
        if unit == "prompts" and done > 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        ours(tiny_llama(), tiny_tokenizer(), stop).loglikelihood(requests(PAIRS))


def test_a_template_is_compiled_once_and_the_harness_is_left_as_it_was() -> None:
    import lm_eval.utils

    environment = lm_eval.utils.env
    with hurried_harness():
        first = environment.from_string("{{word}}!")
        assert environment.from_string("{{word}}!") is first
        assert [lm_eval.utils.apply_template("{{word}}!", {"word": word}) for word in ("a", "b")] == ["a!", "b!"]
    assert "from_string" not in vars(environment)
    assert environment.from_string("{{word}}!") is not first
