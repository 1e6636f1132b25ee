"""Drift of the hidden states, against states taken from the model's own output."""

from typing import Any

import pytest
import torch

from core.data.corpora import evaluation_windows
from core.evaluation import layer_errors
from core.evaluation.fidelity import fidelity
from core.experiment import PerplexityCorpus
from core.models.families import family
from core.models.surgery import cut_hidden, drop_layers


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(96, (5, 10), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def four(tiny_model: Any) -> Any:
    return lambda seed=0, model_type="llama": tiny_model(model_type, seed)


def states(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What enters each layer, and what leaves the last, before the final norm: (windows, T, d)."""
    seen: list[torch.Tensor] = []
    layers = model.model.layers
    hooks = [layers[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))]
    hooks += [layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in layers]
    with torch.inference_mode():
        model(input_ids=tokens)
    for hook in hooks:
        hook.remove()
    return [state[0] if isinstance(state, tuple) else state for state in seen]


def relative(dense: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    return ((dense - pruned).norm(dim=-1) / dense.norm(dim=-1)).double()


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_it_is_the_mean_relative_distance_after_each_layer(
    four: Any, tokens: torch.Tensor, batch_size: int, model_type: str
) -> None:
    pruned, dense = four(1, model_type), four(2, model_type)
    found = fidelity(pruned, dense, tokens, batch_size=batch_size).layers
    assert found is not None
    expected = [relative(a, b) for a, b in zip(states(dense, tokens)[1:], states(pruned, tokens)[1:], strict=True)]
    assert found.errors == pytest.approx([float(each.mean()) for each in expected], rel=1e-5)
    assert found.stderr == pytest.approx([float(each.mean(1).std()) / 5**0.5 for each in expected], rel=1e-4)
    assert (found.removed, found.positions) == ([], 50)


def test_layers_that_are_gone_leave_the_stream_as_it_was(four: Any, tokens: torch.Tensor) -> None:
    dense, pruned = four(), four()
    drop_layers(pruned, family(pruned.config.model_type), [0, 2])
    found = fidelity(pruned, dense, tokens, kept=[1, 3]).layers
    assert found is not None
    before, own = states(dense, tokens), states(pruned, tokens)
    passed = [own[0], own[1], own[1], own[2]]  # nothing yet; layer 1; still layer 1; layer 3
    expected = [float(relative(a, b).mean()) for a, b in zip(before[1:], passed, strict=True)]
    assert found.errors == pytest.approx(expected, rel=1e-5)
    assert [row["removed"] for row in found.rows()] == [True, False, True, False]


def test_an_equal_copy_has_no_error_anywhere(four: Any, tokens: torch.Tensor) -> None:
    found = fidelity(four(), four(), tokens).layers
    assert found is not None
    assert found.errors == [0.0] * 4


def test_a_change_in_one_layer_shows_from_there_on(four: Any, tokens: torch.Tensor) -> None:
    pruned = four()
    with torch.no_grad():
        pruned.model.layers[2].mlp.down_proj.weight.zero_()
    found = fidelity(pruned, four(), tokens).layers
    assert found is not None
    assert found.errors[:2] == [0.0, 0.0]
    assert min(found.errors[2:]) > 0


def test_little_memory_means_fewer_positions_of_every_row(
    four: Any, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, dense = four(1), four(2)
    monkeypatch.setitem(layer_errors.STATE_BYTES, "cpu", 5 * 5 * 16 * 4 * 3)  # five states, five rows, three positions
    found = fidelity(pruned, dense, tokens, batch_size=5).layers
    assert found is not None
    assert found.positions == 15
    columns = [0, 4, 9]
    expected = [
        float(relative(a, b)[:, columns].mean())
        for a, b in zip(states(dense, tokens)[1:], states(pruned, tokens)[1:], strict=True)
    ]
    assert found.errors == pytest.approx(expected, rel=1e-5)


def test_a_narrower_stream_and_unknown_layers_are_said_not_to_compare(four: Any, tokens: torch.Tensor) -> None:
    dense, narrow, short = four(), four(), four()
    cut_hidden(narrow, family(narrow.config.model_type), torch.arange(12))
    result = fidelity(narrow, dense, tokens)
    assert result.layers is None
    assert "12 channels wide instead of 16" in result.no_layers
    drop_layers(short, family(short.config.model_type), [1])
    assert "which of them stayed is not known" in fidelity(short, dense, tokens).no_layers


def test_no_hook_stays_behind(four: Any, tokens: torch.Tensor) -> None:
    pruned, dense = four(1), four(2)
    fidelity(pruned, dense, tokens)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for each in (pruned, dense) for m in each.modules()]
    assert sum(hooks) == 0


def test_the_stored_form_names_text_and_positions(four: Any, tiny_tokenizer: Any) -> None:
    windows = evaluation_windows(PerplexityCorpus(window=16, max_tokens=64), tiny_tokenizer())
    stored = fidelity(four(1), four(2), windows).layer_errors(windows)
    assert [row["layer"] for row in stored["layers"]] == [0, 1, 2, 3]
    assert {"corpus", "window", "tokens_sha256", "dtype"} <= set(stored["protocol"])
    assert (stored["protocol"]["positions"], stored["reason"]) == (64, "")
