"""Scores kept on disk: the same question is answered from there, another one is not."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from core.experiment import Pruning
from core.models.sizes import Architecture
from core.pruning import width
from core.pruning.calibration import Walk
from core.pruning.prune import PruneOutcome, prune
from core.pruning.scores import ScoreCache


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(num_hidden_layers=3)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that scores were computed."""
    found: list[int] = []
    computed = width._computed

    def count(*arguments: Any) -> Any:
        found.append(1)
        return computed(*arguments)

    monkeypatch.setattr(width, "_computed", count)
    return found


def cache_in(folder: Path, **identity: str) -> ScoreCache:
    return ScoreCache(folder / "scores", {"model": "tiny", "dtype": "float32", "device": "cpu", **identity})


def cut(
    model: Any, windows: torch.Tensor | None, cache: ScoreCache | None, seed: int = 0, **fields: Any
) -> tuple[Any, PruneOutcome]:
    pruned = copy.deepcopy(model)
    usual = {"method": "taylor", "ratio": 0.5} | ({} if "method" in fields and "options" in fields else {"round_to": 1})
    pruning = Pruning(**{**usual, **fields})
    architecture = Architecture.from_config(model.config.to_dict())
    return pruned, prune(
        pruned, pruning, architecture=architecture, windows=windows, seed=seed, device="cpu", cache=cache
    )


def same(a: Any, b: Any) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("method", ["taylor", "wanda_structured", "flap"])
def test_a_hit_cuts_the_same_and_reads_no_text(
    model: Any, windows: torch.Tensor, tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    without, _ = cut(model, windows, None, method=method)
    first, done = cut(model, windows, cache_in(tmp_path), method=method)
    assert same(first, without)
    assert len(passes) == 2
    monkeypatch.setattr(Walk, "enter", lambda *a, **k: pytest.fail("the text was read again"))
    again, repeated = cut(model, windows, cache_in(tmp_path), method=method)
    assert same(again, first)
    assert repeated == done
    assert len(passes) == 2


def test_another_ratio_or_rounding_uses_the_same_scores(
    model: Any, windows: torch.Tensor, tmp_path: Path, passes: list[int]
) -> None:
    cut(model, windows, cache_in(tmp_path))
    for fields in ({"ratio": 0.6}, {"round_to": 8}, {"layers": (1, 2)}, {"parts": ["mlp"]}, {"allocation": "global"}):
        expected, _ = cut(model, windows, None, **fields)
        before = len(passes)
        found, _ = cut(model, windows, cache_in(tmp_path), **fields)
        assert same(found, expected), fields
        assert len(passes) == before, fields


def test_a_ratio_that_spares_a_part_computes_it_for_the_next_one(
    model: Any, windows: torch.Tensor, tmp_path: Path, passes: list[int]
) -> None:
    """A quarter of two KV groups is none: attention is not cut, and yet the run that halves it reads no text."""
    few, report = cut(model, windows, cache_in(tmp_path), ratio=0.25)
    assert {(row["kv_after"], row["mlp_after"]) for row in report.layers} == {(2, 36)}
    assert same(few, cut(model, windows, None, ratio=0.25)[0])
    before = len(passes)
    half, _ = cut(model, windows, cache_in(tmp_path), ratio=0.5)
    assert len(passes) == before
    assert same(half, cut(model, windows, None, ratio=0.5)[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "block_influence", "ratio": 0.34, "options": {}},
        {"method": "hidden", "ratio": 0.25, "options": {"criterion": "taylor"}},
    ],
)
def test_layers_and_channels_of_the_stream_are_scored_once_too(
    model: Any, windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    expected, _ = cut(model, windows, None, **fields)
    more, _ = cut(model, windows, None, **{**fields, "ratio": 0.7})
    first, _ = cut(model, windows, cache_in(tmp_path), **fields)
    assert same(first, expected)
    for name in ("core.pruning.depth._of_blocks", "core.pruning.hidden._scores"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("scored again"))
    assert same(cut(model, windows, cache_in(tmp_path), **fields)[0], expected)
    assert same(cut(model, windows, cache_in(tmp_path), **{**fields, "ratio": 0.7})[0], more)


def test_a_part_or_layer_that_is_missing_is_computed_and_added(
    model: Any, windows: torch.Tensor, tmp_path: Path, passes: list[int]
) -> None:
    cut(model, windows, cache_in(tmp_path), parts=["mlp"], layers=(1, 1))
    cut(model, windows, cache_in(tmp_path), parts=["attention"], layers=(2, 2))
    assert len(passes) == 2
    cut(model, windows, cache_in(tmp_path), parts=["mlp"], layers=(1, 1))
    cut(model, windows, cache_in(tmp_path), parts=["attention"], layers=(2, 2))
    assert len(passes) == 2
    cut(model, windows, cache_in(tmp_path), layers=(1, 2))
    assert len(passes) == 3
    assert len(list((tmp_path / "scores").iterdir())) == 1


def test_whatever_else_changes_is_a_miss(model: Any, windows: torch.Tensor, tmp_path: Path, passes: list[int]) -> None:
    cut(model, windows, cache_in(tmp_path))
    other = windows.clone()
    other[0, 0] = (other[0, 0] + 1) % 96
    changes: list[tuple[torch.Tensor, ScoreCache, dict[str, Any]]] = [
        (windows, cache_in(tmp_path), {"options": {"order": "second"}}),
        (windows, cache_in(tmp_path), {"heads": "query_heads"}),
        (windows, cache_in(tmp_path), {"method": "flap"}),
        (windows, cache_in(tmp_path), {"calibration": {"batch_size": 2}}),
        (other, cache_in(tmp_path), {}),
        (windows[:3], cache_in(tmp_path), {}),
        (windows.view(2, 24), cache_in(tmp_path), {}),
        (windows, cache_in(tmp_path, model="another"), {}),
        (windows, cache_in(tmp_path, dtype="bfloat16"), {}),
    ]
    for place, (tokens, cache, fields) in enumerate(changes, start=2):
        cut(model, tokens, cache, **fields)
        assert len(passes) == place, fields
    assert len(list((tmp_path / "scores").iterdir())) == 1 + len(changes)


@pytest.mark.parametrize("damage", [b"", b"not a safetensors file", None])
def test_a_damaged_file_is_a_miss_and_is_replaced(
    model: Any, windows: torch.Tensor, tmp_path: Path, passes: list[int], damage: bytes | None
) -> None:
    first, _ = cut(model, windows, cache_in(tmp_path))
    (path,) = (tmp_path / "scores").iterdir()
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    again, _ = cut(model, windows, cache_in(tmp_path))
    assert same(again, first)
    assert len(passes) == 2
    cut(model, windows, cache_in(tmp_path))
    assert len(passes) == 2


def test_methods_that_read_no_text_keep_nothing(model: Any, tmp_path: Path) -> None:
    cut(model, None, cache_in(tmp_path), method="l1")
    cut(model, None, cache_in(tmp_path), method="random")
    assert not (tmp_path / "scores").exists()


def test_a_folder_that_cannot_be_written_costs_only_time(model: Any, windows: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("in the way")
    found, _ = cut(model, windows, cache_in(tmp_path))
    assert same(found, cut(model, windows, None)[0])
