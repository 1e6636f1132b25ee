"""A scan against runs: each of its numbers is that of a model which is really pruned in that one layer."""

import copy
import math
from typing import Any

import pytest
import torch

from core.evaluation.perplexity import perplexity
from core.experiment import Pruning
from core.models.sizes import Architecture
from core.pruning.prune import job_of, prune, resident
from core.pruning.scan import WHOLE, Found, Scan


@pytest.fixture
def calibration() -> torch.Tensor:
    return torch.randint(0, 96, (5, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randint(0, 96, (7, 10), generator=torch.Generator().manual_seed(1))


def scanned(
    model: Any, pruning: Pruning, calibration: torch.Tensor, text: torch.Tensor, **how: Any
) -> tuple[list[float], dict[tuple[int, str], Found], list[float]]:
    architecture = Architecture.from_config(model.config.to_dict())
    job = job_of(resident(model, "cpu", None), pruning, architecture=architecture, windows=calibration, seed=0)
    found: dict[tuple[int, str], Found] = {}
    shares: list[float] = []
    with torch.no_grad():
        scan = Scan(job, text, tell=shares.append, **how)
        dense = scan.run(lambda _layer, rows: found.update({(row.layer, row.part): row for row in rows}))
    return dense, found, shares


def alone(model: Any, fields: dict[str, Any], calibration: torch.Tensor, text: torch.Tensor) -> tuple[list[float], int]:
    """Windows' NLL of a model that is really cut, and what went."""
    pruned = copy.deepcopy(model)
    architecture = Architecture.from_config(model.config.to_dict())
    outcome = prune(pruned, Pruning(**fields), architecture=architecture, windows=calibration, seed=0, device="cpu")
    zeros = outcome.params_after - outcome.nonzero_after
    return perplexity(pruned, text).window_nll, outcome.params_before - outcome.params_after or zeros


CUTS: list[dict[str, Any]] = [
    {"method": "wanda", "ratio": 0.5},
    {"method": "magnitude", "ratio": 0.5, "parts": ["mlp"]},
    {"method": "sparsegpt", "pattern": "2:4"},
    {"method": "taylor", "ratio": 0.5, "round_to": 1},
    {"method": "l2", "ratio": 0.5, "heads": "query_heads", "round_to": 8},
    {"method": "wanda_structured", "ratio": 0.5, "round_to": 1},
    {"method": "random", "ratio": 0.5, "round_to": 1, "parts": ["attention"]},
]


@pytest.mark.parametrize("fields", CUTS, ids=lambda fields: fields["method"])
def test_each_layer_scores_what_a_run_over_it_alone_scores(
    tiny_llama: Any, calibration: torch.Tensor, text: torch.Tensor, fields: dict[str, Any]
) -> None:
    model = tiny_llama(num_hidden_layers=4)
    before = copy.deepcopy(model.state_dict())
    dense, found, _ = scanned(model, Pruning(**fields, layers=(1, 3)), calibration, text)
    assert dense == pytest.approx(perplexity(model, text).window_nll, rel=1e-5)
    assert set(found) == {(layer, WHOLE) for layer in (1, 2, 3)}
    for (layer, _), row in found.items():
        nll, removed = alone(model, {**fields, "layers": (layer, layer)}, calibration, text)
        assert row.nll == pytest.approx(nll, rel=1e-4), layer
        assert row.removed == removed
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


@pytest.mark.parametrize("method", ["wanda", "l1"])
def test_parts_by_themselves_score_what_runs_over_that_part_score(
    tiny_llama: Any, calibration: torch.Tensor, text: torch.Tensor, method: str
) -> None:
    fields: dict[str, Any] = {"method": method, "ratio": 0.5} | ({"round_to": 1} if method == "l1" else {})
    model = tiny_llama()
    _, found, _ = scanned(model, Pruning(**fields), calibration, text, by_part=True)
    assert {part for _, part in found} == {WHOLE, "attention", "mlp"}
    for (layer, part), row in found.items():
        parts = ["attention", "mlp"] if part == WHOLE else [part]
        nll, removed = alone(model, {**fields, "parts": parts, "layers": (layer, layer)}, calibration, text)
        assert row.nll == pytest.approx(nll, rel=1e-4)
        assert row.removed == removed


def test_a_part_that_loses_nothing_costs_nothing_and_is_not_run(
    tiny_llama: Any, calibration: torch.Tensor, text: torch.Tensor
) -> None:
    fields: dict[str, Any] = {"method": "l1", "ratio": 0.4, "round_to": 1}  # of two KV groups: less than one
    model = tiny_llama()
    dense, found, shares = scanned(model, Pruning(**fields), calibration, text, by_part=True)
    for layer in (0, 1):
        assert found[layer, "attention"].nll == dense
        assert found[layer, "attention"].removed == 0
        assert found[layer, "mlp"] == Found(layer, "mlp", found[layer, WHOLE].nll, found[layer, WHOLE].removed)
        assert found[layer, WHOLE].nll == pytest.approx(
            alone(model, {**fields, "layers": (layer, layer)}, calibration, text)[0], rel=1e-4
        )
    assert shares[-2] == pytest.approx(1.0)


def test_depth_methods_leave_each_layer_out(tiny_llama: Any, calibration: torch.Tensor, text: torch.Tensor) -> None:
    model = tiny_llama(num_hidden_layers=3)
    _, found, _ = scanned(model, Pruning(method="block_influence", ratio=0.34), calibration, text)
    for (layer, _), row in found.items():
        without = copy.deepcopy(model)
        del without.model.layers[layer]
        for place, each in enumerate(without.model.layers):
            each.self_attn.layer_idx = place
        without.config.num_hidden_layers = 2
        assert row.nll == pytest.approx(perplexity(without, text).window_nll, rel=1e-4)
        assert row.removed == sum(each.numel() for each in model.model.layers[layer].parameters())


@pytest.mark.parametrize("model_type", ["gemma2", "phi3", "qwen3"])
def test_other_families_are_scanned_as_they_are_pruned(
    tiny_model: Any, calibration: torch.Tensor, text: torch.Tensor, model_type: str
) -> None:
    model = tiny_model(model_type)
    for fields in ({"method": "wanda", "ratio": 0.5}, {"method": "l2", "ratio": 0.5, "round_to": 1}):
        _, found, _ = scanned(model, Pruning(**fields, layers=(2, 2)), calibration, text)  # type: ignore[arg-type]
        nll, _ = alone(model, {**fields, "layers": (2, 2)}, calibration, text)
        assert found[2, WHOLE].nll == pytest.approx(nll, rel=1e-3)


def test_layers_that_are_done_are_passed_by_and_progress_never_goes_back(
    tiny_llama: Any, calibration: torch.Tensor, text: torch.Tensor
) -> None:
    pruning = Pruning(method="wanda", ratio=0.5)
    model = tiny_llama(num_hidden_layers=4)
    _, every, shares = scanned(model, pruning, calibration, text)
    _, rest, _ = scanned(model, pruning, calibration, text, done={0, 2})
    assert set(rest) == {(1, WHOLE), (3, WHOLE)}
    assert all(rest[key].nll == every[key].nll for key in rest)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 10


def test_a_refit_costs_less_than_none(tiny_llama: Any, calibration: torch.Tensor) -> None:
    model = tiny_llama()
    sampled = model.generate(
        torch.randint(3, 96, (24, 1), generator=torch.Generator().manual_seed(3)), max_new_tokens=20, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    costs = []
    for refit in (False, True):
        pruning = Pruning(method="l2", ratio=0.5, round_to=1, parts=("mlp",), reconstruct=refit)
        dense, found, _ = scanned(model, pruning, sampled, sampled)
        costs.append(sum(math.fsum(row.nll) - math.fsum(dense) for row in found.values()))
    assert costs[1] < costs[0]
