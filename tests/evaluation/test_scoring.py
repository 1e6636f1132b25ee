"""Scores of token sequences against a loop that runs each sequence on its own through the stock forward pass."""

import random
from typing import Any

import pytest
import torch

from core.errors import Cancelled
from core.evaluation import forward, scoring
from core.evaluation.prefixes import Scored
from core.evaluation.scoring import Scorer

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]


def documents(seed: int = 0, count: int = 12, context: int = 14, choice: int = 7) -> list[Scored]:
    """Choices of documents that share their context, some also the beginning of the choice."""
    draw = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [draw.randrange(3, 96) for _ in range(n)]

    made = []
    for _ in range(count):
        shared, begun = tokens(draw.randint(2, context)), tokens(2)
        for number in range(draw.randint(2, 4)):
            own = (begun if number < 2 else []) + tokens(draw.randint(1, choice))
            made.append(Scored(shared + own, len(own)))
    draw.shuffle(made)
    return made


def alone(model: Any, sequences: list[Scored]) -> tuple[list[float], list[bool]]:
    """One by one, all logits, float64 log-softmax."""
    sums, greedy = [], []
    for tokens, last in sequences:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens[:-1]]), use_cache=False).logits[0, -last:].double()
        targets = torch.tensor(tokens[-last:])
        sums.append(float(logits.log_softmax(-1).gather(1, targets[:, None]).sum()))
        greedy.append(bool((logits.argmax(-1) == targets).all()))
    return sums, greedy


def check(model: Any, sequences: list[Scored], **how: Any) -> Scorer:
    scorer = Scorer(model, **how)
    found = scorer.score(sequences)
    sums, greedy = alone(model, sequences)
    assert found.log_likelihoods.tolist() == pytest.approx(sums, abs=1e-4)
    assert found.greedy.tolist() == greedy
    return scorer


def plain_tokens(sequences: list[Scored]) -> int:
    return sum(len(tokens) - 1 for tokens, _ in sequences)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_trees_give_the_answers_of_each_sequence_on_its_own(tiny_model: Any, model_type: str) -> None:
    sequences = documents()
    model = tiny_model(model_type)
    scorer = check(model, sequences, batch_size=3)
    assert scorer.tokens < 0.7 * plain_tokens(sequences)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
