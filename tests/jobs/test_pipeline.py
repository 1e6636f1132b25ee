"""One run from its experiment to its results, judged by somebody who does not know this program."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from core.jobs.rundir import RunDirectory
from core.jobs.states import State

CALIBRATION = {"samples": 4, "length": 32}


def finish(start: Any, directory: RunDirectory) -> dict[str, Any]:
    process = start("-m", "core.jobs.worker", str(directory.path))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output + directory.log_tail()
    results = directory.results()
    assert results is not None
    return results


def naive_perplexity(model: Any, tokenizer: Any, text: str, window: int, max_tokens: int) -> float:
    """Token by token, from the definition."""
    import torch

    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    losses = []
    for place in range(0, min(max_tokens, len(ids)) - window + 1, window):
        chunk = torch.tensor([ids[place : place + window]])
        with torch.no_grad():
            probabilities = torch.log_softmax(model(chunk).logits[0].double(), dim=-1)
        losses += [-probabilities[i, int(chunk[0, i + 1])].item() for i in range(window - 1)]
    return math.exp(sum(losses) / len(losses))


@pytest.mark.fresh
def test_a_pruned_run_leaves_every_file_and_its_numbers_are_those_of_the_saved_weights(
    experiment: Any, run_of: Any, start: Any, text: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    calibration = {"path": str(text), **CALIBRATION}
    made = experiment(pruning={"method": "wanda", "ratio": 0.5, "calibration": calibration})
    directory = run_of(made.with_changes({"evaluation.fidelity": True, "evaluation.speed": True}))
    results = finish(start, directory)

    assert (results["schema"], results["run_id"]) == (1, directory.id)
    assert results["experiment"] == directory.experiment().to_dict()
    model = AutoModelForCausalLM.from_pretrained(directory.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(directory.model_dir)
    values = {(m["stage"], m["task"], m["metric"]): m for m in results["metrics"]}
    perplexity = values["pruned", "perplexity/text.txt", "perplexity"]
    assert perplexity["value"] == pytest.approx(naive_perplexity(model, tokenizer, text.read_text(), 16, 512), rel=1e-4)
    assert perplexity["protocol"]["window"] == 16
    assert 0 < values["pruned", "fidelity/text.txt", "top1_agreement"]["value"] <= 1
    assert perplexity["details"]["interval"][0] < perplexity["value"] < perplexity["details"]["interval"][1]
    assert perplexity["details"]["leakage"].endswith("the file that calibration read.")
    drift = results["layer_errors"]
    assert [row["layer"] for row in drift["layers"]] == [0, 1]
    assert all(0 < row["error"] < 10 and not row["removed"] for row in drift["layers"])
    assert (
        drift["protocol"]["tokens_sha256"]
        == values["pruned", "fidelity/text.txt", "kl_per_token"]["protocol"]["tokens_sha256"]
    )
    windows = pq.read_table(directory.samples_file).to_pylist()
    assert math.exp(sum(row["score"] for row in windows) / len(windows)) == pytest.approx(perplexity["value"])
    assert values["dense", "speed", "prefill_tokens_per_second"]["value"] > 0
    zeros = sum(int((p == 0).sum()) for name, p in model.named_parameters() if "proj" in name)
    total = sum(p.numel() for p in model.parameters())
    pruning = results["pruning"]
    assert pruning["params_before"] == pruning["params_after"] == total
    assert pruning["nonzero_after"] == sum(int(p.count_nonzero()) for p in model.parameters())
    assert pruning["achieved_model_ratio"] == pytest.approx(zeros / total)
    assert pruning["bytes"] == sum(path.stat().st_size for path in directory.model_dir.iterdir())
    assert (pruning["layout"], pruning["model_layers"], len(pruning["layers"])) == ("stock", 2, 2)
    assert list(results["timings"]) == ["load", "calibrate", "prune", "save", "evaluate"]
    assert results["memory"]["peak_rss_bytes"] > 50_000_000
    assert results["environment"]["hash"] == directory.status().hash
    assert any("calibration read" in warning for warning in results["warnings"])
    check_events(directory)


def check_events(directory: RunDirectory) -> None:
    """Each stage says that it began, how far it is of what, and that it ended, in this order."""
    events = directory.events()
    for stage in ("load", "calibrate", "prune", "save", "evaluate"):
        mine = [event for event in events if event.get("stage") == stage and event["kind"] in ("stage", "progress")]
        words = [event.get("status", "progress") for event in mine]
        assert words[0] == "started"
        assert words[-1] == "finished"
        assert set(words[1:-1]) == {"progress"}
        moving = [event for event in mine if event["kind"] == "progress"]
        assert all(0 <= event["done"] <= event["total"] and event["unit"] for event in moving)
        assert all("eta_s" in event for event in moving)
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert [event["kind"] for event in events if event["kind"] == "metric"]
    assert (events[-1]["kind"], events[-1]["state"]) == ("state", "COMPLETE")


def test_a_dense_run_is_a_baseline_without_cut(experiment: Any, run_of: Any, start: Any) -> None:
    directory = run_of(experiment())
    results = finish(start, directory)
    assert list(results["timings"]) == ["load", "evaluate"]
    assert results["pruning"]["params_after"] == results["pruning"]["params_before"] > 0
    assert results["pruning"]["achieved_model_ratio"] == 0
    assert not directory.model_dir.exists()
    assert directory.status().state is State.COMPLETE


def test_weights_that_are_not_to_be_kept_go_after_they_were_verified_and_judged(
    experiment: Any, run_of: Any, start: Any
) -> None:
    width = {"method": "random", "ratio": 0.5, "round_to": 1, "parts": ["mlp"]}
    directory = run_of(experiment(pruning=width, save_model=False))
    results = finish(start, directory)
    assert not directory.model_dir.exists()
    assert results["pruning"]["verify"]["max_abs_difference"] <= 1e-4
    assert results["pruning"]["bytes"] > 0
    assert len(results["metrics"]) == 1


def test_a_run_whose_model_changed_does_not_mix_two_models(
    experiment: Any, run_of: Any, start: Any, tiny_folder: Any
) -> None:
    made = experiment()
    directory = run_of(made)
    directory.write_stage("load", {"attempt": 1, "hash": "another"})
    process = start("-m", "core.jobs.worker", str(directory.path))
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert "changed since this run began" in directory.status().reason


def test_results_are_json_that_everybody_reads(experiment: Any, run_of: Any) -> None:
    directory = run_of(experiment())
    directory.write_results({"schema": 1, "metrics": [{"value": math.nan}]})
    assert json.loads(directory.results_file.read_text(), parse_constant=pytest.fail)["metrics"] == [{"value": None}]


def test_a_run_that_streams_from_disk_ends_with_the_weights_of_one_in_memory(
    experiment: Any, run_of: Any, start: Any, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.models.streaming import Source

    calibration = {"path": str(text), **CALIBRATION}
    made = experiment(pruning={"method": "wanda", "ratio": 0.5, "calibration": calibration})
    in_memory = run_of(made)
    finish(start, in_memory)
    monkeypatch.setenv("ESPALIER_STREAM", "1")
    streamed = run_of(made)
    results = finish(start, streamed)
    assert streamed.stage("load")["streamed"] is True
    assert in_memory.stage("load")["streamed"] is False
    assert results["pruning"]["verify"]["max_abs_difference"] <= 1e-4
    assert results["pruning"]["nonzero_after"] == in_memory.results()["pruning"]["nonzero_after"]
    first, second = Source(in_memory.model_dir), Source(streamed.model_dir)
    assert first.files.keys() == second.files.keys()
    for name in first.files:
        ours, theirs = (each.read([name], "cpu")[name] for each in (first, second))
        assert ours.equal(theirs), name
    assert not (streamed.path / ".weights").exists()
