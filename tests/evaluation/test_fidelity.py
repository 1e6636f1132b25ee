"""Divergence from the dense model, against second opinions."""

from typing import Any

import pytest
import torch

from core.data.corpora import evaluation_windows
from core.errors import InputError, NumericalError
from core.evaluation import forward
from core.evaluation.fidelity import fidelity
from core.experiment import PerplexityCorpus


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(96, (4, 10), generator=torch.Generator().manual_seed(2))


def test_it_is_the_mean_divergence_and_agreement_over_positions_one_to_last_but_one(
    tiny_llama: Any, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, dense = tiny_llama(1), tiny_llama(2)
    divergences, agreements = [], []
    with torch.inference_mode():
        for row in tokens:
            p = torch.softmax(dense(input_ids=row[None]).logits[0].double(), -1)
            q = torch.softmax(pruned(input_ids=row[None]).logits[0].double(), -1)
            for t in range(9):
                divergences.append(float((p[t] * (p[t] / q[t]).log()).sum()))
                agreements.append(float(p[t].argmax() == q[t].argmax()))
    for chunk in (16, 1000):
        monkeypatch.setitem(forward.LOGIT_BYTES, "cpu", 4 * 96 * chunk)
        result = fidelity(pruned, dense, tokens, batch_size=3)
        assert result.kl == pytest.approx(sum(divergences) / 36, abs=1e-5)
        assert result.agreement == pytest.approx(sum(agreements) / 36)
        assert (result.tokens, result.windows) == (36, 4)
    means = torch.tensor(divergences, dtype=torch.float64).view(4, 9).mean(1)
    assert result.kl_stderr == pytest.approx(float(means.std()) / 2, abs=1e-5)


def test_a_model_agrees_with_itself(tiny_llama: Any, tokens: torch.Tensor) -> None:
    model = tiny_llama()
    result = fidelity(model, model, tokens)
    assert (result.kl, result.agreement) == (0.0, 1.0)


def test_divergence_has_a_direction(tiny_llama: Any, tokens: torch.Tensor) -> None:
    sharp, flat = tiny_llama(1, tie_word_embeddings=False), tiny_llama(1, tie_word_embeddings=False)
    with torch.no_grad():
        flat.lm_head.weight.mul_(0.01)
    there, back = fidelity(sharp, flat, tokens).kl, fidelity(flat, sharp, tokens).kl
    assert abs(there - back) > 0.02


def test_models_of_different_vocabularies_do_not_compare(tiny_llama: Any, tokens: torch.Tensor) -> None:
    with pytest.raises(InputError, match="96 and 97 tokens"):
        fidelity(tiny_llama(), tiny_llama(vocab_size=97), tokens)


def test_nan_is_an_error(tiny_llama: Any, tokens: torch.Tensor) -> None:
    broken = tiny_llama()
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    with pytest.raises(NumericalError, match="divergence"):
        fidelity(broken, tiny_llama(), tokens)


def test_a_float16_model_that_overflows_is_compared_in_float32(tiny_llama: Any, tokens: torch.Tensor) -> None:
    model = tiny_llama()
    with torch.no_grad():
        for name in ("up_proj", "down_proj"):
            getattr(model.model.layers[0].mlp, name).weight.mul_(3e3)
    half = model.half()
    result = fidelity(half, tiny_llama(), tokens)
    assert result.dtype == "float32"
    assert half.dtype == torch.float16


def test_metrics_name_the_corpus_and_the_direction(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    windows = evaluation_windows(PerplexityCorpus(window=16, max_tokens=64), tiny_tokenizer())
    kl, agreement = fidelity(tiny_llama(1), tiny_llama(2), windows).metrics(windows)
    assert (kl.task, kl.metric, agreement.metric) == ("fidelity/passages", "kl_per_token", "top1_agreement")
    assert kl.protocol["direction"] == "dense‖pruned"
    assert kl.n == agreement.n == 4
