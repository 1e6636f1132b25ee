"""The refit of o and down, against least squares written anew, and what it must leave alone."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.errors import Cancelled, NumericalError
from core.experiment import Pruning
from core.models.body import Resident
from core.models.families import family
from core.models.sizes import Architecture
from core.models.streaming import Source, Streamed, Writer
from core.pruning import reconstruction
from core.pruning.prune import PruneOutcome, prune
from core.pruning.reconstruction import Sums

ROOM = {"num_hidden_layers": 4, "hidden_size": 16, "intermediate_size": 48}


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 96, (16, 24), generator=torch.Generator().manual_seed(0))


def cut(model: Any, windows: Tensor, **fields: Any) -> tuple[Any, PruneOutcome]:
    fields = {"method": "l2", "ratio": 0.5, "round_to": 1, "reconstruct": True, **fields}
    more = {key: fields.pop(key) for key in ("progress", "store") if key in fields}
    architecture = Architecture.from_config(model.config.to_dict())
    pruned = copy.deepcopy(model)
    done = prune(pruned, Pruning(**fields), architecture=architecture, windows=windows, seed=0, device="cpu", **more)
    return pruned, done


def layers(model: Any) -> list[Any]:
    return family(model.config.model_type).layers(model)


@torch.no_grad()
def logits(model: Any, windows: Tensor) -> Tensor:
    return model(windows).logits


# --------------------------------------------------------------------------------------------------- the arithmetic


def seen(x: Tensor, r: Tensor, weight: Tensor) -> Sums:
    sums = Sums.empty(weight)
    sums.add(x, r)
    return sums


def test_without_a_ridge_it_is_least_squares_on_the_kept_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "RIDGE", 1e-12)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 9, generator=generator)
    x, r = torch.randn(6, 11, 9, generator=generator), torch.randn(6, 11, 5, generator=generator)
    kept = torch.tensor([0, 2, 3, 7])
    rows, gains = x[:, 1:].reshape(-1, 9).double(), r[:, 1:].reshape(-1, 5).double()
    expected = torch.linalg.lstsq(rows[:, kept], rows @ weight.double().T + gains).solution.T
    found = seen(x, r, weight).refitted(weight, kept, pytest.fail)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_ridge_holds_the_weights_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 9, generator=generator)
    x, r = torch.randn(6, 11, 9, generator=generator), torch.randn(6, 11, 5, generator=generator)
    kept, gone = torch.tensor([0, 2, 3, 7]), torch.tensor([1, 4, 5, 6, 8])
    rows, gains = x[:, 1:].reshape(-1, 9).double(), r[:, 1:].reshape(-1, 5).double()
    ridge = (reconstruction.RIDGE * rows[:, kept].square().sum(dim=0).mean()).sqrt()
    missing = rows[:, gone] @ weight[:, gone].double().T + gains
    left = torch.cat([rows[:, kept], ridge * torch.eye(4, dtype=torch.float64)])
    change = torch.linalg.lstsq(left, torch.cat([missing, torch.zeros(4, 5, dtype=torch.float64)])).solution.T
    found = seen(x, r, weight).refitted(weight, kept, pytest.fail)
    torch.testing.assert_close(found, weight[:, kept].double() + change, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(reconstruction, "RIDGE", 1e9)
    held = seen(x, r, weight).refitted(weight, kept, pytest.fail)
    torch.testing.assert_close(held, weight[:, kept].double(), rtol=1e-4, atol=1e-4)


def test_columns_that_are_combinations_of_others_are_made_up_for_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "RIDGE", 1e-10)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(4, 33, 6, generator=generator)
    x = torch.cat([basis, basis @ torch.randn(6, 3, generator=generator)], dim=-1)
    weight = torch.randn(5, 9, generator=generator)
    kept = torch.arange(6)
    found = seen(x, torch.zeros(4, 33, 5), weight).refitted(weight, kept, pytest.fail)
    torch.testing.assert_close(basis @ found.float().T, x @ weight.T, rtol=1e-3, atol=1e-3)


def test_the_first_token_of_each_window_does_not_count() -> None:
    x, r, weight = torch.randn(4, 9, 6), torch.randn(4, 9, 5), torch.randn(5, 6)
    kept = torch.tensor([0, 1, 4])
    before = seen(x, r, weight).refitted(weight, kept, pytest.fail)
    x[:, 0], r[:, 0] = 1e4, -1e4
    torch.testing.assert_close(seen(x, r, weight).refitted(weight, kept, pytest.fail), before)


def test_half_precision_inputs_are_summed_in_float32() -> None:
    x, r, weight = torch.randn(8, 65, 6), torch.randn(8, 65, 5), torch.randn(5, 6)
    kept = torch.tensor([0, 1, 4])
    x = x.bfloat16()
    half = seen(x, r, weight).refitted(weight, kept, pytest.fail)
    torch.testing.assert_close(half, seen(x.float(), r, weight).refitted(weight, kept, pytest.fail))


# ----------------------------------------------------------------------------------------------------- never silent


def failing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[float]:
    """torch's Cholesky says that it failed, so many times; returns the diagonal means it was given."""
    true, given = torch.linalg.cholesky_ex, []

    def cholesky_ex(a: Tensor) -> Any:
        given.append(float(a.diagonal().mean()))
        factor, info = true(a)
        return factor, torch.ones_like(info) if len(given) <= times else info

    monkeypatch.setattr(torch.linalg, "cholesky_ex", cholesky_ex)
    return given


