"""`python -m core evaluate`: models that were made elsewhere, in the way of a run."""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import evaluate_command
from core.errors import ExperimentError, InputError
from core.experiment import SEVEN_TASKS, Experiment
from core.jobs.rundir import RunDirectory, list_runs
from core.jobs.states import State

ROOT = Path(__file__).resolve().parent.parent
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def call(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return subprocess.run(
            [sys.executable, "-m", "core", "evaluate", *arguments], cwd=cwd, capture_output=True, text=True,
            check=False, timeout=240,
        )  # fmt: skip

    return call


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(random.Random(0).choices("abcdefghij", k=30_000)))
    return path


def parse(*arguments: str) -> Experiment:
    parser = argparse.ArgumentParser()
    evaluate_command.add(parser.add_subparsers(), lambda _options: 0, lambda _command: None)
    return evaluate_command.experiment_of(parser.parse_args(["evaluate", *arguments]))


def test_what_is_left_out_is_the_experiments_default() -> None:
    made = parse("org/model")
    assert made.with_changes({"evaluation.fidelity": True}) == Experiment.parse({"model": {"name": "org/model"}})
    assert made.dense


def test_options_are_fields_of_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("x")
    texts = f"wikitext2,{tmp_path / 'own.txt'}"
    made = parse(
        "org/model", "--tasks", "piqa, mmlu,piqa", "--perplexity", texts, "--window", "64", "--max-tokens", "4096",
        "--limit", "20", "--shots", "3", "--chat-template", "--no-speed", "--quantised", "q4_0", "--revision", "abc",
        "--dtype", "bfloat16", "--trust-remote-code", "--device", "cpu", "--seed", "5", "--batch-size", "2",
        "--name", "mine",
    )  # fmt: skip
    evaluation = made.evaluation
    assert evaluation.tasks == ("piqa", "mmlu")
    assert [(text.corpus, text.path, text.window, text.max_tokens) for text in evaluation.perplexity] == [
        ("wikitext2", None, 64, 4096),
        (None, str(tmp_path / "own.txt"), 64, 4096),
    ]
    assert (evaluation.limit, evaluation.shots, evaluation.chat_template, evaluation.speed) == (20, 3, True, False)
    assert (evaluation.batch_size, evaluation.fidelity, made.seed, made.name) == (2, True, 5, "mine")
    model = made.model
    assert (model.revision, model.dtype, model.quantised, model.trust_remote_code) == ("abc", "bfloat16", "q4_0", True)


def test_nothing_and_the_seven_can_be_named() -> None:
    assert parse("m/m", "--tasks", "none", "--perplexity", "none").evaluation.perplexity == ()
    assert parse("m/m", "--tasks", "none").evaluation.tasks == ()
    assert parse("m/m", "--tasks", "seven,mmlu").evaluation.tasks == (*SEVEN_TASKS, "mmlu")
    assert parse("m/m", "--max-tokens", "64").evaluation.perplexity[0].max_tokens == 64


