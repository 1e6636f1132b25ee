"""Gradients against torch's own, taken in one piece from the library's loss."""

from typing import Any

import pytest
import torch

from core.errors import Cancelled, NumericalError
from core.models.families import family
from core.pruning import gradients
from core.pruning.gradients import weight_gradients

LLAMA = family("llama")


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(num_hidden_layers=3)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (6, 10), generator=torch.Generator().manual_seed(1))


def gather(model: Any, windows: torch.Tensor, keys: list[tuple[int, str]], **options: Any) -> Any:
    linears = {(layer, role): LLAMA.linears(LLAMA.layers(model)[layer])[role] for layer, role in keys}
    settings = {"fisher": False, "batch_size": "auto", "progress": lambda done: None, **options}
    return weight_gradients(
        model, LLAMA.backbone(model), LLAMA.layers(model), LLAMA.head(model), linears, windows, **settings
    )


def whole_gradient(model: Any, windows: torch.Tensor, layer: int, role: str) -> torch.Tensor:
    """∂L/∂W by one backward pass of the library's own mean loss over all windows at once."""
    weight = LLAMA.linears(LLAMA.layers(model)[layer])[role].weight
    return torch.autograd.grad(model(windows, labels=windows).loss, weight)[0]


KEYS = [(1, "q"), (1, "o"), (2, "down")]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_micro_batches_of_any_size_sum_to_the_gradient_of_the_mean_loss(
    tiny_llama: Any, windows: torch.Tensor, batch_size: Any, tied: bool
) -> None:
    model = tiny_llama(num_hidden_layers=3, tie_word_embeddings=tied)
    found = gather(model, windows, KEYS, batch_size=batch_size)
    for key in KEYS:
        torch.testing.assert_close(found[key].gradient, whole_gradient(model, windows, *key), rtol=1e-4, atol=1e-6)
        assert found[key].fisher is None


def test_logits_in_small_pieces_give_the_same_gradient(
    model: Any, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "_LOGITS_AT_ONCE", {"cpu": 96 * 7})  # 7 of 54 rows at once, the last piece smaller
    found = gather(model, windows, KEYS)
    for key in KEYS:
        torch.testing.assert_close(found[key].gradient, whole_gradient(model, windows, *key), rtol=1e-4, atol=1e-6)


def test_fisher_is_the_mean_of_squared_gradients_of_single_windows_not_the_square_of_the_mean(
    model: Any, windows: torch.Tensor
) -> None:
    found = gather(model, windows, KEYS, fisher=True, batch_size=4)
    for key in KEYS:
        single = torch.stack([whole_gradient(model, window[None], *key) for window in windows])
        torch.testing.assert_close(found[key].fisher, single.square().mean(0), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found[key].gradient, single.mean(0), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(found[key].fisher, single.mean(0).square())


def test_only_the_chosen_weights_ever_hold_a_gradient_and_the_model_is_left_as_it_was(
    model: Any, windows: torch.Tensor
) -> None:
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    asked: set[str] = set()

    def look(done: float) -> None:
        asked.update(name for name, p in model.named_parameters() if p.requires_grad)

    gather(model, windows, KEYS, progress=look)
    assert asked == {
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
    }
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_get_float32_sums_and_come_back_bit_identical(
    tiny_llama: Any, windows: torch.Tensor, dtype: torch.dtype
) -> None:
    model = tiny_llama(num_hidden_layers=3).to(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = gather(model, windows, KEYS, batch_size=2)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, before[name])
    exact = model.float()
    for key in KEYS:
        expected = whole_gradient(exact, windows, *key)
        assert found[key].gradient.dtype == torch.float32
        error = (found[key].gradient - expected).norm() / expected.norm()
        assert error < (0.1 if dtype == torch.bfloat16 else 1e-3)


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_no_hooks(model: Any, windows: torch.Tensor) -> None:
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="nan or inf"):
        gather(model, windows, KEYS)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_cancellation_in_the_backward_pass_comes_through(model: Any, windows: torch.Tensor) -> None:
    def cancel(done: float) -> None:
        if done > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        gather(model, windows, KEYS, progress=cancel, batch_size=2)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_progress_rises_to_the_number_of_windows(model: Any, windows: torch.Tensor) -> None:
    told: list[float] = []
    gather(model, windows, KEYS, progress=told.append, batch_size=4)
    assert told == sorted(told)
    assert told[-1] == 6
    assert len(set(told)) > 4


@pytest.mark.gpu
def test_float16_on_a_gpu_scales_the_loss_so_that_small_gradients_survive(model: Any, windows: torch.Tensor) -> None:
    expected = {key: whole_gradient(model, windows, *key) for key in KEYS}
    found = gather(model.half().cuda(), windows.cuda(), KEYS)
    for key in KEYS:
        error = (found[key].gradient.cpu() - expected[key]).norm() / expected[key].norm()
        assert error < 0.02
