"""The layer loop against plain forward passes of the whole model."""

from typing import Any

import pytest
import torch

from core.errors import Cancelled, NumericalError
from core.models.families import family
from core.pruning.calibration import InputStats, advance, catch_inputs, input_statistics, windows_a_batch

LLAMA = family("llama")


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(num_hidden_layers=3)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (5, 12), generator=torch.Generator().manual_seed(0))


def caught(model: Any, windows: torch.Tensor, index: int, batch: int = 2) -> Any:
    return catch_inputs(LLAMA.backbone(model), LLAMA.layers(model), index, windows, batch, lambda done: None)


def ignore(done: int) -> None:
    pass


@pytest.mark.parametrize("index", [0, 2])
def test_what_is_caught_is_what_enters_that_layer_in_an_ordinary_forward_pass(
    model: Any, windows: torch.Tensor, index: int
) -> None:
    with torch.no_grad():
        expected = model(windows, output_hidden_states=True).hidden_states[index]
    torch.testing.assert_close(torch.cat(caught(model, windows, index).hidden), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_walking_the_layers_one_by_one_gives_the_whole_models_hidden_states(
    model: Any, windows: torch.Tensor, attention: str
) -> None:
    model.set_attn_implementation(attention)
    inputs = caught(model, windows, 0)
    for layer in LLAMA.layers(model):
        advance(layer, inputs, ignore)
    with torch.no_grad():
        expected = model.model(windows).last_hidden_state
        walked = model.model.norm(torch.cat(inputs.hidden))
    torch.testing.assert_close(walked, expected)


def test_norms_are_those_of_all_tokens_whatever_the_batch(model: Any, windows: torch.Tensor) -> None:
    layer = LLAMA.layers(model)[1]
    linears = LLAMA.linears(layer)
    seen: list[torch.Tensor] = []
    handle = linears["down"].register_forward_pre_hook(lambda m, arguments: seen.append(arguments[0].detach()))
    with torch.no_grad():
        model(windows)
    handle.remove()
    rows = torch.cat(seen).reshape(-1, 48).double()
    naive = torch.stack([torch.sqrt(sum(row[j] ** 2 for row in rows)) for j in range(48)])
    for batch in (1, 2, 5):
        stats = input_statistics(layer, linears, caught(model, windows, 1, batch), ignore)
        torch.testing.assert_close(stats["down"].norm.double(), naive, rtol=1e-5, atol=1e-6)
        assert stats["down"].tokens == 60


def test_roles_that_read_the_same_tensor_share_their_statistics(model: Any, windows: torch.Tensor) -> None:
    layer = LLAMA.layers(model)[0]
    stats = input_statistics(layer, LLAMA.linears(layer), caught(model, windows, 0), ignore)
    assert stats["q"] is stats["k"] is stats["v"]
    assert stats["gate"] is stats["up"]
    assert len({id(each) for each in stats.values()}) == 4


def test_hooks_are_gone_after_a_cancellation(model: Any, windows: torch.Tensor) -> None:
    def cancel(done: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        catch_inputs(LLAMA.backbone(model), LLAMA.layers(model), 2, windows, 2, cancel)
    layer, linears = LLAMA.layers(model)[0], LLAMA.linears(LLAMA.layers(model)[0])
    with pytest.raises(Cancelled):
        input_statistics(layer, linears, caught(model, windows, 0), cancel)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_progress_moves_inside_a_batch_and_ends_at_the_number_of_windows(model: Any, windows: torch.Tensor) -> None:
    told: list[float] = []
    catch_inputs(LLAMA.backbone(model), LLAMA.layers(model), 2, windows, 5, told.append)
    assert told == sorted(told)
    assert len(told) == 3
    assert told[-1] == 5


def test_inputs_that_are_not_finite_are_an_error_that_names_the_matrix(model: Any, windows: torch.Tensor) -> None:
    layer = LLAMA.layers(model)[0]
    layer.mlp.up_proj.weight.data[3] = float("inf")
    with pytest.raises(NumericalError, match="inputs of down"):
        input_statistics(layer, LLAMA.linears(layer), caught(model, windows, 0), ignore)


def test_norms_of_bfloat16_inputs_are_summed_in_higher_precision() -> None:
    stats = InputStats.empty(torch.nn.Linear(1, 1))
    for _ in range(8):
        stats.add(torch.ones(4096, 1, dtype=torch.bfloat16))  # a bfloat16 sum of ones stops at 256
    assert float(stats.norm) == pytest.approx(32768**0.5)


def test_an_explicit_batch_size_is_taken_and_auto_is_at_least_one_window() -> None:
    cpu = torch.device("cpu")
    assert windows_a_batch(7, 512, cpu) == 7
    assert windows_a_batch("auto", 512, cpu) == 4
    assert windows_a_batch("auto", 100_000, cpu) == 1
