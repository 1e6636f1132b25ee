"""The dense model is judged once: later runs take what an earlier one found, and only what is the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from core.experiment import Experiment
from core.jobs.baselines import Earlier, part_key, perplexity_protocol, task_protocol
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
    assert "key" not in (pruned.stage("evaluate.perplexity.0") or {})


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
