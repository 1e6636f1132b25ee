"""Criteria that look at inputs, against plain loops over what the library's own forward pass reads."""

import copy
from typing import Any

import pytest
import torch

from core.experiment import Pruning
from core.models.sizes import Architecture
from core.pruning.calibration import InputStats
from core.pruning.methods.ria import RIAOptions, ria
from core.pruning.prune import PruneOutcome, prune

PATHS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (5, 12), generator=torch.Generator().manual_seed(0))


def cut(model: Any, windows: torch.Tensor | None, seed: int = 0, **fields: Any) -> tuple[Any, PruneOutcome]:
    pruned = copy.deepcopy(model)
    architecture = Architecture.from_config(model.config.to_dict())
    return pruned, prune(pruned, Pruning(**fields), architecture=architecture, windows=windows, seed=seed, device="cpu")


def read_by(model: Any, windows: torch.Tensor, layer: int, role: str) -> torch.Tensor:
    """Everything that a linear layer reads in a pass over the whole model, (tokens, in), float64."""
    seen: list[torch.Tensor] = []
    linear = model.model.layers[layer].get_submodule(PATHS[role])
    handle = linear.register_forward_pre_hook(lambda m, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(windows)
    handle.remove()
    return seen[0].reshape(-1, linear.in_features).double()


def column_score(method: str, weight: torch.Tensor, x: torch.Tensor, j: int) -> float:
    column = [float(weight[i, j]) for i in range(weight.shape[0])]
    values = x[:, j].tolist()
    if method == "wanda_structured":
        return sum(abs(w) for w in column) * sum(v * v for v in values) ** 0.5
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1) * sum(w * w for w in column)


def standardised(scores: list[float]) -> list[float]:
    mean = sum(scores) / len(scores)
    deviation = (sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) ** 0.5
    return [(s - mean) / deviation for s in scores]


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
@pytest.mark.parametrize("method", ["wanda_structured", "flap"])
def test_units_with_the_best_columns_in_o_and_down_of_the_dense_model_stay(
    tiny_llama: Any, windows: torch.Tensor, method: str, batch_size: Any
) -> None:
    model = tiny_llama(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4)
    _, done = cut(model, windows, method=method, ratio=0.5, round_to=1, calibration={"batch_size": batch_size})
    for layer in range(3):
        for role, name, per_unit in (("o", "kv_heads", 8), ("down", "channels", 1)):
            weight = model.model.layers[layer].get_submodule(PATHS[role]).weight.detach()
            x = read_by(model, windows, layer, role)
            columns = [column_score(method, weight, x, j) for j in range(x.shape[1])]
            units = [sum(columns[u : u + per_unit]) for u in range(0, len(columns), per_unit)]
            best = sorted(range(len(units)), key=lambda u: -units[u])[: len(units) // 2]
            assert done.layers[layer][name] == sorted(best), (layer, role)


def test_flap_and_wanda_differ_where_an_input_is_large_but_constant(tiny_llama: Any, windows: torch.Tensor) -> None:
    """A bias makes channel 7 large everywhere: Wanda keeps it, FLAP calls it replaceable."""
    model = tiny_llama(mlp_bias=True)
    for layer in model.model.layers:
        layer.mlp.gate_proj.weight.data[7] = layer.mlp.up_proj.weight.data[7] = 0
        layer.mlp.gate_proj.bias.data[7] = layer.mlp.up_proj.bias.data[7] = 30
    fields = {"ratio": 0.25, "parts": ["mlp"], "round_to": 1}
    _, wanda = cut(model, windows, method="wanda_structured", **fields)
    _, flap = cut(model, windows, method="flap", **fields)
    assert all(7 in layer["channels"] for layer in wanda.layers)
    assert all(7 not in layer["channels"] for layer in flap.layers)


def test_flap_ranks_all_layers_by_standardised_fluctuation(tiny_llama: Any, windows: torch.Tensor) -> None:
    """Worked from the formula: the lowest of all z-scores go, until a third of the channels is gone."""
    model = tiny_llama(num_hidden_layers=3)
    model.model.layers[1].mlp.down_proj.weight.data *= 50  # its scale must not matter
    _, done = cut(model, windows, method="flap", ratio=1 / 3, parts=["mlp"], round_to=1, allocation="global")
    ranked = []
    for layer in range(3):
        weight = model.model.layers[layer].mlp.down_proj.weight.detach()
        x = read_by(model, windows, layer, "down")
        z = standardised([column_score("flap", weight, x, j) for j in range(48)])
        ranked += [(value, layer, j) for j, value in enumerate(z)]
    gone = sorted(ranked)[:48]
    for layer in range(3):
        expected = sorted(set(range(48)) - {j for _, at, j in gone if at == layer})
        assert done.layers[layer].get("channels", list(range(48))) == expected
    assert len({layer["mlp_after"] for layer in done.layers}) > 1


# --------------------------------------------------------------------------------------------------------------- masks


def test_ria_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0], [2.0, 2.0]])
    stats = InputStats.empty(2, "cpu")
    stats.add(torch.tensor([[4.0, 0.0], [0.0, 9.0]]))  # norms 4 and 9
    expected = [
        [(1 / 4 + 1 / 3) * 2, (3 / 4 + 3 / 5) * 3],
        [(2 / 4 + 2 / 3) * 2, (2 / 4 + 2 / 5) * 3],
    ]
    torch.testing.assert_close(ria(weight, stats, RIAOptions()), torch.tensor(expected))
    plain = [[1 / 4 + 1 / 3, 3 / 4 + 3 / 5], [2 / 4 + 2 / 3, 2 / 4 + 2 / 5]]
    torch.testing.assert_close(ria(weight, stats, RIAOptions(power=0)), torch.tensor(plain))


