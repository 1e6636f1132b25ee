"""The dense model in a GGUF format: a run like any other, judged as its file holds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import ExperimentError, ModelError
from core.experiment import Experiment, Resolved, experiment_hash
from core.jobs import worker
from core.jobs.rundir import RunDirectory, new_run_id
from core.models import llamacpp
from core.models.gguf_rounded import put_rounded, the_file, write_rounded
from core.storage.reading import read_run

RESOLVED = Resolved("abc", "float32", "cpu", 2)


def make(folder: Path, text: Path, quantised: str | None, **evaluation: Any) -> Experiment:
    judged = {"perplexity": [{"path": str(text), "window": 16, "max_tokens": 256}], "tasks": [], "speed": False}
    model = {"name": str(folder), "quantised": quantised}
    return Experiment.parse({"model": model, "evaluation": {**judged, **evaluation}, "device": "cpu"})


@pytest.fixture
def wide_folder(saved: Any) -> Path:
    """A small model whose rows are whole blocks of 32, with a tokenizer that llama.cpp knows."""
    folder: Path = saved()
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The old gardener walked along the wall and cut back the weak branches. " * 60)
    return path


@pytest.fixture
def run_of(home: Path) -> Callable[[Experiment], RunDirectory]:
    """A run directory in the test's home that holds an experiment and nothing else."""

    def make(experiment: Experiment) -> RunDirectory:
        directory = RunDirectory(home / "runs" / new_run_id("0123456789abcdef"))
        directory.write_experiment(experiment)
        return directory

    return make


@pytest.mark.parametrize(("dtype", "bits", "steps"), [("q8_0", 8.5, 127), ("q4_0", 4.5, 8)])
def test_the_files_values_are_the_models_weights_rounded_block_by_block(
    dtype: Any, bits: float, steps: int, wide_folder: Path, tmp_path: Path
) -> None:
    from core.models.loading import load_directory

    made = write_rounded(wide_folder, tmp_path / "out", dtype, "wide")
    assert made.path == the_file(tmp_path / "out")
    assert made.bytes == made.path.stat().st_size
    assert made.bits >= bits  # norms are float32, and the tables are finer than the layers of q4_0
    dense, _ = load_directory(wide_folder, device="cpu", dtype="float32")
    rounded, _ = load_directory(wide_folder, device="cpu", dtype="float32")
    put_rounded(rounded, wide_folder, made.path, dtype)
    before = dense.model.layers[1].self_attn.k_proj.weight
    after = rounded.model.layers[1].self_attn.k_proj.weight
    blocks = before.reshape(-1, 32)
    if dtype == "q8_0":  # by hand: the largest of 32 becomes 127, its scale a float16
        step = blocks.abs().amax(1, keepdim=True) / steps
        expected = torch.round(blocks / step) * step.half().float()
        assert torch.allclose(after.reshape(-1, 32), expected, atol=1e-6)
    largest = blocks.abs().amax(1)  # of each block
    assert ((after - before).reshape(-1, 32).abs().amax(1) <= largest / steps * 1.01 + 1e-6).all()
    assert not torch.equal(after, before)
    assert torch.equal(rounded.model.norm.weight, dense.model.norm.weight)


def test_a_quantised_run_is_complete_smaller_and_compared_with_dense(
    wide_folder: Path, text: Path, run_of: Callable[[Experiment], RunDirectory]
) -> None:
    directory = run_of(make(wide_folder, text, "q8_0", fidelity=True))
    with directory.lock():
        assert worker.work(directory) == worker.COMPLETE
    results = directory.results()
    assert results is not None
    found = {(m["task"].partition("/")[0], m["metric"]): m["value"] for m in results["metrics"]}
    assert found["fidelity", "top1_agreement"] > 0.9
    assert 0 < found["fidelity", "kl_per_token"] < 0.05
    pruning = results["pruning"]
    assert pruning["params_before"] == pruning["params_after"]
    assert pruning["bytes"] == the_file(directory.model_dir).stat().st_size < pruning["bytes_before"]
    assert pruning["layout"] == "gguf"
    rows = read_run(directory.path)
    assert rows is not None
    assert (rows.run["method"], rows.run["kind"], rows.run["ratio"]) == ("q8_0", "quantised", None)
    assert rows.run["name"].endswith("Q8_0")


