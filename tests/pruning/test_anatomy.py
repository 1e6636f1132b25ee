"""What a cut leaves written down: the scores that decided, who stays, and where the zeros are."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from core.anatomy_file import read_anatomy, write_anatomy
from core.experiment import Pruning
from core.models.sizes import Architecture
from core.pruning.anatomy import Anatomy
from core.pruning.prune import prune


def cut(model: Any, **fields: Any) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    pruned, anatomy = copy.deepcopy(model), Anatomy()
    architecture = Architecture.from_config(model.config.to_dict())
    windows = torch.randint(0, 96, (5, 12), generator=torch.Generator().manual_seed(0))
    outcome = prune(
        pruned,
        Pruning(**fields),
        architecture=architecture,
        windows=windows,
        seed=0,
        device="cpu",
        anatomy=anatomy,
    )
    return pruned, {row["layer"]: row for row in outcome.layers}, anatomy.rows


def test_channel_scores_are_those_of_the_criterion_and_the_lowest_go(tiny_llama: Any) -> None:
    model = tiny_llama()
    _, layers, rows = cut(model, method="l1", ratio=0.5, parts=["mlp"], round_to=1, layers=(1, 1))
    (row,) = rows
    mlp = model.model.layers[1].mlp
    naive = mlp.gate_proj.weight.abs().sum(1) + mlp.up_proj.weight.abs().sum(1) + mlp.down_proj.weight.abs().sum(0)
    order = torch.tensor(row["values"]).argsort()
    assert order.tolist() == naive.argsort().tolist()
    assert (row["layer"], row["name"], row["unit"]) == (1, "mlp", "MLP channel")
    kept = [channel for channel, stays in enumerate(row["kept"]) if stays]
    assert kept == layers[1]["channels"] == sorted(order[24:].tolist())
    assert row["most_removed"] <= row["least_kept"]


@pytest.mark.parametrize("heads", ["kv_groups", "query_heads"])
def test_heads_that_stay_are_marked_by_their_old_number(tiny_llama: Any, heads: str) -> None:
    _, layers, rows = cut(tiny_llama(), method="l2", ratio=0.5, heads=heads, parts=["attention"])
    for row in rows:
        of = "kv_heads" if heads == "kv_groups" else "query_heads"
        assert [unit for unit, stays in enumerate(row["kept"]) if stays] == layers[row["layer"]][of]
    assert len(rows) == 2


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
def test_histograms_count_every_weight_and_images_show_where_zeros_are(tiny_llama: Any, method: str) -> None:
    pruned, _, rows = cut(tiny_llama(), method=method, ratio=0.5)
    assert {(row["layer"], row["name"]) for row in rows} == {
        (layer, role) for layer in (0, 1) for role in ("q", "k", "v", "o", "gate", "up", "down")
    }
    for row in rows:
        layer = pruned.model.layers[row["layer"]]
        holder = layer.mlp if row["name"] in ("gate", "up", "down") else layer.self_attn
        weight = getattr(holder, f"{row['name']}_proj").weight
        assert sum(row["removed"]) == int((weight == 0).sum())
        assert sum(row["removed"]) + sum(row["stayed"]) == weight.numel()
        assert (row["image_rows"], row["image_columns"]) == (row["rows"], row["columns"]) == tuple(weight.shape)
        image = torch.tensor(list(row["image"])).view(weight.shape)  # one block a weight: as small as this
        assert torch.equal(image == 255, weight != 0)
        assert row["scale"] == "log10"
        assert row["what"] == ("magnitude" if method == "sparsegpt" else "importance")


def test_larger_matrices_are_seen_in_blocks() -> None:
    anatomy = Anatomy()
    keep = torch.ones(200, 96, dtype=torch.bool)
    keep[:100] = False
    anatomy.weights(0, "q", torch.rand(200, 96), keep)
    row = anatomy.rows[0]
    assert (row["image_rows"], row["image_columns"]) == (64, 64)
    image = torch.tensor(list(row["image"])).view(64, 64)
    assert image[:32].eq(0).all()
    assert image[32:].eq(255).all()


@pytest.mark.parametrize("method", ["block_influence", "perplexity_greedy"])
def test_depth_methods_say_what_each_layer_scored_and_which_went(tiny_llama: Any, method: str) -> None:
    _, layers, rows = cut(tiny_llama(num_hidden_layers=4), method=method, ratio=0.5)
    (row,) = rows
    assert row["members"] == [0, 1, 2, 3]
    gone = [layer for layer, stays in zip(row["members"], row["kept"], strict=True) if not stays]
    assert gone == [layer for layer, each in layers.items() if not each["mlp_after"]]
    assert len(gone) == 2
    first = min(range(4), key=lambda place: row["values"][place])
    assert first in gone


def test_channels_of_the_stream_are_scored_once_for_the_model(tiny_llama: Any) -> None:
    pruned, _, rows = cut(tiny_llama(), method="hidden", ratio=0.25)
    (row,) = rows
    assert (row["layer"], row["name"], sum(row["kept"])) == (-1, "stream", pruned.config.hidden_size)
    assert len(row["values"]) == 16


def test_the_file_gives_back_what_was_written_and_damaged_ones_are_none(tmp_path: Path, tiny_llama: Any) -> None:
    _, _, rows = cut(tiny_llama(), method="wanda", ratio=0.5)
    path = tmp_path / "anatomy.parquet"
    write_anatomy(path, rows)
    found = read_anatomy(path, images=True)
    assert [(row["layer"], row["name"], row["image"]) for row in found] == [
        (row["layer"], row["name"], row["image"]) for row in rows
    ]
    assert found[0]["values"] == pytest.approx(rows[0]["values"])
    assert "image" not in read_anatomy(path)[0]
    path.write_bytes(path.read_bytes()[:200])
    assert read_anatomy(path) == []
    assert read_anatomy(tmp_path / "nothing") == []
