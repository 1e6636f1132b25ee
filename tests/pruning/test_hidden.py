"""Channels of the residual stream, against plain loops over the model's own modules."""

import copy
import re
from typing import Any

import pytest
import torch

from core.experiment import Pruning
from core.models.sizes import Architecture
from core.pruning.prune import prune


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (5, 12), generator=torch.Generator().manual_seed(0))


def kept_by(model: Any, windows: torch.Tensor | None, seed: int = 0, **fields: Any) -> list[int]:
    """Channels that stay, found again in the embedding's columns."""
    cut = copy.deepcopy(model)
    architecture = Architecture.from_config(model.config.to_dict())
    pruning = Pruning(method="hidden", **fields)
    prune(cut, pruning, architecture=architecture, windows=windows, seed=seed, device="cpu")
    before, after = model.get_input_embeddings().weight, cut.get_input_embeddings().weight
    return [c for c in range(before.shape[1]) if any(torch.equal(before[:, c], each) for each in after.T)]


def stream_weights(model: Any) -> dict[str, tuple[torch.Tensor, int]]:
    """Every matrix that touches the stream, and which of its axes is the stream."""
    found: dict[str, tuple[torch.Tensor, int]] = {}
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            found[name] = (weight, 0 if re.search(r"(o|down)_proj", name) else 1)
    return found


def best(scores: list[float], keep: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda c: -scores[c])[:keep])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_channels_with_the_largest_sums_over_all_matrices_stay(
    tiny_llama: Any, tied: bool, criterion: str, power: int
) -> None:
    model = tiny_llama(tie_word_embeddings=tied, num_hidden_layers=3)
    scores = [0.0] * 16
    for weight, axis in stream_weights(model).values():
        for c in range(16):
            scores[c] += float(weight.detach().select(axis, c).abs().double().pow(power).sum())
    assert kept_by(model, None, options={"criterion": criterion}, ratio=0.5) == best(scores, 8)


def test_an_untied_head_takes_part_and_a_tied_table_counts_once(tiny_llama: Any) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    model.lm_head.weight.data[:, [2, 5]] *= 100
    assert {2, 5} <= set(kept_by(model, None, options={"criterion": "l2"}, ratio=0.75))
    model = tiny_llama()
    assert len(stream_weights(model)) == 2 * 7 + 1


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_taylor_sums_weight_times_gradient_over_the_decoder_layers(
    tiny_llama: Any, windows: torch.Tensor, batch_size: Any
) -> None:
    model = tiny_llama(num_hidden_layers=3)
    weights = {name: found for name, found in stream_weights(model).items() if ".layers." in name}
    gradients = torch.autograd.grad(model(windows, labels=windows).loss, [weight for weight, _ in weights.values()])
    scores = [0.0] * 16
    for (weight, axis), g in zip(weights.values(), gradients, strict=True):
        for c in range(16):
            scores[c] += float((weight * g).detach().select(axis, c).abs().sum())
    kept = kept_by(model, windows, options={"criterion": "taylor"}, ratio=0.5, calibration={"batch_size": batch_size})
    assert kept == best(scores, 8)


def test_random_is_one_draw_for_the_whole_model_and_follows_the_seed(tiny_llama: Any) -> None:
    model = tiny_llama()
    expected = kept_by(model, None, options={"criterion": "random"}, ratio=0.5)
    assert len(expected) == 8
    assert (
        kept_by(tiny_llama(seed=1, num_hidden_layers=4), None, options={"criterion": "random"}, ratio=0.5) == expected
    )
    others = [kept_by(model, None, seed, options={"criterion": "random"}, ratio=0.5) for seed in range(1, 4)]
    assert any(each != expected for each in others)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "mistral"])
def test_every_family_loses_its_worst_channels(tiny_model: Any, name: str) -> None:
    """Dead channels (of all that reads and writes them) go first, and nothing else changes but the norms' mean."""
    model = tiny_model(name)
    dead = [1, 6, 10, 15]
    with torch.no_grad():
        for parameter_name, (weight, _) in stream_weights(model).items():
            axis = 0 if re.search(r"(o|down)_proj", parameter_name) else 1
            weight.index_fill_(axis, torch.tensor(dead), 0)
    cut = copy.deepcopy(model)
    architecture = Architecture.from_config(model.config.to_dict())
    prune(
        cut,
        Pruning(method="hidden", ratio=0.25, options={"criterion": "l1"}),
        architecture=architecture,
        windows=None,
        seed=0,
        device="cpu",
    )
    alive = [c for c in range(16) if c not in dead]
    ours, theirs = cut.state_dict(), model.state_dict()
    for key in theirs:
        if re.search(r"(o|down)_proj.weight", key):
            assert torch.equal(ours[key], theirs[key][alive]), key
        elif re.search(r"(q|k|v|qkv|gate|up|gate_up)_proj.weight", key):
            assert torch.equal(ours[key], theirs[key][:, alive]), key
