"""Perplexity against second opinions."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from core.data.corpora import evaluation_windows
from core.errors import Cancelled, NumericalError
from core.evaluation import forward
from core.evaluation.perplexity import perplexity
from core.experiment import PerplexityCorpus


def naive_nll(model: Any, row: torch.Tensor) -> float:
    """One token at a time, each predicted from everything before it."""
    total = 0.0
    with torch.inference_mode():
        for t in range(1, len(row)):
            probabilities = torch.softmax(model(input_ids=row[None, :t]).logits[0, -1].double(), 0)
            total -= math.log(probabilities[row[t]])
    return total / (len(row) - 1)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(96, (5, 12), generator=torch.Generator().manual_seed(1))


def test_it_is_the_exponential_of_the_mean_nll_of_tokens_two_to_last(tiny_llama: Any, tokens: torch.Tensor) -> None:
    model = tiny_llama()
    expected = [naive_nll(model, row) for row in tokens]
    result = perplexity(model, tokens)
    assert result.window_nll == pytest.approx(expected, abs=1e-5)
    assert result.value == pytest.approx(math.exp(sum(expected) / 5), rel=1e-5)
    assert (result.tokens, result.windows, result.dtype) == (55, 5, "float32")


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64, "auto"])
def test_batches_and_chunks_do_not_change_it(
    tiny_llama: Any, tokens: torch.Tensor, batch_size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    expected = perplexity(model, tokens, batch_size=3).window_nll
    monkeypatch.setitem(forward.LOGIT_BYTES, "cpu", 4 * 96 * 16)
    assert perplexity(model, tokens, batch_size=batch_size).window_nll == pytest.approx(expected, abs=1e-6)


def test_the_standard_error_is_the_delta_methods_over_windows(tiny_llama: Any, tokens: torch.Tensor) -> None:
    result = perplexity(tiny_llama(), tokens)
    nll = torch.tensor(result.window_nll, dtype=torch.float64)
    assert result.stderr == pytest.approx(result.value * float(nll.std()) / math.sqrt(5))
    assert perplexity(tiny_llama(), tokens[:1]).stderr is None


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(tiny_llama: Any, tokens: torch.Tensor) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert perplexity(model, tokens).value == pytest.approx(96)


def test_no_chunk_of_logits_is_larger_than_allowed(
    tiny_llama: Any, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(forward.LOGIT_BYTES, "cpu", 4 * 96 * 20)
    model, sizes = tiny_llama(), []
    perplexity(model, tokens[:, :4])  # the head is tried on four tokens first
    model.lm_head.register_forward_hook(lambda _m, _i, output: sizes.append(output.numel() // 96))
    perplexity(model, tokens, batch_size=5)
    assert max(sizes) <= 20
    assert sum(sizes) >= tokens.numel()


def overflowing(tiny_llama: Any, dtype: torch.dtype) -> Any:
    """A model whose activations pass 65,504, so that float16 gives nan."""
    model = tiny_llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(3e3)
        model.model.layers[0].mlp.down_proj.weight.mul_(3e3)
    return model.to(dtype)


def test_a_float16_model_that_overflows_is_measured_in_float32_and_stays_as_it_was(
    tiny_llama: Any, tokens: torch.Tensor
) -> None:
    model = overflowing(tiny_llama, torch.float16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = perplexity(model, tokens)
    assert result.dtype == "float32"
    assert result.value == pytest.approx(perplexity(model.float(), tokens).value)
    model.half()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nan_in_float32_is_an_error_and_not_a_number(tiny_llama: Any, tokens: torch.Tensor) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="no finite number in float32"):
        perplexity(model, tokens)


def test_progress_counts_windows_and_cancelling_stops_it(tiny_llama: Any, tokens: torch.Tensor) -> None:
    said: list[tuple[float, float, str]] = []
    perplexity(tiny_llama(), tokens, batch_size=2, progress=lambda *call: said.append(call))
    assert said[0] == (0, 5, "windows")
    assert said[-1] == (5, 5, "windows")

    def stop(done: float, _total: float, _unit: str) -> None:
        if done >= 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        perplexity(tiny_llama(), tokens, batch_size=2, progress=stop)


def test_the_stored_metric_holds_the_protocol(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the quick brown fox jumps over the lazy dog " * 5)
    windows = evaluation_windows(PerplexityCorpus(path=str(path), window=16, bos=True), tiny_tokenizer())
    metric = perplexity(tiny_llama(), windows).metric(windows, "pruned")
    assert (metric.task, metric.metric, metric.n) == ("perplexity/a.txt", "perplexity", len(windows.tokens))
    assert {"corpus", "window", "tokens", "bos", "file_sha256", "tokens_sha256", "dtype"} <= set(metric.protocol)


def test_smollm2_agrees_with_the_librarys_own_loss(smollm2: Any) -> None:
    windows = evaluation_windows(PerplexityCorpus(window=64, max_tokens=128), smollm2.tokenizer)
    with torch.inference_mode():
        expected = [float(smollm2.model(input_ids=row[None], labels=row[None]).loss) for row in windows.tokens]
    assert perplexity(smollm2.model, windows).window_nll == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_smollm2_has_the_published_perplexity_on_wiki_test_raw(smollm2: Any, test_data: Any) -> None:
    path = str(test_data / "wikitext2" / "wiki.test.raw")
    windows = evaluation_windows(PerplexityCorpus(path=path), smollm2.tokenizer)
    result = perplexity(smollm2.model, windows)
    assert result.windows == 592
    assert result.value == pytest.approx(29.97, abs=0.02)


def test_the_interval_is_a_bootstrap_over_windows_and_stands_beside_the_value(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    from scipy import stats

    windows = evaluation_windows(PerplexityCorpus(window=16, max_tokens=640), tiny_tokenizer())
    result = perplexity(tiny_llama(), windows)
    assert result.interval is not None
    nll = np.array(result.window_nll)
    expected = stats.bootstrap((nll,), np.mean, method="percentile", n_resamples=20_000, rng=0).confidence_interval
    assert np.log(result.interval) == pytest.approx(tuple(expected), abs=0.02 * float(nll.std()))
    assert perplexity(tiny_llama(), windows).interval == result.interval  # seeded
    metric = result.metric(windows, leakage="said")
    assert metric.details["interval"] == list(result.interval)
    assert metric.details["leakage"] == "said"
    assert "interval" not in metric.protocol
    assert perplexity(tiny_llama(), windows.tokens[:1]).interval is None


def test_a_perplexity_without_bound_has_no_interval(tiny_llama: Any) -> None:
    from core.evaluation.perplexity import interval

    assert interval([800.0, 900.0])[1] == math.inf


def test_its_windows_are_kept_as_rows(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    windows = evaluation_windows(PerplexityCorpus(window=16, max_tokens=64), tiny_tokenizer())
    result = perplexity(tiny_llama(), windows)
    rows = result.samples(windows)
    assert [row["score"] for row in rows] == result.window_nll
    assert {row["task"] for row in rows} == {"perplexity/passages"}
    assert {row["doc_hash"] for row in rows} == {f"{windows.info['tokens_sha256'][:16]}/4"}
    halves = evaluation_windows(PerplexityCorpus(window=32, max_tokens=64), tiny_tokenizer())
    assert halves.info["tokens_sha256"] == windows.info["tokens_sha256"]
    fewer = perplexity(tiny_llama(), halves).samples(halves)
    assert {row["doc_hash"] for row in fewer} == {f"{windows.info['tokens_sha256'][:16]}/2"}
