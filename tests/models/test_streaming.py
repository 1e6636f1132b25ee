"""Pruning from disk to disk against the same cut in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.errors import ModelError, RunError
from core.experiment import Pruning
from core.models.families import families
from core.models.sizes import Architecture
from core.models.streaming import Streamed, Writer
from core.pruning.prune import prune

CUTS = [
    {"method": "wanda", "ratio": 0.5, "layers": (1, 2)},
    {"method": "sparsegpt", "ratio": 0.5},
    {"method": "taylor", "ratio": 0.5, "round_to": 8, "layers": (1, 2)},
    {"method": "l2", "ratio": 0.5, "round_to": 8},
    {"method": "block_influence", "ratio": 0.5},
    {"method": "wanda", "ratio": 0.5, "allocation": "owl"},
]


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (4, 12), generator=torch.Generator().manual_seed(0))


def both(
    model: Any, folder: Path, windows: torch.Tensor, fields: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Streamed]:
    """Weights of the cut in memory and of the one on disk, and the body that wrote them; the outcomes are equal."""
    model.save_pretrained(folder / "source", max_shard_size="20KB")
    how = {"architecture": Architecture.from_config(model.config.to_dict()), "windows": windows, "seed": 0}
    in_memory = type(model).from_pretrained(folder / "source", dtype=model.dtype)  # position tables in float32
    body = Streamed(folder / "source", "cpu", Writer(folder / "target", shard_bytes=20_000))
    done = prune(in_memory, Pruning(**fields), device="cpu", **how)
    assert prune(body, Pruning(**fields), device="cpu", **how) == done
    body.finish()
    written: dict[str, torch.Tensor] = {}
    for path in (folder / "target").glob("*.safetensors"):
        written |= load_file(path)
    expected = dict(in_memory.state_dict())
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    return expected, written, body


@pytest.mark.parametrize("fields", CUTS, ids=lambda each: "-".join(map(str, each.values())))
@pytest.mark.parametrize("tied", [True, False])
def test_the_files_hold_what_the_cut_in_memory_holds_bit_for_bit(
    tiny_llama: Any, tmp_path: Path, windows: torch.Tensor, fields: dict[str, Any], tied: bool
) -> None:
    model = tiny_llama(num_hidden_layers=4, tie_word_embeddings=tied).to(torch.bfloat16)
    expected, written, _ = both(model, tmp_path, windows, fields)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name


@pytest.mark.parametrize("model_type", sorted(families()))
def test_every_family_streams(tiny_model: Any, tmp_path: Path, windows: torch.Tensor, model_type: str) -> None:
    expected, written, _ = both(tiny_model(model_type), tmp_path, windows, {"method": "wanda", "ratio": 0.5})
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name


def test_between_visits_no_layer_holds_a_weight(tiny_llama: Any, tmp_path: Path, windows: torch.Tensor) -> None:
    model = tiny_llama(num_hidden_layers=3)
    _, _, body = both(model, tmp_path, windows, {"method": "wanda", "ratio": 0.5})
    assert all(parameter.is_meta for parameter in body.model.parameters())
    with body.at(1) as layer:
        assert not any(parameter.is_meta for parameter in layer.parameters())
        assert all(parameter.is_meta for parameter in body.layers()[0].parameters())


def test_called_as_a_whole_it_gives_the_models_logits(tiny_llama: Any, tmp_path: Path, windows: torch.Tensor) -> None:
    model = tiny_llama(num_hidden_layers=3)
    model.save_pretrained(tmp_path)
    with Streamed(tmp_path, "cpu").on_the_fly() as streamed, torch.no_grad():
        torch.testing.assert_close(streamed(windows).logits, model(windows).logits, rtol=0, atol=0)


def test_a_tensor_that_changed_on_disk_is_found(tiny_llama: Any, tmp_path: Path, windows: torch.Tensor) -> None:
    _, _, body = both(tiny_llama(num_hidden_layers=2), tmp_path, windows, {"method": "wanda", "ratio": 0.5})
    (tmp_path / "target" / "config.json").write_text((tmp_path / "source" / "config.json").read_text())
    Streamed(tmp_path / "target", "cpu").check(body.writer.sums)
    sums = {**body.writer.sums, "model.norm.weight": 0.5}
    with pytest.raises(RunError, match=r"model\.norm\.weight was not written"):
        Streamed(tmp_path / "target", "cpu").check(sums)


def test_a_folder_that_lacks_a_tensor_is_an_error_that_names_it(
    tiny_llama: Any, tmp_path: Path, windows: torch.Tensor
) -> None:
    tiny_llama(num_hidden_layers=2).save_pretrained(tmp_path)
    body = Streamed(tmp_path, "cpu")
    del body.source.files["model.layers.1.mlp.up_proj.weight"]
    how = {"architecture": Architecture.from_config(body.model.config.to_dict()), "windows": windows, "seed": 0}
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        prune(body, Pruning(method="wanda", ratio=0.5), device="cpu", **how)
