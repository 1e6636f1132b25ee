"""What a run's files say of its anatomy, and where zeros are, read without torch."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.anatomies import Anatomies, RunAnatomy
from core.anatomy_file import FILE, write_anatomy
from core.errors import EspalierError, InputError
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from core.pruning.anatomy import Anatomy
from core.storage.store import Store
from core.weights_view import Region, blocks, zeros_of

RUN_ID = "20261123-201854-1a2b3c4d-x7y9"
LAYER = {"heads_before": 9, "heads_after": 6, "kv_before": 3, "kv_after": 2, "mlp_before": 1536, "mlp_after": 1024}


@pytest.fixture
def room(home: Path) -> Any:
    store = Store()
    yield lambda: (store.sync(home), Anatomies(store, home))[1]
    store.close()


def write_run(home: Path, pruning: dict[str, Any] | None, run_id: str = RUN_ID, **results: Any) -> RunDirectory:
    folder = RunDirectory(home / "runs" / run_id)
    folder.write_experiment(Experiment.parse({"name": "<b>one</b>", "pruning": pruning, "device": "cpu"}))
    rows = [{"kind": "state", "state": "RUNNING"}, {"kind": "state", "state": "COMPLETE"}]
    lines = [{"v": 1, "seq": i, "attempt": 1, "time": "2026-11-23T21:00:00Z", **row} for i, row in enumerate(rows, 1)]
    folder.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.write_results({"schema": 1, "pruning": {"layers": [{"layer": 0, **LAYER}]}, "metrics": [], **results})
    return folder


def test_the_pruning_stage_says_more_than_the_results_and_is_asked_first(home: Path, room: Any) -> None:
    folder = write_run(home, {"method": "l1", "ratio": 0.3})
    assert room().of(RUN_ID).layers == [{"layer": 0, **LAYER}]
    folder.write_stage("prune", {"layers": [{"layer": 0, **LAYER, "query_heads": [0, 1, 2, 6, 7, 8]}]})
    assert room().of(RUN_ID).layers[0]["query_heads"] == [0, 1, 2, 6, 7, 8]


def test_runs_without_the_file_have_no_importances_and_damaged_results_no_layers(home: Path, room: Any) -> None:
    folder = write_run(home, {"method": "l1", "ratio": 0.3})
    (folder.path / FILE).write_bytes(b"PAR1 not really")
    found = room().of(RUN_ID)
    assert found.rows == []
    folder.write_results({"pruning": {"layers": [{"layer": "x"}, 3]}, "layer_errors": [1], "scan": 7})
    found = room().of(RUN_ID)
    assert (found.layers, dict(found.drift), dict(found.scan), found.dropped) == ([], {}, {}, [])


def test_only_runs_that_cut_something_are_offered_and_dense_ones_refused(home: Path, room: Any) -> None:
    write_run(home, {"method": "l1", "ratio": 0.3})
    other = "20261123-201854-1a2b3c4d-x7z9"
    write_run(home, None, other)
    assert room().runs() == [(RUN_ID, "<b>one</b>")]
    with pytest.raises(InputError, match="dense model has nothing"):
        room().of(other)
    for bad in ("../../etc", "20261123-201854-1a2b3c4d-none"):
        with pytest.raises(InputError):
            room().of(bad)
        with pytest.raises(InputError):
            room().zeros(bad, 0, "q")


def masked(folder: RunDirectory, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A q matrix of SmolLM2's shape with random zeros, as layer 3 of the run's saved model."""
    weight = torch.randn(576, 576, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[torch.rand(576, 576, generator=torch.Generator().manual_seed(1)) < 0.3] = 0
    weight[0, 0] = -0.0  # a zero, too
    folder.model_dir.mkdir()
    save_file(
        {"model.layers.13.self_attn.q_proj.weight": weight + 1, "model.layers.3.self_attn.q_proj.weight": weight},
        folder.model_dir / "model.safetensors",
    )
    return weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_zeros_are_read_from_the_saved_weights_block_by_block_and_one_by_one(
    home: Path, room: Any, dtype: torch.dtype
) -> None:
    folder = write_run(home, {"method": "wanda", "ratio": 0.5})
    weight = masked(folder, dtype)
    image = room().zeros(RUN_ID, 3, "q")
    assert image.exact
    assert image.shape == (576, 576)
    assert image.values.shape == (96, 96)
    naive = (weight != 0).double().view(96, 6, 96, 6).mean(dim=(1, 3))
    assert np.allclose(image.values, naive.numpy())
    near = room().zeros(RUN_ID, 3, "q", Region(0, 20, 500, 576))
    assert np.array_equal(near.values, (weight[0:20, 500:576] != 0).double().numpy())
    assert near.zeros == pytest.approx(float((weight[0:20, 500:576] == 0).double().mean()))
    assert room().zeros(RUN_ID, 4, "q") is None
    with pytest.raises(InputError, match="empty"):
        room().zeros(RUN_ID, 3, "q", Region(600, 700, 0, 10))
    with pytest.raises(InputError, match="no matrix"):
        room().zeros(RUN_ID, 3, "../q")


def test_without_the_weights_the_image_of_the_cut_is_shown(home: Path, room: Any) -> None:
    folder = write_run(home, {"method": "wanda", "ratio": 0.5})
    anatomy, keep = Anatomy(), torch.ones(576, 576, dtype=torch.bool)
    keep[:288] = False
    anatomy.weights(3, "q", torch.rand(576, 576), keep)
    write_anatomy(folder.path / FILE, anatomy.rows)
    image = room().zeros(RUN_ID, 3, "q", Region(0, 10, 0, 10))
    assert not image.exact
    assert image.region == Region(0, 576, 0, 576)
    assert image.values[:32].max() == 0
    assert image.values[32:].min() == 1


def test_joined_matrices_are_read_at_their_own_rows(tmp_path: Path) -> None:
    weight = torch.ones(12, 4)
    weight[5:7] = 0
    save_file({"model.layers.0.self_attn.qkv_proj.weight": weight}, tmp_path / "model.safetensors")
    image = zeros_of(tmp_path, 0, "k", (3, 4), before=4)
    assert image is not None
    assert image.values[:, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "BF16", "shape": [576, 576], "data_offsets": [0, 10]},
        {"dtype": "BF16", "shape": [576, 576], "data_offsets": [0, 10**12]},
        {"dtype": "I8", "shape": [576, 576], "data_offsets": [0, 331_776]},
        {"dtype": "BF16", "shape": [-1, 576], "data_offsets": [0, 10]},
        {"dtype": "BF16", "shape": "x", "data_offsets": None},
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    header = json.dumps({"model.layers.3.self_attn.q_proj.weight": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(EspalierError, match="no safetensors file that can be read"):
        zeros_of(tmp_path, 3, "q", (576, 576))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 40, (10**12).to_bytes(8, "little") + b"{}", b"\2" + b"\0" * 7 + b"[]"]
)
def test_files_that_are_no_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(EspalierError):
        zeros_of(tmp_path, 3, "q", (576, 576))


def test_links_in_a_model_folder_are_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside.safetensors", tmp_path / "model"
    folder.mkdir()
    save_file({"model.layers.3.self_attn.q_proj.weight": torch.ones(4, 4)}, outside)
    (folder / "model.safetensors").symlink_to(outside)
    assert zeros_of(folder, 3, "q", (4, 4)) is None


def test_blocks_are_means_whatever_the_shape() -> None:
    there = np.random.default_rng(0).random((101, 7)) < 0.5
    found = blocks(there, 10)
    edges = np.linspace(0, 101, 11).round().astype(int)
    naive = [[there[a:b, c].mean() for c in range(7)] for a, b in itertools.pairwise(edges)]
    assert np.allclose(found, naive)


def test_a_scan_is_found_by_model_and_method_the_nearest_ratio_first(home: Path, room: Any) -> None:
    write_run(home, {"method": "taylor", "ratio": 0.3})
    scan = {"layers": [{"layer": 0, "part": "layer", "perplexity": 20.0, "cost": 0.1}], "dense": {"perplexity": 18.0}}
    for place, (method, ratio) in enumerate([("taylor", 0.5), ("taylor", 0.35), ("l1", 0.3)]):
        folder = write_run(home, {"method": method, "ratio": ratio}, f"20261123-20185{place}-1a2b3c4d-scan", scan=scan)
        made = folder.experiment().to_dict()
        evaluation = {"perplexity": made["evaluation"]["perplexity"]}
        folder.write_experiment(Experiment.parse({**made, "scan": {}, "evaluation": evaluation}))
    found: RunAnatomy = room().of(RUN_ID)
    assert room().scan_for(found)[0] == "20261123-201851-1a2b3c4d-scan"


def test_the_scan_of_a_run_tries_all_layers_on_little_text_and_leads_back_to_a_run_over_a_range(room: Any) -> None:
    asked = Experiment.parse(
        {"pruning": {"method": "taylor", "ratio": 0.4, "layers": [4, 25], "allocation": "global"},
         "recovery": {"kind": "lora"}}
    )  # fmt: skip
    scan = room().scan_of(asked)
    assert scan.scan is not None
    assert (scan.pruning.layers, scan.pruning.allocation, scan.pruning.ratio) == (None, "uniform", 0.4)
    assert scan.evaluation.perplexity[0].max_tokens == 4096
    back = room().run_of(scan, (3, 9))
    assert (back.scan, back.pruning.layers, back.evaluation.perplexity[0].max_tokens) == (None, (3, 9), None)
    assert back.evaluation.tasks == asked.evaluation.tasks
    for none in ({}, {"pruning": {"method": "hidden", "ratio": 0.2}}):
        with pytest.raises(InputError, match="no single layers"):
            room().scan_of(Experiment.parse(none))