def test_eager_attention_gives_them_too(tiny_model: Any, model_type: str) -> None:
    model = tiny_model(model_type)
    model.set_attn_implementation("eager")
    check(model, documents(1))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_models_whose_layers_differ_in_size_are_scored_as_trees(tiny_model: Any, model_type: str) -> None:
    from core.models.loading import per_layer_class

    stock = tiny_model(model_type)
    config = {**stock.config.to_dict(), "model_type": model_type}
    heads, kv, width = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"))
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // heads
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    sizes = [(heads, kv, width - 8), (heads // kv, 1, width), (heads, kv, width - 16), (heads // kv, 1, 8)]
    config["espalier_layers"] = [dict(zip(names, each, strict=True)) for each in sizes]
    torch.manual_seed(1)
    cls = per_layer_class(config)
    model = cls(cls.config_class.from_dict(config)).eval()
    model.set_attn_implementation(stock.config._attn_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    sequences = documents(2)
    assert check(model, sequences, batch_size=4).tokens < 0.8 * plain_tokens(sequences)


def test_other_architectures_take_the_plain_path_without_branches() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    sequences = documents(3)
    scorer = check(model, sequences, batch_size=1)
    assert scorer.tokens == scoring.total_length(scoring.grow(sequences, share=False))


def test_a_family_that_scales_its_logits_is_scored_from_its_own_forward() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = GraniteForCausalLM(GraniteConfig(vocab_size=96, num_key_value_heads=1, logits_scaling=3.0, **sizes)).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 1)
    check(model, documents(4))


def test_longrope_does_not_let_long_rows_change_short_ones(tiny_model: Any) -> None:
    factors = {"short_factor": [1.0, 1.0], "long_factor": [3.0, 7.0]}
    model = tiny_model(
        "phi3",
        max_position_embeddings=64,
        original_max_position_embeddings=16,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "original_max_position_embeddings": 16,
            "factor": 4.0,
            **factors,
        },
    )
    sequences = documents(5, context=24)
    assert {len(tokens) - 1 > 16 for tokens, _ in sequences} == {True, False}
    check(model, sequences)


def test_chunks_of_the_head_hold_each_score_once(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forward.LOGIT_BYTES, "cpu", 4 * 96 * 16)
    check(tiny_model("llama"), documents(6))


def test_equal_highest_logits_have_one_argmax_as_in_torch(tiny_model: Any) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[50:] = model.lm_head.weight[:46]  # every one of the first 46 has a double
    sequences = [Scored([5, 6, 7, token], 1) for token in range(96)]
    _, greedy = alone(model, sequences)
    assert sum(greedy) == 1
    assert Scorer(model).score(sequences).greedy.tolist() == greedy


def test_passes_that_do_not_fit_are_halved_and_the_answers_stay(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sequences = tiny_model("qwen3"), documents(7)
    expected = Scorer(model).score(sequences)
    answer, sizes = Scorer._answer, []

    def short_of_memory(self: Scorer, rows: Any) -> Any:
        sizes.append(rows.tokens.size)
        if rows.tokens.size > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(self, rows)

    monkeypatch.setattr(Scorer, "_answer", short_of_memory)
    said: list[float] = []
    scorer = Scorer(model)
    found = scorer.score(sequences, lambda done, _total, _unit: said.append(done))
    assert sizes[0] > 60
    assert max(sizes[3:]) <= 60  # once found, the size is kept
    assert found.log_likelihoods.tolist() == pytest.approx(expected.log_likelihoods.tolist(), abs=1e-5)
    assert found.greedy.tolist() == expected.greedy.tolist()
    assert said == sorted(said)


def test_a_single_row_that_does_not_fit_is_an_error(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_self: Scorer, _rows: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Scorer, "_answer", never)
    with pytest.raises(torch.OutOfMemoryError):
        Scorer(tiny_model("llama")).score(documents(8))


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: Scorer, _rows: Any) -> Any:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Scorer, "_answer", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Scorer(tiny_model("llama")).score(documents(8))


def test_passes_are_smaller_where_little_memory_is_free(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = tiny_model("llama"), documents(9, count=40)
    sizes: list[int] = []
    answer = Scorer._answer

    def noted(self: Scorer, rows: Any) -> Any:
        sizes.append(rows.tokens.size)
        return answer(self, rows)

    monkeypatch.setattr(Scorer, "_answer", noted)
    Scorer(model).score(sequences)
    roomy, sizes[:] = max(sizes), []
    monkeypatch.setattr(scoring, "_free_bytes", lambda _device: 200_000)
    Scorer(model).score(sequences)
    assert max(sizes) < roomy / 2


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
def test_row_lengths_rounded_up_change_no_answer(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    monkeypatch.setitem(scoring._MULTIPLE, "cpu", 8)
    check(tiny_model(model_type), documents(12))


def test_bfloat16_differs_by_its_rounding_alone(tiny_model: Any) -> None:
    model, sequences = tiny_model("llama"), documents(13)
    exact = Scorer(model).score(sequences).log_likelihoods
    rounded = Scorer(model.bfloat16()).score(sequences).log_likelihoods
    assert 0 < abs(rounded / exact - 1).max() < 0.05


def test_rows_of_one_pass_are_of_nearly_one_length(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.ENOUGH_TOKENS, "cpu", 64)
    sequences = documents(10, count=300)
    scorer = Scorer(tiny_model("llama"))
    scorer.score(sequences)
    needed = scoring.total_length(scoring.grow(sequences))
    assert needed <= scorer.tokens <= 1.1 * needed


def test_a_cancelled_run_leaves_in_the_middle_of_a_pass(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_INTERVAL", 0.0)
    model = tiny_model("llama")

    def stop(done: float, _total: float, _unit: str) -> None:
        if done > 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        Scorer(model).score(documents(11), stop)
    assert not any(layer._forward_hooks for layer in model.model.layers)