def test_where_a_gram_matrix_cannot_be_factorised_the_damping_grows_and_the_outcome_says_so(
    tiny_llama: Any, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = failing(monkeypatch, 2)
    _, done = cut(tiny_llama(**ROOM), windows, parts=["mlp"])
    assert given[1] / given[0] == pytest.approx((1 + 10 * reconstruction.RIDGE) / (1 + reconstruction.RIDGE))
    said = [warning for warning in done.warnings if "damping" in warning]
    assert len(said) == 2
    assert all("Layer 0, refit of down" in warning for warning in said)


def test_after_three_tries_it_is_an_error(tiny_llama: Any, windows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 3)
    with pytest.raises(NumericalError, match="could not be factorised"):
        cut(tiny_llama(**ROOM), windows)


def test_calibration_text_that_gives_nan_is_an_error(tiny_llama: Any, windows: Tensor) -> None:
    model = tiny_llama(**ROOM)
    layers(model)[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="nan or inf"):
        cut(model, windows, method="random")


# -------------------------------------------------------------------------------------------------- a whole model


@pytest.mark.parametrize(
    "settings", [{}, {"heads": "query_heads"}, {"allocation": "global"}, {"parts": ["attention"]}], ids=str
)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_a_refitted_model_is_nearer_to_the_dense_one_in_every_family(
    tiny_model: Any, windows: Tensor, model_type: str, settings: dict[str, Any]
) -> None:
    model = tiny_model(model_type, intermediate_size=64)
    dense = logits(model, windows)

    def error(reconstruct: bool) -> float:
        pruned, done = cut(model, windows, reconstruct=reconstruct, method="random", ratio=0.5, **settings)
        assert done.params_after < done.params_before
        return float((logits(pruned, windows) - dense).square().mean())

    assert error(True) < error(False)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3"])
def test_what_is_not_cut_keeps_every_bit(tiny_model: Any, windows: Tensor, model_type: str) -> None:
    model = tiny_model(model_type)
    pruned, _ = cut(model, windows, layers=(1, 2), parts=["mlp"])
    after = pruned.state_dict()
    for name, before in model.state_dict().items():
        if not any(f"layers.{i}.mlp" in name for i in (1, 2)):
            assert torch.equal(after[name], before), name
    assert not torch.equal(after["model.layers.1.mlp.down_proj.weight"], before)


def test_the_kept_units_are_those_of_the_criterion(tiny_llama: Any, windows: Tensor) -> None:
    model = tiny_llama(**ROOM)
    plain, without = cut(model, windows, reconstruct=False)
    refitted, done = cut(model, windows)
    assert done.layers == without.layers
    for ours, theirs in zip(layers(refitted), layers(plain), strict=True):
        for name in ("q_proj", "k_proj", "v_proj"):
            assert torch.equal(getattr(ours.self_attn, name).weight, getattr(theirs.self_attn, name).weight)
        assert torch.equal(ours.mlp.gate_proj.weight, theirs.mlp.gate_proj.weight)
        assert not torch.equal(ours.self_attn.o_proj.weight, theirs.self_attn.o_proj.weight)
        assert not torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight)