def test_chat_loads_the_very_weights_that_were_judged(
    wide_folder: Path, text: Path, run_of: Callable[[Experiment], RunDirectory], home: Path
) -> None:
    from core.chat import models
    from core.chat.sources import source
    from core.models.loading import load_directory
    from core.progress import silent

    directory = run_of(make(wide_folder, text, "q4_0", fidelity=False))
    with directory.lock():
        assert worker.work(directory) == worker.COMPLETE
    judged, _ = load_directory(wide_folder, device="cpu", dtype="float32")
    before = {name: weight.clone() for name, weight in judged.state_dict().items()}
    put_rounded(judged, wide_folder, the_file(directory.model_dir), "q4_0")
    wanted = source(home, directory.id, "four bits")
    held = models.load(wanted, "cpu", silent)
    answering = held.model.state_dict()
    assert all(torch.equal(weight, answering[name]) for name, weight in judged.state_dict().items())
    assert not all(torch.equal(weight, answering[name]) for name, weight in before.items())
    assert held.info.params == models.weight_bytes(wanted, "cpu") // 4

    whole = the_file(directory.model_dir).read_bytes()
    for damaged in (b"GGUF", whole[:2000], b"nothing" * 1000):
        the_file(directory.model_dir).write_bytes(damaged)
        with pytest.raises(ModelError, match=r"The GGUF file .*\.gguf is damaged"):
            models.load(wanted, "cpu", silent)


def test_the_weights_go_where_they_are_not_kept(
    wide_folder: Path, text: Path, run_of: Callable[[Experiment], RunDirectory]
) -> None:
    directory = run_of(make(wide_folder, text, "q4_0", fidelity=False).with_changes({"save_model": False}))
    with directory.lock():
        assert worker.work(directory) == worker.COMPLETE
    assert not directory.model_dir.exists()
    assert (directory.results() or {})["pruning"]["bytes"] > 0


@pytest.mark.skipif(not llamacpp.installed(), reason="xllamacpp is not installed")
def test_its_speed_is_llama_cpps_beside_the_dense_file(
    wide_folder: Path, text: Path, run_of: Callable[[Experiment], RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.jobs import judging_llamacpp

    for name, value in (("PROMPT", 16), ("DECODED", 8), ("ROUNDS", 3)):
        monkeypatch.setattr(judging_llamacpp, name, value)
    directory = run_of(make(wide_folder, text, "q8_0", fidelity=False, speed=True))
    with directory.lock():
        assert worker.work(directory) == worker.COMPLETE
    metrics = [m for m in (directory.results() or {})["metrics"] if m["task"] == "speed/llama.cpp"]
    assert {(m["stage"], m["metric"]) for m in metrics} == {
        (stage, f"{name}_tokens_per_second") for stage in ("pruned", "dense") for name in ("prefill", "decode")
    }
    assert all(m["value"] > 0 and m["n"] == 3 for m in metrics)
    assert len({str(m["protocol"]) for m in metrics}) == 1
    sizes = {m["stage"]: m["details"]["file_bytes"] for m in metrics}
    assert sizes["pruned"] < sizes["dense"]
    assert not list(directory.path.glob("dense-*"))


def test_without_llama_cpp_the_run_says_that_there_is_no_speed(
    wide_folder: Path, text: Path, run_of: Callable[[Experiment], RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "installed", lambda: False)
    directory = run_of(make(wide_folder, text, "q8_0", fidelity=False, speed=True))
    with directory.lock():
        assert worker.work(directory) == worker.COMPLETE
    warnings = [event["text"] for event in directory.events() if event["kind"] == "warning"]
    assert any("xllamacpp" in text for text in warnings)


def test_quantisation_changes_the_hash_and_its_absence_none() -> None:
    dense = Experiment.parse({})
    q8 = Experiment.parse({"model": {"quantised": "q8_0"}})
    hashes = {experiment_hash(each, RESOLVED) for each in (dense, q8, q8.with_changes({"model.quantised": "q4_0"}))}
    assert len(hashes) == 3
    assert experiment_hash(q8.with_changes({"model.quantised": None}), RESOLVED) == experiment_hash(dense, RESOLVED)
    assert dense.dense
    assert not q8.dense


def test_quantised_and_pruned_at_once_is_refused() -> None:
    with pytest.raises(ExperimentError, match="baseline"):
        Experiment.parse({"model": {"quantised": "q8_0"}, "pruning": {"method": "l1"}})


def test_families_without_a_gguf_are_refused_before_anything_is_loaded(tiny_config: Any) -> None:
    from core.checks import check
    from core.models.sizes import Architecture

    experiment = Experiment.parse({"model": {"quantised": "q8_0"}})
    (problem,) = check(
        experiment, Architecture.from_config(tiny_config(model_type="phi3", max_position_embeddings=8192))
    )
    assert problem.field == "model.quantised"
    assert "phi3" in problem.message