def test_folders_are_named_by_their_whole_path_and_runs_by_their_model(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert evaluate_command.model_name("there") == str(tmp_path / "there")
    assert evaluate_command.model_name("org/model") == "org/model"
    run = "20261123-201854-1a2b3c4d-x7y9"
    with pytest.raises(InputError, match="kept no model"):
        evaluate_command.model_name(run)
    (home / "runs" / run / "model").mkdir(parents=True)
    (home / "runs" / run / "model" / "config.json").write_text("{}")
    assert evaluate_command.model_name(run) == str(home / "runs" / run / "model")


def test_what_cannot_be_is_said_of_its_field() -> None:
    with pytest.raises(ExperimentError, match="limit"):
        parse("m/m", "--limit", "0")


def metrics_of(directory: RunDirectory) -> dict[tuple[str, str], float]:
    results = directory.results()
    assert results is not None
    return {(metric["task"], metric["metric"]): metric["value"] for metric in results["metrics"]}


def test_a_model_pruned_elsewhere_is_judged_into_the_same_store(
    command: Command, tmp_path: Path, text: Path, home: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """Half of each MLP cut away and a matrix half zero, by hand, saved by plain transformers."""
    import torch

    model = tiny_llama()
    with torch.no_grad():
        for layer in model.model.layers:
            mlp = layer.mlp
            mlp.gate_proj.weight = torch.nn.Parameter(mlp.gate_proj.weight[:24].clone())
            mlp.up_proj.weight = torch.nn.Parameter(mlp.up_proj.weight[:24].clone())
            mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :24].clone())
            layer.self_attn.q_proj.weight[::2] = 0
    model.config.intermediate_size = 24
    model.save_pretrained(tmp_path / "sheared")
    tiny_tokenizer().save_pretrained(tmp_path / "sheared")
    options = ["--perplexity", str(text), "--window", "16", "--max-tokens", "256", "--tasks", "none", "--no-speed"]
    result = command("sheared", *options, "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = list_runs(home / "runs")
    assert run.status().state is State.COMPLETE
    results = run.results()
    assert results is not None
    total = sum(parameter.numel() for parameter in model.parameters())
    zeros = sum(int((parameter == 0).sum()) for parameter in model.parameters())
    assert results["pruning"]["params_after"] == total
    assert results["pruning"]["nonzero_after"] == total - zeros
    assert f"{total - zeros:,} of them not zero" in result.stdout
    found = metrics_of(run)["perplexity/text.txt", "perplexity"]
    ids = torch.tensor([tiny_tokenizer()(text.read_text()[:256])["input_ids"][:256]]).reshape(-1, 16)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    assert found == pytest.approx(float(nll.exp()), rel=1e-4)


def test_a_folder_of_ours_with_sizes_per_layer_is_judged_without_running_its_code(
    command: Command, tmp_path: Path, text: Path, home: Path, tiny_config: Any, tiny_tokenizer: Any
) -> None:
    from transformers import LlamaConfig

    from core.models import saving
    from core.models.loading import per_layer_class

    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    rows = [dict(zip(names, sizes, strict=True)) for sizes in ((4, 2, 48), (2, 1, 20))]
    config = {**tiny_config(), "espalier_layers": rows}
    model = per_layer_class(config)(LlamaConfig(**config)).float().eval()
    folder = tmp_path / "uneven"
    saving.save(model, tiny_tokenizer(), folder)
    for code in folder.glob("*.py"):
        code.write_text("raise SystemExit('it ran')")
    options = ["--perplexity", str(text), "--window", "16", "--max-tokens", "256", "--tasks", "none", "--device", "cpu"]
    result = command(str(folder), *options)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = list_runs(home / "runs")
    found = metrics_of(run)
    assert found["perplexity/text.txt", "perplexity"] > 1
    assert found["speed", "macs"] > 0


def test_remote_code_is_refused_unless_ticked(command: Command, tmp_path: Path, tiny_folder: Any, home: Path) -> None:
    folder = tiny_folder()
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('it ran')")
    result = command(str(folder), "--tasks", "none")
    assert result.returncode == 2
    assert "code of its own" in result.stderr
    assert list(list_runs(home / "runs")) == []


def test_a_task_that_runs_code_is_refused_before_anything_is_made(
    command: Command, tmp_path: Path, tiny_folder: Any, home: Path
) -> None:
    (tmp_path / "own.yaml").write_text("task: own\ndataset_path: json\nprocess_docs: !function evil.run\n")
    result = command(str(tiny_folder()), "--tasks", str(tmp_path / "own.yaml"), "--perplexity", "none")
    assert result.returncode == 2
    assert "would run code" in result.stderr
    assert "--allow-unsafe-code" in result.stderr
    assert list(list_runs(home / "runs")) == []


def test_an_allowed_task_of_a_file_is_judged(
    command: Command, tmp_path: Path, tiny_folder: Any, home: Path, text: Path
) -> None:
    rows = [{"question": "abc", "choices": ["a", "b"], "label": n % 2} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "helper.py").write_text("def two(docs):\n    return docs.select(range(2))\n")
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: label\ndoc_to_choice: choices\n"
        "process_docs: !function helper.two\nmetric_list: [{metric: acc}]\n"
    )
    options = ["--tasks", "own.yaml", "--perplexity", "none", "--no-speed", "--device", "cpu", "--allow-unsafe-code"]
    result = command(str(tiny_folder()), *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = list_runs(home / "runs")
    results = run.results()
    assert results is not None
    (metric,) = results["metrics"]
    assert (metric["task"], metric["n"]) == ("own", 2)


def test_a_model_of_a_family_that_is_not_cut_here_is_judged_too(
    command: Command, tmp_path: Path, text: Path, home: Path, tiny_tokenizer: Any
) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    options = ["--perplexity", str(text), "--window", "16", "--max-tokens", "256", "--tasks", "arc_easy"]
    result = command(str(tmp_path / "gpt2"), *options, "--limit", "2", "--device", "cpu")
    assert result.returncode == 0, result.stdout + result.stderr
    (run,) = list_runs(home / "runs")
    found = metrics_of(run)
    assert found["perplexity/text.txt", "perplexity"] > 1
    assert found["speed", "decode_tokens_per_second"] > 0
    assert ("speed", "macs") not in found
