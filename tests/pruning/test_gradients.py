"""Gradients against torch's own, taken in one piece from the library's loss."""

from typing import Any

import pytest
import torch

from core.errors import Cancelled, NumericalError
from core.models.body import Resident
from core.models.families import family
from core.pruning import gradients, head
from core.pruning.gradients import micro_batch, weight_gradients

LLAMA = family("llama")
FAMILIES = ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(num_hidden_layers=3)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (6, 10), generator=torch.Generator().manual_seed(1))


def gather(model: Any, windows: torch.Tensor, keys: list[tuple[int, str]], device: str = "cpu", **options: Any) -> Any:
    """What is taken, by (layer, role)."""
    roles: dict[int, list[str]] = {}
    for layer, role in keys:
        roles.setdefault(layer, []).append(role)
    found: dict[tuple[int, str], Any] = {}

    def take(layer: int, by_role: Any) -> None:
        assert not set(found) & {(layer, role) for role in by_role}, "once a layer"
        found.update({(layer, role): each for role, each in by_role.items()})

    weight_gradients(Resident(model, device), roles, windows, take, **options)
    return found


def whole_gradient(model: Any, windows: torch.Tensor, layer: int, role: str) -> torch.Tensor:
    """∂L/∂W by one backward pass of the library's own mean loss over all windows at once."""
    matrix = family(model.config.model_type).matrices(model.model.layers[layer])[role]
    return torch.autograd.grad(model(windows, labels=windows).loss, matrix.linear.weight)[0][matrix.rows]


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
    monkeypatch.setattr(head, "_LOGITS_AT_ONCE", {"cpu": 96 * 7})  # 7 of 54 rows at once, the last piece smaller
    found = gather(model, windows, KEYS)
    for key in KEYS:
        torch.testing.assert_close(found[key].gradient, whole_gradient(model, windows, *key), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_its_own_gradients(tiny_model: Any, windows: torch.Tensor, name: str) -> None:
    model = tiny_model(name)
    if name == "gemma2":
        model.set_attn_implementation("eager")
    keys = [(layer, role) for layer in range(4) for role in ("q", "k", "v", "o", "gate", "up", "down")]
    found = gather(model, windows, keys, batch_size=4)
    for key in keys:
        expected = whole_gradient(model, windows, *key)
        assert (found[key].gradient - expected).norm() <= 1e-3 * expected.norm(), key


@pytest.mark.parametrize("fisher", [False, True])
@pytest.mark.parametrize("stored", [1e-9, 0.1, 1e9])
@pytest.mark.parametrize("summed", [1e-9, 0.3, 1e9])
def test_chunks_of_windows_and_groups_of_layers_change_nothing(
    model: Any, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch, stored: float, summed: float, fisher: bool
) -> None:
    expected = gather(model, windows, KEYS, batch_size=2, fisher=fisher)
    monkeypatch.setattr(gradients, "_STORED", stored)
    monkeypatch.setattr(gradients, "_SUMMED", summed)
    passes: list[int] = []
    embedding = model.model.embed_tokens.register_forward_hook(lambda m, a, o: passes.append(len(o)))
    found = gather(model, windows, KEYS, batch_size=2, fisher=fisher)
    embedding.remove()
    for key in KEYS:
        torch.testing.assert_close(found[key].gradient, expected[key].gradient, rtol=1e-5, atol=1e-7)
        assert (found[key].fisher is not None) == fisher
        if fisher:
            torch.testing.assert_close(found[key].fisher, expected[key].fisher, rtol=1e-5, atol=1e-9)
    if summed == 1e-9 and stored != 0.1:  # two layers are two groups, and each reads all windows unless they are held
        assert sum(passes) == (len(windows) if stored == 1e9 else 2 * len(windows))
    if summed == 1e9:
        assert sum(passes) == len(windows)


def test_fisher_is_the_mean_of_squared_gradients_of_single_windows_not_the_square_of_the_mean(
    model: Any, windows: torch.Tensor
) -> None:
    found = gather(model, windows, KEYS, fisher=True, batch_size=4)
    for key in KEYS:
        single = torch.stack([whole_gradient(model, window[None], *key) for window in windows])
        torch.testing.assert_close(found[key].fisher, single.square().mean(0), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(found[key].gradient, single.mean(0), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(found[key].fisher, single.mean(0).square())


def test_only_the_chosen_weights_ever_ask_for_a_gradient_and_the_model_is_left_as_it_was(
    model: Any, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" not in name)  # some differ, so that a reset to True would show
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    asked: dict[str, set[str]] = {}
    real = torch.autograd.grad

    def look(output: Any, sources: Any, *rest: Any, **more: Any) -> Any:
        parameters = {id(p): name for name, p in model.named_parameters()}
        names = {
            parameters[id(each)]
            for each in (sources if isinstance(sources, list) else [sources])
            if id(each) in parameters
        }
        of_layers = {n for n, p in model.named_parameters() if p.requires_grad and ".layers." in n}
        for name in names:
            layer = name.split(".")[2]
            asked.setdefault(layer, set()).update(n for n in of_layers if n.split(".")[2] == layer)
        return real(output, sources, *rest, **more)

    monkeypatch.setattr(torch.autograd, "grad", look)
    gather(model, windows, KEYS)
    assert asked == {
        "1": {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.o_proj.weight"},
        "2": {"model.layers.2.mlp.down_proj.weight"},
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


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_no_trace(model: Any, windows: torch.Tensor) -> None:
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="nan or inf"):
        gather(model, windows, KEYS)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


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


def test_progress_rises_through_chunks_and_groups_too(
    model: Any, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "_STORED", 1e-9)
    monkeypatch.setattr(gradients, "_SUMMED", 1e-9)
    told: list[float] = []
    gather(model, windows, KEYS, progress=told.append, batch_size=2)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(6)


def test_a_layer_is_at_its_place_when_its_gradients_are_taken_and_layers_come_from_the_last(
    model: Any, windows: torch.Tensor
) -> None:
    order: list[int] = []
    roles = {0: ["q"], 1: [], 2: ["down", "up"]}
    weight_gradients(Resident(model, "cpu"), roles, windows, lambda index, found: order.append(index))
    assert order == [2, 0]


def test_single_windows_are_differentiated_where_their_squares_are_wanted() -> None:
    cpu = torch.device("cpu")
    assert micro_batch("auto", 64, False, cpu) == gradients._TOKENS_A_BATCH["cpu"] // 64
    assert micro_batch("auto", 5000, False, cpu) == 1
    assert micro_batch(8, 64, True, cpu) == 1


@pytest.mark.gpu
def test_small_gradients_of_float16_weights_survive_on_a_gpu(model: Any, windows: torch.Tensor) -> None:
    expected = {key: whole_gradient(model, windows, *key) for key in KEYS}
    found = gather(model.half(), windows, KEYS, device="cuda")
    for key in KEYS:
        error = (found[key].gradient.cpu() - expected[key]).norm() / expected[key].norm()
        assert error < 0.1  # activations in bfloat16 where the GPU has it
