"""The walk, layer by layer, against plain forward passes of the whole model."""

from typing import Any

import pytest
import torch

from core.errors import Cancelled, NumericalError
from core.models.body import Resident
from core.pruning import calibration
from core.pruning.calibration import InputStats, Stream, Walk, add_gram, pass_dtype, windows_a_batch

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(num_hidden_layers=3)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (5, 12), generator=torch.Generator().manual_seed(0))


def walk_of(model: Any, windows: torch.Tensor, batch: int | str = 2, **more: Any) -> Walk:
    return Walk.over(Resident(model, "cpu"), windows, batch, **more)


def walked(walk: Walk, until: int) -> Stream:
    """What enters layer `until`."""
    stream = walk.enter()
    for index in range(until):
        with walk.body.at(index) as layer:
            walk.advance(index, layer, stream)
    return stream


def joined(stream: Stream) -> torch.Tensor:
    return torch.cat(stream.batches)


def plain_states(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states that enter each layer, and at last those that leave the last one, by the layers' own hooks."""
    layers = list(model.model.layers)
    entering: list[torch.Tensor] = []
    leaving: list[torch.Tensor] = []

    def before(module: Any, positional: Any, named: Any) -> None:
        entering.append(positional[0] if positional else named["hidden_states"])

    def after(module: Any, positional: Any, output: Any) -> None:
        leaving.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(after))
    with torch.no_grad():
        model(windows)
    for handle in handles:
        handle.remove()
    return [*entering, *leaving]


def plain_inputs(model: Any, windows: torch.Tensor, index: int, path: str) -> torch.Tensor:
    """Everything that a linear layer reads, (tokens, in), in float64."""
    seen: list[torch.Tensor] = []
    linear = model.model.layers[index].get_submodule(path)
    handle = linear.register_forward_pre_hook(lambda m, arguments: seen.append(arguments[0].detach()))
    with torch.no_grad():
        model(windows)
    handle.remove()
    return torch.cat(seen).flatten(0, 1).double()


# ---------------------------------------------------------------------------------------------------------- the passes


@pytest.mark.parametrize("batch", [1, 2, 5, "auto"])
def test_what_enters_is_what_enters_the_first_layer_of_an_ordinary_pass(
    model: Any, windows: torch.Tensor, batch: int | str
) -> None:
    stream = walk_of(model, windows, batch).enter()
    torch.testing.assert_close(joined(stream), plain_states(model, windows)[0])
    assert len(stream) == {1: 5, 2: 3, 5: 1, "auto": 1}[batch]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_walking_the_layers_one_by_one_gives_the_whole_models_hidden_states(
    tiny_model: Any, windows: torch.Tensor, name: str, attention: str
) -> None:
    """Windows of 12 tokens are longer than the sliding windows of these models."""
    model = tiny_model(name)
    if attention == "sdpa" and name == "gemma2":
        pytest.skip("leaves out the cap on attention scores")
    model.set_attn_implementation(attention)
    walk = walk_of(model, windows)
    expected = plain_states(model, windows)
    stream = walk.enter()
    for index in range(4):
        torch.testing.assert_close(joined(stream), expected[index], rtol=1e-4, atol=1e-5)
        with walk.body.at(index) as layer:
            walk.advance(index, layer, stream)
    torch.testing.assert_close(joined(stream), expected[4], rtol=1e-4, atol=1e-5)


def test_without_the_sliding_window_the_states_would_be_others(tiny_model: Any, windows: torch.Tensor) -> None:
    """So the test above can fail for a wrong mask."""
    near, far = tiny_model("mistral"), tiny_model("mistral", sliding_window=None)
    assert all(torch.equal(a, b) for a, b in zip(near.parameters(), far.parameters(), strict=True))
    assert not torch.allclose(plain_states(near, windows)[-1], plain_states(far, windows)[-1])


def test_a_fork_goes_its_own_way(model: Any, windows: torch.Tensor) -> None:
    walk = walk_of(model, windows)
    stream = walk.enter()
    before, fork = joined(stream), stream.fork()
    walk.advance(0, model.model.layers[0], fork)
    assert torch.equal(joined(stream), before)
    assert not torch.equal(joined(fork), before)


def test_other_windows_can_enter_than_those_of_the_walk(model: Any, windows: torch.Tensor) -> None:
    walk = walk_of(model, windows)
    stream = walk.enter(windows=windows[3:, :7])
    walk.advance(0, model.model.layers[0], stream)
    torch.testing.assert_close(joined(stream), plain_states(model, windows[3:, :7])[1])