def test_later_layers_see_what_earlier_ones_were_left_as(tiny_llama: Any, windows: Tensor) -> None:
    """Layer by layer with the formula of the module, in float64 with autograd's own forward pass."""
    model = tiny_llama(**ROOM)
    pruned, done = cut(model, windows, parts=["mlp"], layers=(1, 2))
    dense, ours = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    for index in (1, 2):
        taken: dict[str, list[Tensor]] = {"dense": [], "ours": []}
        for name, each in (("dense", dense), ("ours", ours)):
            block = layers(each)[index].mlp.down_proj
            norm = layers(each)[index].post_attention_layernorm
            hooks = [
                norm.register_forward_hook(lambda _m, a, _o, to=taken[name]: to.append(a[0])),
                block.register_forward_hook(lambda _m, a, o, to=taken[name]: to.extend([a[0], o])),
            ]
            logits(each, windows)
            for hook in hooks:
                hook.remove()
        (h_d, _, y_d), (h_p, x, y_p) = taken["dense"], taken["ours"]
        rows = x[:, 1:].flatten(0, 1)
        target = (0.25 * (y_d - y_p) + 0.25 * (h_d - h_p))[:, 1:].flatten(0, 1)
        down = layers(ours)[index].mlp.down_proj
        kept = torch.tensor(done.layers[index]["channels"])
        gone = torch.tensor([c for c in range(48) if c not in done.layers[index]["channels"]])
        gram = rows.T @ rows
        ridge = 0.09 * gram[kept, kept].mean() * torch.eye(len(kept), dtype=torch.float64)
        right = down.weight[:, gone] @ gram[gone][:, kept] + target.T @ rows[:, kept]
        change = torch.linalg.solve(gram[kept][:, kept] + ridge, right.T).T
        with torch.no_grad():
            new = torch.zeros_like(down.weight)
            new[:, kept] = down.weight[:, kept] + change
            down.weight.copy_(new)
        found = layers(pruned)[index].mlp.down_proj.weight.double()
        torch.testing.assert_close(found, new[:, kept], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_weights_keep_their_dtype(tiny_llama: Any, windows: Tensor, dtype: torch.dtype) -> None:
    model = tiny_llama(**ROOM).to(dtype)
    pruned, _ = cut(model, windows)
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    reference, _ = cut(model.float(), windows)
    ours, theirs = (layers(each)[0].mlp.down_proj.weight.float() for each in (pruned, reference))
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.05)


def test_passes_in_bfloat16_give_nearly_the_refit_of_float32(
    tiny_llama: Any, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(**ROOM)
    exact, _ = cut(model, windows)
    monkeypatch.setattr("core.pruning.calibration.pass_dtype", lambda _dtype, _device: torch.bfloat16)
    half, _ = cut(model, windows)
    assert next(half.parameters()).dtype == torch.float32
    for ours, theirs in zip(half.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)


def test_hidden_states_may_wait_elsewhere_and_batches_may_be_any_size(tiny_llama: Any, windows: Tensor) -> None:
    model = tiny_llama(**ROOM)
    one, _ = cut(model, windows)
    other, _ = cut(model, windows, store="cpu", calibration={"batch_size": 3})
    for ours, theirs in zip(other.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_a_model_streamed_from_disk_gets_the_same_refit(
    tiny_model: Any, tmp_path: Path, windows: Tensor, model_type: str
) -> None:
    model = tiny_model(model_type)
    expected, _ = cut(model, windows)
    model.save_pretrained(tmp_path / "dense")
    body = Streamed(tmp_path / "dense", "cpu", Writer(tmp_path / "cut"))
    architecture = Architecture.from_config(model.config.to_dict())
    pruning = Pruning(method="l2", ratio=0.5, round_to=1, reconstruct=True)
    prune(body, pruning, architecture=architecture, windows=windows, seed=0, device="cpu")
    body.finish()
    source = Source(tmp_path / "cut")
    for name, value in expected.state_dict().items():
        if name in source.files:
            torch.testing.assert_close(source.read([name], torch.device("cpu"))[name], value)


def test_a_layer_at_a_time_gets_the_same_refit(tiny_llama: Any, windows: Tensor) -> None:
    model = tiny_llama(**ROOM)
    expected, _ = cut(model, windows)
    body = Resident(copy.deepcopy(model), "cpu", whole=False)
    architecture = Architecture.from_config(model.config.to_dict())
    pruning = Pruning(method="l2", ratio=0.5, round_to=1, reconstruct=True)
    prune(body, pruning, architecture=architecture, windows=windows, seed=0, device="cpu")
    for ours, theirs in zip(body.model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_progress_rises_within_layers_and_a_cancellation_comes_through(tiny_llama: Any, windows: Tensor) -> None:
    told: list[tuple[float, float]] = []
    model = tiny_llama(**ROOM)
    cut(model, windows, progress=lambda done, total, _unit: told.append((done, total)), calibration={"batch_size": 4})
    assert told == sorted(told)
    assert told[-1] == (4, 4)
    assert len({done for done, _ in told}) > 40

    def cancel_at(share: float) -> Callable[[float, float, str], None]:
        def progress(done: float, total: float, _unit: str) -> None:
            if done > share * total:
                raise Cancelled

        return progress

    for share in (-1.0, 0.5):
        with pytest.raises(Cancelled):
            cut(model, windows, progress=cancel_at(share))
