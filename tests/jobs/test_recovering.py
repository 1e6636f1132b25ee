"""Runs with recovery: both models judged, zeros kept, and what a killed or failed training leaves."""

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from core.jobs.rundir import RunDirectory
from core.recovery.watching import WATCHED, last_whole
from tests.jobs.test_pipeline import CALIBRATION, finish

TRAINING = {"batch_size": 4, "micro_batch": 2, "cutoff": 32, "epochs": 0.1, "learning_rate": 0.01, "warmup_steps": 1}


def recovery(text: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "lora", "data": {"path": str(text), "format": "text"}, **TRAINING, **changes}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(str(file))
    return found


def test_a_run_is_judged_before_and_after_and_the_zeros_of_a_mask_stay(
    experiment: Any, run_of: Any, start: Any, text: Path
) -> None:
    pruning = {"method": "wanda", "ratio": 0.5, "calibration": {"path": str(text), **CALIBRATION}}
    made = experiment(pruning=pruning, recovery=recovery(text)).with_changes({"evaluation.fidelity": True})
    directory: RunDirectory = run_of(made)
    results = finish(start, directory)

    stages = {(m["stage"], m["task"], m["metric"]): m["value"] for m in results["metrics"]}
    kinds = {key[1:] for key in stages}
    assert {(stage, *kind) for stage in ("pruned", "recovered") for kind in kinds} == set(stages)
    before, after = (stages[stage, "perplexity/text.txt", "perplexity"] for stage in ("pruned", "recovered"))
    assert after < before
    training = results["recovery"]["training"]
    assert training["validation_after"] < training["validation_before"]
    assert results["recovery"]["data"]["data"] == "text.txt"
    assert {"recover", "judge_recovered"} <= set(results["timings"])

    pruned, recovered = weights(directory.model_dir), weights(directory.recovered_dir)
    assert pruned.keys() == recovered.keys()
    assert all(torch.equal(pruned[name] == 0, recovered[name] == 0) for name in pruned)
    assert any(not torch.equal(pruned[name], recovered[name]) for name in pruned)
    assert (directory.recovery_dir / "adapter" / "adapter_model.safetensors").is_file()
    assert not (directory.recovery_dir / "checkpoints").exists()
    rows = pq.read_table(directory.samples_file).to_pylist()
    assert {row["stage"] for row in rows} == {"pruned", "recovered"}
    assert len(rows) == 2 * len({row["doc"] for row in rows})


def test_peft_alone_puts_the_adapter_on_the_saved_pruned_model(
    experiment: Any, run_of: Any, start: Any, text: Path
) -> None:
    """In a fresh process that knows nothing of Espalier: pruned folder + adapter = recovered folder."""
    made = experiment(
        pruning={"method": "l2", "ratio": 0.5, "layers": [1, 1], "round_to": 1}, recovery=recovery(text, dropout=0.1)
    )
    directory = run_of(made)
    results = finish(start, directory)
    assert results["recovery"]["layout"] == "per_layer"
    assert "the file that recovery learned from" in " ".join(results["warnings"])
    details = {m["stage"]: m["details"] for m in results["metrics"] if m["metric"] == "perplexity"}
    assert "learned_from" not in (details["pruned"] or {})
    assert details["recovered"]["learned_from"] == "text.txt"
    assert "recovery learned from" in details["recovered"]["leakage"]
    adapter = directory.recovery_dir / "adapter"
    assert "needs no adapter" in (adapter / "README.md").read_text()
    code = f"""
import sys, torch
sys.modules["core"] = None
from peft import PeftModel
from transformers import AutoModelForCausalLM
load = lambda place: AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True).eval()
ids = torch.arange(8, 40)[None]
with torch.no_grad():
    pruned, recovered = load({str(directory.model_dir)!r}), load({str(directory.recovered_dir)!r})
    wanted, before = recovered(ids).logits, pruned(ids).logits
    tuned = PeftModel.from_pretrained(pruned, {str(adapter)!r}).eval()
    found = tuned(ids).logits
print("PEFT", bool(torch.allclose(found, wanted, atol=1e-4)), bool(torch.allclose(before, wanted, atol=1e-2)))
"""
    process = start("-c", code)
    said, _ = process.communicate(timeout=240)
    assert "PEFT True False" in said, said