def test_the_layers_run_their_own_forward_again_afterwards(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        before = model(windows).logits
        walk_of(model, windows).enter()
        assert torch.equal(model(windows).logits, before)
    assert not any("forward" in vars(layer) for layer in model.model.layers)


# ------------------------------------------------------------------------------------------------------- the statistics


@pytest.mark.parametrize(
    ("role", "path"), [("q", "self_attn.q_proj"), ("o", "self_attn.o_proj"), ("down", "mlp.down_proj")]
)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_statistics_are_those_of_all_tokens_whatever_the_batch(
    model: Any, windows: torch.Tensor, role: str, path: str, batch: int
) -> None:
    walk = walk_of(model, windows, batch)
    stats = walk.statistics(1, model.model.layers[1], [role], walked(walk, 1), ["moments", "gram"])[role]
    x = plain_inputs(model, windows, 1, path)
    naive = torch.stack([torch.sqrt(sum(row[j] ** 2 for row in x)) for j in range(x.shape[1])])
    torch.testing.assert_close(stats.norm.double(), naive, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats.variance.double(), x.var(dim=0, unbiased=True), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(stats.gram.double(), x.T @ x, rtol=1e-4, atol=1e-4)
    assert torch.equal(stats.gram, stats.gram.T)
    assert stats.tokens == 60


def test_statistics_of_several_batches_can_be_gathered_in_the_pass_that_advances(
    model: Any, windows: torch.Tensor
) -> None:
    walk = walk_of(model, windows)
    stream, still = walked(walk, 1), walked(walk, 1)
    moving = walk.statistics(1, model.model.layers[1], ["down"], stream, advance=True)["down"]
    standing = walk.statistics(1, model.model.layers[1], ["down"], still)["down"]
    torch.testing.assert_close(joined(stream), plain_states(model, windows)[2])
    torch.testing.assert_close(joined(still), plain_states(model, windows)[1])
    assert torch.equal(moving.norm, standing.norm)


@pytest.mark.parametrize("tokens", [(40,), (1, 39), (7, 13, 20), (1,) * 40])
def test_variance_is_exact_whatever_the_batching_even_far_from_zero(tokens: tuple[int, ...]) -> None:
    """Σx² − (Σx)²/n in float32 would lose a spread of 0.01 around 1000 altogether."""
    x = 1000 + 0.01 * torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.float()
    stats = InputStats.empty(3, "cpu", ["moments"])
    for part in x.split(list(tokens)):
        stats.add(part)
    torch.testing.assert_close(stats.variance.double(), x.double().var(dim=0), rtol=2e-2, atol=0)
    assert stats.mean is not None
    torch.testing.assert_close(stats.mean, x.double().mean(dim=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [3, 256, 300, 520])
def test_the_gram_matrix_is_whole_though_only_blocks_above_its_diagonal_are_multiplied(width: int) -> None:
    x = torch.randn(2, 50, width, generator=torch.Generator().manual_seed(0))
    stats = InputStats.empty(width, "cpu", ["gram"])
    for part in x:
        stats.add(part)
    rows = x.flatten(0, 1).double()
    torch.testing.assert_close(stats.gram.double(), rows.T @ rows, rtol=1e-4, atol=1e-3)
    stats.add(x[0])  # after it was read once
    torch.testing.assert_close(stats.gram.double(), rows.T @ rows + rows[:50].T @ rows[:50], rtol=1e-4, atol=1e-3)


def test_products_with_other_rows_are_not_symmetric() -> None:
    x, y = torch.randn(20, 300), torch.randn(20, 300)
    gram = torch.zeros(300, 300)
    add_gram(gram, x, y)
    add_gram(gram, x, y)
    torch.testing.assert_close(gram, 2 * x.T @ y)


def test_what_was_not_gathered_is_asked_for_by_name() -> None:
    stats = InputStats.empty(3, "cpu")
    with pytest.raises(ValueError, match="needs moments"):
        _ = stats.variance
    with pytest.raises(ValueError, match="needs gram"):
        _ = stats.gram


def test_norms_of_bfloat16_inputs_are_summed_in_higher_precision() -> None:
    stats = InputStats.empty(1, "cpu", ["gram"])
    for _ in range(8):
        stats.add(torch.ones(4096, 1, dtype=torch.bfloat16))  # a bfloat16 sum of ones stops at 256
    assert float(stats.norm) == pytest.approx(32768**0.5)
    assert float(stats.gram) == 32768


def test_roles_that_read_the_same_tensor_share_their_statistics(model: Any, windows: torch.Tensor) -> None:
    walk = walk_of(model, windows)
    roles = ("q", "k", "v", "o", "gate", "up", "down")
    stats = walk.statistics(0, model.model.layers[0], roles, walk.enter())
    assert stats["q"] is stats["k"] is stats["v"]
    assert stats["gate"] is stats["up"]
    assert len({id(each) for each in stats.values()}) == 4


# ------------------------------------------------------------------------------------------------ precision and storage


def test_passes_of_a_float32_model_in_bfloat16_leave_its_weights_alone_and_sum_in_float32(
    model: Any, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = walk_of(model, windows)
    expected = exact.statistics(1, model.model.layers[1], ["down"], walked(exact, 1), ["gram"])["down"]
    monkeypatch.setattr(calibration, "_fast_bfloat16", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    walk = walk_of(model, windows)
    assert walk.dtype == torch.bfloat16
    stream = walked(walk, 1)
    found = walk.statistics(1, model.model.layers[1], ["down"], stream, ["gram"], advance=True)["down"]
    assert {each.dtype for each in stream.batches} == {torch.bfloat16}
    assert found.gram.dtype == found.norm.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (found.norm - expected.norm).norm() < 0.03 * expected.norm.norm()
    assert not torch.equal(found.norm, expected.norm)


def test_only_float32_models_on_cpus_that_multiply_bfloat16_are_walked_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(calibration, "_fast_bfloat16", lambda fast=fast: fast)
        assert pass_dtype(torch.float32, "cpu") == expected
        assert pass_dtype(torch.float16, "cpu") == torch.float16
        assert pass_dtype(torch.float32, "cuda") == torch.float32


def test_hidden_states_wait_where_they_are_told_to(model: Any, windows: torch.Tensor) -> None:
    stream = walk_of(model, windows, store="meta").enter()
    assert {each.device.type for each in stream.batches} == {"meta"}
    assert {each.device.type for each in walk_of(model, windows).enter().batches} == {"cpu"}


@pytest.mark.gpu
def test_hidden_states_of_a_gpu_may_wait_in_host_memory(model: Any, windows: torch.Tensor) -> None:
    body = Resident(model, "cuda", whole=False)
    streams = []
    for store in ("cpu", "cuda"):
        walk = Walk.over(body, windows, 2, store=store)
        stream = walk.enter()
        for index in range(3):
            with body.at(index) as layer:
                walk.advance(index, layer, stream)
        assert {each.device.type for each in stream.batches} == {store}
        streams.append(joined(stream).cpu())
    assert torch.equal(*streams)


def test_an_explicit_batch_size_is_taken_and_auto_is_at_least_one_window() -> None:
    cpu = torch.device("cpu")
    assert windows_a_batch(7, 512, cpu) == 7
    assert windows_a_batch("auto", 512, cpu) == 4
    assert windows_a_batch("auto", 100_000, cpu) == 1


# ------------------------------------------------------------------------------------------------ errors and progress


def test_nothing_is_left_on_the_model_after_a_cancellation(model: Any, windows: torch.Tensor) -> None:
    def cancel(done: float) -> None:
        raise Cancelled

    walk = walk_of(model, windows)
    with pytest.raises(Cancelled):
        walk.enter(cancel)
    stream = walk.enter()
    for advance in (True, False):
        with pytest.raises(Cancelled):
            walk.statistics(0, model.model.layers[0], ["q", "down"], stream, progress=cancel, advance=advance)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_an_error_inside_the_embedding_leaves_the_layers_forward_in_place(model: Any, windows: torch.Tensor) -> None:
    with pytest.raises(IndexError):
        walk_of(model, windows + 1000).enter()
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_inputs_that_are_not_finite_are_an_error_that_names_the_matrix_and_the_layer(
    model: Any, windows: torch.Tensor
) -> None:
    model.model.layers[0].mlp.up_proj.weight.data[3] = float("inf")
    walk = walk_of(model, windows)
    with pytest.raises(NumericalError, match="inputs of down in layer 0"):
        walk.statistics(0, model.model.layers[0], ["q", "gate", "down"], walk.enter())


def test_progress_counts_windows_on_entry_and_batches_in_a_layer(model: Any, windows: torch.Tensor) -> None:
    entered: list[float] = []
    walk = walk_of(model, windows)
    stream = walk.enter(entered.append)
    assert entered == [2, 4, 5]
    for told, passing in (
        ([], lambda p: walk.statistics(0, model.model.layers[0], ["q"], stream, progress=p)),
        ([], lambda p: walk.advance(0, model.model.layers[0], stream, p)),
    ):
        passing(told.append)
        assert told == [1, 2, 3]
