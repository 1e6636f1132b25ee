"""The dense model is judged once: later runs take what an earlier one found, and only what is the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from core.experiment import Experiment
from core.jobs.baselines import Earlier, part_key, perplexity_protocol, task_protocol, weights_hash
from core.jobs.pipeline import settle


def finish(start: Any, directory: Any) -> dict[str, Any]:
    process = start("-m", "core.jobs.worker", str(directory.path))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output + directory.log_tail()
    return directory.results()


@pytest.fixture
def dense(experiment: Any) -> Experiment:
    made: Experiment = experiment()
    return made


def key_of(experiment: Experiment) -> str:
    return part_key(settle(experiment), perplexity_protocol(experiment.evaluation.perplexity[0]))


def test_a_second_dense_run_takes_the_parts_that_are_the_same_and_measures_the_rest(
    dense: Experiment, run_of: Any, start: Any, home: Path
) -> None:
    (text,) = dense.model_dump(mode="json")["evaluation"]["perplexity"]
    first = run_of(dense)
    found = finish(start, first)
    (perplexity,) = found["metrics"]
    other = {**text, "window": 32}
    second = run_of(dense.with_changes({"evaluation.perplexity": [other, text]}))
    again = finish(start, second)
    assert [row["protocol"]["window"] for row in again["metrics"]] == [32, 16]
    assert again["metrics"][1] == perplexity
    taken = second.stage("evaluate.perplexity.1")
    assert taken is not None
    assert taken["taken_from"] == first.id
    assert "taken_from" not in (second.stage("evaluate.perplexity.0") or {})
    assert "taken from run" in second.log_tail()

    import pyarrow.parquet as pq

    rows = pq.read_table(second.samples_file).to_pylist()
    assert len(rows) == 512 // 16 + 512 // 32  # the windows of both, taken or measured

    # A pruned run is never given the dense model's numbers.
    pruned = run_of(dense.with_changes({"pruning": {"method": "l1", "ratio": 0.5}}))
    (worse,) = finish(start, pruned)["metrics"]
    assert worse["value"] != perplexity["value"]
    assert "taken_from" not in (pruned.stage("evaluate.perplexity.0") or {})
    assert (pruned.stage("evaluate.perplexity.0") or {})["key"] != (first.stage("evaluate.perplexity.0") or {})["key"]


def test_the_key_follows_model_protocol_device_and_number_format(
    dense: Experiment, text: Path, tiny_folder: Any
) -> None:
    own, setting = key_of(dense), settle(dense)
    assert own == key_of(dense.with_changes({"name": "another name", "seed": 7}))
    assert own != key_of(dense.with_changes({"model.dtype": "bfloat16"}))
    protocol = perplexity_protocol(dense.evaluation.perplexity[0])
    assert own != part_key(setting, {**protocol, "window": 17})
    assert own != part_key(dataclasses.replace(setting, device="cuda:0"), protocol)
    other = tiny_folder("other", seed=1)
    assert own != key_of(dense.with_changes({"model.name": str(other)}))
    text.write_text(text.read_text()[::-1])  # the same name, another content
    assert own != key_of(dense)


def test_the_key_follows_the_versions_of_what_measures(dense: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    own = key_of(dense)
    monkeypatch.setattr("core.jobs.baselines._version", lambda name: "99" if name == "lm-eval" else None)
    assert own != key_of(dense)


def test_a_seed_counts_where_something_is_drawn(dense: Experiment) -> None:
    other = dense.with_changes({"seed": 1})
    assert task_protocol(dense, "piqa") == task_protocol(other, "piqa")
    assert task_protocol(dense, "gsm8k") != task_protocol(other, "gsm8k")
    few = {"evaluation.shots": 5}
    assert task_protocol(dense.with_changes(few), "piqa") != task_protocol(other.with_changes(few), "piqa")


def test_rows_that_are_gone_mean_that_it_is_measured_again(dense: Experiment, run_of: Any, home: Path) -> None:
    directory = run_of(dense)
    content = {"key": "k", "metrics": [{"task": "piqa"}], "documents_of": ["piqa"]}
    directory.write_stage("evaluate.task.piqa", content)
    assert Earlier(home / "runs").find("k") is None
    directory.write_stage("evaluate.task.piqa", {**content, "documents_of": []})
    found = Earlier(home / "runs").find("k")
    assert found is not None
    assert found.run_id == directory.id
    assert Earlier(home / "runs", but=directory.id).find("k") is None
    assert Earlier(home / "nowhere").find("k") is None


def test_the_key_of_a_pruned_model_follows_its_weights_and_its_cut(dense: Experiment, tmp_path: Path) -> None:
    pruned = settle(dense.with_changes({"pruning": {"method": "l1", "ratio": 0.5}}))
    protocol = perplexity_protocol(dense.evaluation.perplexity[0])
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    own = part_key(pruned, protocol, weights_hash(folder))
    assert own == part_key(pruned, protocol, weights_hash(folder))
    recovered = settle(
        pruned.experiment.with_changes({"recovery": {"kind": "lora", "cutoff": 16}, "save_model": False})
    )
    assert own == part_key(recovered, protocol, weights_hash(folder))
    for changes in ({"pruning.ratio": 0.4}, {"pruning.layers": [1, 1]}, {"seed": 1}):
        assert own != part_key(settle(pruned.experiment.with_changes(changes)), protocol, weights_hash(folder))
    (folder / "model.safetensors").write_bytes(b"two")
    assert own != part_key(pruned, protocol, weights_hash(folder))


def test_runs_that_cut_alike_share_scores_and_the_evaluation_before_recovery(
    experiment: Any, text: Path, run_of: Any, start: Any, cache: Path
) -> None:
    """Taylor at two ratios, and the second one again with LoRA: one pass over the text, one evaluation of each cut."""
    calibration = {"path": str(text), "samples": 4, "length": 16}
    pruning = {"method": "taylor", "ratio": 0.25, "round_to": 8, "calibration": calibration}  # too little for a KV head
    few = experiment(pruning=pruning)
    half = few.with_changes({"pruning.ratio": 0.5, "evaluation.fidelity": True})
    lora = {"kind": "lora", "data": {"path": str(text), "format": "text", "max_samples": 4}, "epochs": 1, "cutoff": 16}
    tuned = half.with_changes({"recovery": lora})
    finish(start, run_of(few))
    (scores,) = (cache / "scores").iterdir()
    computed = scores.stat()
    before = run_of(half)
    finish(start, before)
    assert [path.stat().st_mtime_ns for path in (cache / "scores").iterdir()] == [computed.st_mtime_ns]

    after = run_of(tuned)
    found = finish(start, after)
    judged = {name: stage for name, stage in after.stages().items() if name.startswith("evaluate.")}
    assert {name: stage.get("taken_from") for name, stage in judged.items()} == {
        "evaluate.perplexity.0": before.id, "evaluate.fidelity": before.id,
    }  # fmt: skip
    assert found["layer_errors"] == (before.results() or {})["layer_errors"] != None  # noqa: E711
    same = [row for row in found["metrics"] if row["stage"] == "pruned"]
    assert same == (before.results() or {})["metrics"]
    assert not any("taken_from" in stage for name, stage in after.stages().items() if name.startswith("judge_"))
    assert {row["stage"] for row in found["metrics"]} == {"pruned", "recovered"}
    import pyarrow.parquet as pq

    rows = pq.read_table(after.samples_file).to_pylist()
    assert {row["stage"] for row in rows} == {"pruned", "recovered"}