def test_the_same_seed_trains_the_same_weights(experiment: Any, run_of: Any, start: Any, text: Path) -> None:
    made = experiment(pruning={"method": "l2", "ratio": 0.5, "round_to": 1}, recovery=recovery(text, dropout=0.1))
    one, other = run_of(made), run_of(made)
    for directory in (one, other):
        finish(start, directory)
    first, second = weights(one.recovered_dir), weights(other.recovered_dir)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_distillation_trains_the_weights_of_the_cut_layers_alone(
    experiment: Any, run_of: Any, start: Any, text: Path
) -> None:
    made = experiment(
        pruning={"method": "l2", "ratio": 0.5, "layers": [1, 1], "round_to": 1},
        recovery=recovery(text, kind="distillation", full_weights=True, learning_rate=0.003),
    )
    directory = run_of(made)
    results = finish(start, directory)
    pruned, recovered = weights(directory.model_dir), weights(directory.recovered_dir)
    changed = {name for name in pruned if not torch.equal(pruned[name], recovered[name])}
    assert changed
    assert all(".layers.1." in name for name in changed)
    assert not any("norm" in name for name in changed)
    assert results["recovery"]["training"]["trained_parameters"] == sum(pruned[name].numel() for name in changed)


def test_a_killed_training_goes_on_and_nothing_before_it_is_done_again(
    experiment: Any, run_of: Any, start: Any, until: Any, text: Path
) -> None:
    made = experiment(
        pruning={"method": "l2", "ratio": 0.5, "round_to": 1}, recovery=recovery(text, epochs=2, learning_rate=0.001)
    )
    directory = run_of(made)
    process = start("-m", "core.jobs.worker", str(directory.path))
    until(lambda: list((directory.recovery_dir / "checkpoints").glob(f"checkpoint-*/{WATCHED}")))
    process.kill()
    process.wait()
    before = {name: copy.deepcopy(stage) for name, stage in directory.stages().items()}
    assert "evaluate" in before
    assert directory.results() is not None  # what was judged before training is there
    last = last_whole(directory.recovery_dir / "checkpoints")
    assert last is not None
    watched = Path(last) / WATCHED
    watched.write_text(json.dumps({**json.loads(watched.read_text()), "seconds": 1000.0}))  # as if it had been long
    results = finish(start, directory)
    assert all(directory.stages()[name] == stage for name, stage in before.items() if name != "load")
    training = results["recovery"]["training"]
    assert training["earlier_seconds"] == 1000
    assert results["timings"]["recover"] > training["seconds"] > 1000  # both attempts'
    assert {m["stage"] for m in results["metrics"]} == {"pruned", "recovered"}


def test_a_training_that_cannot_be_done_costs_nothing_of_what_was_before(
    experiment: Any, run_of: Any, start: Any, text: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n{"question": "?"}\n')  # the first row is looked at before
    data = {"path": str(rows), "format": "instructions"}
    made = experiment(pruning={"method": "l2", "ratio": 0.5, "round_to": 1}, recovery=recovery(text, data=data))
    directory = run_of(made)
    process = start("-m", "core.jobs.worker", str(directory.path))
    process.communicate(timeout=240)
    assert process.returncode != 0
    status = directory.status()
    assert "`instruction`" in status.reason
    results = directory.results()
    assert results is not None
    assert {m["stage"] for m in results["metrics"]} == {"pruned"}
    assert (directory.model_dir / "config.json").is_file()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cutoff": 100_000}, "recovery.cutoff"),
        ({"micro_batch": 3}, "recovery.micro_batch"),
        ({"full_weights": True}, "recovery.full_weights"),
        ({"data": {"corpus": "generated", "format": "chat"}}, "recovery.data.format"),
    ],
)
def test_settings_that_cannot_work_are_refused_beside_their_field(
    experiment: Any, tiny_config: Any, text: Path, change: dict[str, Any], field: str
) -> None:
    from core.checks import check
    from core.models.sizes import Architecture

    made = experiment(pruning={"method": "l2", "ratio": 0.5}, recovery=recovery(text, **change))
    problems = check(made, Architecture.from_config(tiny_config()))
    assert [each.field for each in problems if each.level == "error"] == [field]


def test_hidden_states_of_another_width_are_not_held_against_the_dense_ones(
    experiment: Any, tiny_config: Any, text: Path
) -> None:
    from core.checks import check
    from core.models.sizes import Architecture

    how = recovery(text, kind="distillation", hidden_mix=0.5)
    for method, fields in (("hidden", ["recovery.hidden_mix"]), ("l2", [])):
        calibration = {"path": str(text), **CALIBRATION}
        made = experiment(pruning={"method": method, "ratio": 0.5, "calibration": calibration}, recovery=how)
        problems = check(made, Architecture.from_config(tiny_config()))
        assert [each.field for each in problems if each.level == "error"] == fields
