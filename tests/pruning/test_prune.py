"""The engine against naive second opinions that share no code with it."""

import copy
from typing import Any

import pytest
import torch

from core.errors import InputError
from core.experiment import Pruning
from core.models.sizes import Architecture, LayerSizes
from core.pruning.prune import PruneOutcome, prune


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (5, 12), generator=torch.Generator().manual_seed(0))


def cut(model: Any, windows: torch.Tensor | None, **fields: Any) -> tuple[Any, PruneOutcome]:
    pruned = copy.deepcopy(model)
    architecture = Architecture.from_config(model.config.to_dict())
    pruning = Pruning(**fields)
    return pruned, prune(pruned, pruning, architecture=architecture, windows=windows, seed=0, device="cpu")


def paths(layer: Any) -> dict[str, Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj,
        "gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj,
    }  # fmt: skip


def remember(linear: Any, read: dict[str, torch.Tensor], role: str) -> Any:
    """Hook that keeps what the linear layer reads."""
    return linear.register_forward_hook(lambda m, arguments, out: read.__setitem__(role, arguments[0]))


def naive_wanda(model: Any, windows: torch.Tensor, first: int, last: int) -> Any:
    """For each layer in turn: a forward pass of the whole, so far pruned model; then half of each row, by sorting."""
    model = copy.deepcopy(model)
    for index in range(first, last + 1):
        linears = paths(model.model.layers[index])
        read: dict[str, torch.Tensor] = {}
        handles = [remember(linear, read, role) for role, linear in linears.items()]
        with torch.no_grad():
            model(windows)
        for handle in handles:
            handle.remove()
        for role, linear in linears.items():
            norms = read[role].reshape(-1, linear.in_features).pow(2).sum(0).sqrt()
            for row in linear.weight.data:
                order = (row.abs() * norms).argsort(stable=True)
                row[order[: len(row) // 2]] = 0
    return model


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize(("first", "last"), [(0, 2), (1, 2)])
def test_wanda_is_sequential_each_layer_sees_the_pruned_ones_before_it(
    tiny_llama: Any, windows: torch.Tensor, first: int, last: int, batch_size: Any
) -> None:
    model = tiny_llama(num_hidden_layers=3)
    pruned, _ = cut(
        model, windows, method="wanda", ratio=0.5, layers=(first, last), calibration={"batch_size": batch_size}
    )
    expected = naive_wanda(model, windows, first, last).state_dict()
    for name, weight in pruned.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_wanda_on_dense_activations_would_be_another_mask(tiny_llama: Any, windows: torch.Tensor) -> None:
    """So the test above can fail."""
    model = tiny_llama(num_hidden_layers=3)
    sequential = naive_wanda(model, windows, 0, 2).model.layers[2].mlp.up_proj.weight
    one_shot = naive_wanda(model, windows, 2, 2).model.layers[2].mlp.up_proj.weight
    assert not torch.equal(sequential == 0, one_shot == 0)


def test_magnitude_takes_the_smallest_of_each_matrix(tiny_llama: Any) -> None:
    model = tiny_llama()
    pruned, _ = cut(model, None, method="magnitude", ratio=0.3)
    for before, after in zip(model.model.layers, pruned.model.layers, strict=True):
        for role, linear in paths(before).items():
            values = linear.weight.detach().abs().flatten()
            gone = round(0.3 * values.numel() + 1e-9)
            expected = torch.where(linear.weight.abs() > values.sort().values[gone - 1], linear.weight, 0.0)
            assert torch.equal(paths(after)[role].weight, expected)


def unit_scores(model: Any, values: dict[tuple[int, str], torch.Tensor], layer: int) -> tuple[list[float], list[float]]:
    """Plain loops: the sum of `values` over each KV group (2, of 2 heads of 4 channels) and each MLP channel."""
    rows = {role: values[layer, role] for role in ("q", "k", "v", "o", "gate", "up", "down")}
    groups = []
    for g in range(2):
        total = sum(rows["o"][:, (2 * g + h) * 4 + c].sum() for h in range(2) for c in range(4))
        total += sum(rows["q"][(2 * g + h) * 4 + c].sum() for h in range(2) for c in range(4))
        total += sum(rows[role][g * 4 + c].sum() for role in ("k", "v") for c in range(4))
        groups.append(float(total))
    channels = [
        float(rows["gate"][c].sum() + rows["up"][c].sum() + rows["down"][:, c].sum()) for c in range(len(rows["gate"]))
    ]
    return groups, channels


def taylor_values(model: Any, windows: torch.Tensor, order: str) -> dict[tuple[int, str], torch.Tensor]:
    """|w·g| or w²·F of every linear weight, from the library's own loss."""
    weights = {
        (i, role): linear.weight for i, layer in enumerate(model.model.layers) for role, linear in paths(layer).items()
    }

    def gradient(batch: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(model(batch, labels=batch).loss, list(weights.values())))

    if order == "first":
        return {k: (w * g).abs().detach() for (k, w), g in zip(weights.items(), gradient(windows), strict=True)}
    squares = [gradient(window[None]) for window in windows]
    fisher = [torch.stack([g.square() for g in each]).mean(0) for each in zip(*squares, strict=True)]
    return {k: (w.square() * f).detach() for (k, w), f in zip(weights.items(), fisher, strict=True)}


@pytest.mark.parametrize("order", ["first", "second"])
def test_taylor_keeps_the_units_that_plain_loops_over_one_big_gradient_keep(
    tiny_llama: Any, windows: torch.Tensor, order: str
) -> None:
    model = tiny_llama(num_hidden_layers=3)
    _, done = cut(
        model, windows, method="taylor", options={"order": order}, ratio=0.5, round_to=1, calibration={"batch_size": 2}
    )
    values = taylor_values(model, windows, order)
    for layer in range(3):
        groups, channels = unit_scores(model, values, layer)
        report = done.layers[layer]
        assert report["kv_heads"] == [groups.index(max(groups))]
        assert report["channels"] == sorted(sorted(range(48), key=lambda c: -channels[c])[:24])


@pytest.mark.parametrize(("method", "power"), [("l1", 1), ("l2", 2)])
def test_l1_and_l2_keep_the_units_with_the_largest_sums(tiny_llama: Any, method: str, power: int) -> None:
    model = tiny_llama()
    _, done = cut(model, None, method=method, ratio=0.5, round_to=1)
    for i, layer in enumerate(model.model.layers):
        values = {(i, role): linear.weight.detach().abs() ** power for role, linear in paths(layer).items()}
        groups, channels = unit_scores(model, values, i)
        assert done.layers[i]["kv_heads"] == [groups.index(max(groups))]
        assert done.layers[i]["channels"] == sorted(sorted(range(48), key=lambda c: -channels[c])[:24])


def test_a_unit_whose_weights_are_nothing_goes_first(tiny_llama: Any, windows: torch.Tensor) -> None:
    model = tiny_llama()
    dead = [3, 11, 40]
    for layer in model.model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight.data[dead] = 0
        layer.mlp.down_proj.weight.data[:, dead] = 0
    for method in ("l1", "l2", "taylor"):
        pruned, done = cut(model, windows, method=method, ratio=3 / 48, round_to=1, parts=["mlp"])
        assert all(set(range(48)) - set(report["channels"]) == set(dead) for report in done.layers)
        with torch.no_grad():
            torch.testing.assert_close(pruned(windows).logits, model(windows).logits)


def test_random_cuts_of_one_layer_do_not_depend_on_the_range(tiny_llama: Any) -> None:
    model = tiny_llama(num_hidden_layers=4)
    _, wide = cut(model, None, method="random", ratio=0.5, layers=(0, 3))
    _, narrow = cut(model, None, method="random", ratio=0.5, layers=(2, 2))
    assert wide.layers[2] == narrow.layers[2]


def test_biases_of_removed_rows_go_with_them(tiny_llama: Any, windows: torch.Tensor) -> None:
    model = tiny_llama(attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    pruned, done = cut(model, windows, method="taylor", ratio=0.5, round_to=1)
    masked = copy.deepcopy(model)
    for report, layer in zip(done.layers, masked.model.layers, strict=True):
        heads = torch.zeros(4).index_fill(0, torch.tensor(report["query_heads"]), 1).repeat_interleave(4)
        channels = torch.zeros(48).index_fill(0, torch.tensor(report["channels"]), 1)
        layer.self_attn.o_proj.weight.data *= heads
        layer.mlp.down_proj.weight.data *= channels
    with torch.no_grad():
        torch.testing.assert_close(pruned(windows).logits, masked(windows).logits)
    assert pruned.model.layers[0].self_attn.k_proj.bias.shape == (4,)


def test_a_pruned_model_can_be_pruned_again(tiny_llama: Any, windows: torch.Tensor) -> None:
    once, _ = cut(tiny_llama(num_hidden_layers=3), windows, method="l1", ratio=0.5, round_to=1, layers=(1, 1))
    twice, done = cut(once, windows, method="taylor", ratio=0.5, round_to=1, layers=(1, 2), parts=["mlp"])
    assert [report["mlp_after"] for report in done.layers] == [48, 12, 24]
    with torch.no_grad():
        assert torch.isfinite(twice(windows).logits).all()


def test_what_could_not_be_removed_is_said(tiny_llama: Any) -> None:
    _, done = cut(tiny_llama(), None, method="l1", ratio=0.2, round_to=48)
    assert [warning.split(":")[0] for warning in done.warnings] == ["No head was removed", "No MLP channel was removed"]


def test_a_model_that_its_config_does_not_describe_is_refused_before_anything_is_cut(
    tiny_llama: Any, windows: torch.Tensor
) -> None:
    model = tiny_llama()
    wrong = Architecture.from_config(model.config.to_dict()).with_layers((LayerSizes(4, 2, 48), LayerSizes(4, 2, 40)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"layer 1 should have a gate matrix of \(40, 16\), but has \(48, 16\)"):
        prune(model, Pruning(method="l1"), architecture=wrong, windows=None, seed=0, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