def test_ria_scores_rows_and_columns_that_are_all_zero_as_nothing() -> None:
    weight = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    stats = InputStats.empty(2, "cpu")
    stats.add(torch.ones(1, 2))
    assert ria(weight, stats, RIAOptions()).tolist() == [[0, 0], [0, 2]]


def naive_layers(model: Any, windows: torch.Tensor, score: Any) -> Any:
    """Layer by layer, each on what the pruned ones before it hand over: half of each matrix, by sorting."""
    model = copy.deepcopy(model)
    for layer in range(len(model.model.layers)):
        read = {role: read_by(model, windows, layer, role) for role in PATHS}
        for role, path in PATHS.items():
            weight = model.model.layers[layer].get_submodule(path).weight.data
            scores = score(weight.double(), read[role])
            order = scores.flatten().argsort(stable=True)
            weight.view(-1)[order[: weight.numel() // 2]] = 0
    return model


def test_ria_ranks_each_matrix_on_what_the_pruned_layers_before_hand_over(
    tiny_llama: Any, windows: torch.Tensor
) -> None:
    def score(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        size = weight.abs()
        return (size / size.sum(1, keepdim=True) + size / size.sum(0)) * x.norm(dim=0) ** 0.5

    model = tiny_llama(num_hidden_layers=3)
    pruned, _ = cut(model, windows, method="ria", ratio=0.5)
    expected = naive_layers(model, windows, score).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in pruned.state_dict().items())
    by_weight = naive_layers(model, windows, lambda weight, x: weight.abs()).state_dict()
    assert not all(torch.equal(weight, by_weight[name]) for name, weight in pruned.state_dict().items())


def test_random_weights_of_one_matrix_do_not_depend_on_the_range_and_are_spread_evenly(tiny_llama: Any) -> None:
    model = tiny_llama(num_hidden_layers=3)
    wide, _ = cut(model, None, method="random_weights", ratio=0.5)
    narrow, _ = cut(model, None, method="random_weights", ratio=0.5, layers=(2, 2))
    for role, path in PATHS.items():
        ours, theirs = (each.model.layers[2].get_submodule(path).weight for each in (wide, narrow))
        assert torch.equal(ours, theirs), role
    zeros = [(wide.model.layers[layer].mlp.gate_proj.weight == 0) for layer in range(3)]
    assert not torch.equal(zeros[0], zeros[1])
    weight = model.model.layers[0].mlp.gate_proj.weight.detach().abs()
    assert float(weight[~zeros[0]].mean()) == pytest.approx(float(weight.mean()), rel=0.1)


# ----------------------------------------------------------------------------------------------------------- sparsegpt


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_sparsegpt_works_on_what_the_pruned_layers_before_hand_over(
    tiny_llama: Any, windows: torch.Tensor, pattern: str
) -> None:
    """Each matrix alone, by its own H, in float64 and without blocks: these widths are one block."""
    model = tiny_llama(num_hidden_layers=3)
    fields = {"ratio": 0.5} if pattern == "unstructured" else {"pattern": pattern}
    pruned, _ = cut(model, windows, method="sparsegpt", calibration={"batch_size": 2}, **fields)
    naive = copy.deepcopy(model)
    for layer in range(3):
        read = {role: read_by(naive, windows, layer, role) for role in PATHS}
        for role, path in PATHS.items():
            linear = naive.model.layers[layer].get_submodule(path)
            linear.weight.data.copy_(naive_sparsegpt(linear.weight.detach().double(), read[role], pattern))
    for layer in range(3):
        for path in PATHS.values():
            ours, theirs = (each.model.layers[layer].get_submodule(path).weight for each in (pruned, naive))
            assert torch.equal(ours == 0, theirs == 0), (layer, path)
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)


def naive_sparsegpt(w: torch.Tensor, x: torch.Tensor, pattern: str) -> torch.Tensor:
    h = 2 / len(x) * x.T @ x
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    r = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    gone = torch.zeros_like(w, dtype=torch.bool)
    if pattern == "unstructured":
        order = (w / r.diagonal()).square().flatten().argsort(stable=True)
        gone.view(-1)[order[: w.numel() // 2]] = True
    for j in range(w.shape[1]):
        if pattern == "2:4" and j % 4 == 0:
            order = (w[:, j : j + 4] / r.diagonal()[j : j + 4]).square().argsort(dim=1, stable=True)
            gone[:, j : j + 4].scatter_(1, order[:, :2], True)
        error = torch.where(gone[:, j], w[:, j] / r[j, j], 0.0)
        w[:, j + 1 :] -= error[:, None] * r[j, j + 1 :]
        w[gone[:, j], j] = 0
    return w
