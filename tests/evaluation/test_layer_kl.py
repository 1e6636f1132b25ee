"""KL by layer, against models that are really put together from dense and pruned layers."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.evaluation.fidelity import fidelity
from core.evaluation.forward import NextTokenLogits
from core.evaluation.layer_kl import layer_divergences
from core.models.families import family
from core.models.surgery import cut_hidden, drop_layers


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(96, (3, 10), generator=torch.Generator().manual_seed(2))


def divergence(dense: Any, other: Any, tokens: torch.Tensor) -> float:
    with torch.inference_mode():
        p, q = (torch.log_softmax(model(input_ids=tokens).logits[:, :-1].double(), -1) for model in (dense, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


def rows_of(result: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = result.layer_errors(SimpleNamespace(info={"corpus": "x"}))["layers"]
    return rows


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_it_is_the_divergence_of_a_model_whose_first_layers_are_the_pruned_ones(
    tiny_model: Any, tokens: torch.Tensor, model_type: str
) -> None:
    dense = tiny_model(model_type)
    pruned = copy.deepcopy(dense)
    for layer in (1, 2):
        pruned.model.layers[layer].mlp.down_proj.weight.data[:, :24] = 0
    found = layer_divergences(NextTokenLogits(pruned), NextTokenLogits(dense), tokens)
    expected = []
    for last in range(4):
        mixed = copy.deepcopy(dense)
        for layer in range(last + 1):
            mixed.model.layers[layer] = copy.deepcopy(pruned.model.layers[layer])
        expected.append(divergence(dense, mixed, tokens))
    assert found.values == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found.values[0] == pytest.approx(0, abs=1e-6)
    assert found.values[3] == pytest.approx(fidelity(pruned, dense, tokens).kl, rel=1e-3)
    assert (found.windows, found.positions) == (3, 27)
    assert all(error is not None for error in found.stderr)


def test_the_dense_model_is_as_it_was_afterwards(tiny_model: Any, tokens: torch.Tensor) -> None:
    pruned, dense = tiny_model("llama", 1), tiny_model("llama", 2)
    before = dense(input_ids=tokens).logits
    layer_divergences(NextTokenLogits(pruned), NextTokenLogits(dense), tokens)
    assert torch.equal(dense(input_ids=tokens).logits, before)


def test_layers_that_are_gone_count_where_they_were(tiny_model: Any, tokens: torch.Tensor) -> None:
    dense, pruned = tiny_model("llama"), tiny_model("llama")
    drop_layers(pruned, family("llama"), [0, 2])
    rows = rows_of(fidelity(pruned, dense, tokens, kept=[1, 3]))
    assert [row["removed"] for row in rows] == [True, False, True, False]
    only_first = copy.deepcopy(dense)
    drop_layers(only_first, family("llama"), [0])
    assert rows[0]["kl"] == pytest.approx(divergence(dense, only_first, tokens), rel=1e-3)
    assert rows[1]["kl"] == pytest.approx(rows[0]["kl"], rel=1e-3)
    assert rows[3]["kl"] == pytest.approx(divergence(dense, pruned, tokens), rel=1e-3)


def test_a_stream_of_another_width_has_none(tiny_model: Any, tokens: torch.Tensor) -> None:
    dense, pruned = tiny_model("llama"), tiny_model("llama")
    cut_hidden(pruned, family("llama"), torch.arange(12))
    assert fidelity(pruned, dense, tokens).divergences is None
