"""Choosing layers, against whole forward passes of models that really lack them."""

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from core.errors import Cancelled, NumericalError
from core.experiment import Pruning
from core.models.body import Resident
from core.models.plans import plan
from core.models.sizes import Architecture
from core.progress import silent
from core.pruning.calibration import Walk
from core.pruning.depth import Losses
from core.pruning.job import Job
from core.pruning.methods.perplexity_greedy import perplexity_greedy
from core.pruning.prune import prune
from core.pruning.registry import get


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(num_hidden_layers=6)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (5, 12), generator=torch.Generator().manual_seed(0))


def job_of(model: Any, windows: torch.Tensor, told: list[float] | None = None, **fields: Any) -> Job:
    pruning = Pruning(**{"method": "perplexity_greedy", "ratio": 0.5, "calibration": {"batch_size": 2}, **fields})
    method = get(pruning.method)
    progress = silent if told is None else lambda done, total, unit: told.append(done / total)
    return Job(
        body=Resident(model, "cpu"),
        pruning=pruning,
        method=method,
        options=method.options(),
        plan=plan(Architecture.from_config(model.config.to_dict()), pruning),
        windows=windows,
        seed=0,
        calibrate_progress=progress,
        progress=silent,
    )


def gone(model: Any, windows: torch.Tensor | None, **fields: Any) -> list[int]:
    """Layers that a cut removes."""
    architecture = Architecture.from_config(model.config.to_dict())
    done = prune(
        copy.deepcopy(model), Pruning(**fields), architecture=architecture, windows=windows, seed=0, device="cpu"
    )
    return [report["layer"] for report in done.layers if report["mlp_after"] == 0]


def plain_loss(model: Any, windows: torch.Tensor, removed: set[int]) -> float:
    """The library's own loss of a model built without these layers."""
    cut = copy.deepcopy(model)
    cut.model.layers = torch.nn.ModuleList(layer for i, layer in enumerate(cut.model.layers) if i not in removed)
    cut.config.num_hidden_layers = len(cut.model.layers)
    with torch.no_grad():
        return float(cut(windows, labels=windows, use_cache=False).loss)


def test_losses_are_those_of_models_without_the_layers_in_whatever_order_they_are_asked(
    model: Any, windows: torch.Tensor
) -> None:
    losses = Losses(job_of(model, windows, layers=(1, 4)))
    for settled, questions in (
        ([], [1, 2, 3, 4]),
        ([3], [1, 2, 4]),
        ([3], [4, 1, 2]),  # not ascending
        ([3, 1], [2, 4, 2]),
        ([], [4, 3]),  # and back
    ):
        losses.settle(settled)
        for index in questions:
            expected = plain_loss(model, windows, {*settled, index})
            assert losses.without(index) == pytest.approx(expected, rel=1e-5), (settled, index)


def test_the_dense_loss_differs_from_all_of_them(model: Any, windows: torch.Tensor) -> None:
    """So the test above can fail."""
    different = {round(plain_loss(model, windows, {index}), 4) for index in (1, 2, 3, 4)}
    assert len(different | {round(plain_loss(model, windows, set()), 4)}) == 5


def test_questions_in_ascending_order_never_run_what_lies_below_them_again(
    model: Any, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    advance = Walk.advance

    def count(self: Walk, index: int, *rest: Any) -> None:
        ran.append(index)
        advance(self, index, *rest)

    monkeypatch.setattr(Walk, "advance", count)
    losses = Losses(job_of(model, windows, layers=(2, 4)))
    assert ran == [0, 1, 2, 3, 4, 5]  # the dense model
    ran.clear()
    for index in (2, 3, 4):
        losses.without(index)
    assert ran == [3, 4, 5, 2, 4, 5, 3, 5]
    ran.clear()
    losses.settle([3])
    for index in (2, 4):
        losses.without(index)
    assert ran == [4, 5, 2, 5]  # 0 and 1 are below the range: their states are kept throughout


def test_greedy_removal_is_that_of_trying_every_layer_again_after_each(tiny_llama: Any, windows: torch.Tensor) -> None:
    model = tiny_llama(num_hidden_layers=6, seed=1)
    expected: set[int] = set()
    for _ in range(3):
        tried = {i: plain_loss(model, windows, {*expected, i}) for i in range(6) if i not in expected}
        expected.add(min(tried, key=lambda i: tried[i]))
    found = gone(model, windows, method="perplexity_greedy", ratio=0.5, calibration={"batch_size": 2})
    assert found == sorted(expected)
    one_shot = sorted(range(6), key=lambda i: plain_loss(model, windows, {i}))[:3]
    assert found != sorted(one_shot), "this model would not tell greedy from one-shot removal"


def test_greedy_removal_settles_each_choice_and_takes_the_later_of_equals() -> None:
    losses = {frozenset(): {1: 3.0, 2: 1.0, 3: 1.0}, frozenset({3}): {1: 0.5, 2: 2.0}}
    settled: list[frozenset[int]] = [frozenset()]
    fake = SimpleNamespace(
        without=lambda layer: losses[settled[-1]][layer],
        settle=lambda removed: settled.append(frozenset(removed)),
    )
    assert perplexity_greedy(fake, (1, 2, 3), 2) == [3, 1]


def test_a_layer_that_does_nothing_goes_first(model: Any, windows: torch.Tensor) -> None:
    idle = model.model.layers[3]
    idle.self_attn.o_proj.weight.data.zero_()
    idle.mlp.down_proj.weight.data.zero_()
    for method in ("block_influence", "perplexity_greedy"):
        # without it the loss is the dense one: random models also get better by losing layers
        if method == "perplexity_greedy":
            assert Losses(job_of(model, windows)).without(3) == pytest.approx(plain_loss(model, windows, set()))
        else:
            assert gone(model, windows, method=method, ratio=0.2) == [3]


def test_block_influence_is_one_minus_the_mean_cosine_of_each_token(model: Any, windows: torch.Tensor) -> None:
    with torch.no_grad():
        states = list(model(windows, output_hidden_states=True).hidden_states)
        last: list[torch.Tensor] = []
        handle = model.model.layers[5].register_forward_hook(lambda m, a, out: last.append(out))
        model(windows)
        handle.remove()
    states[6] = last[0] if isinstance(last[0], torch.Tensor) else last[0][0]  # without the final norm
    scores = []
    for before, after in itertools.pairwise(states):
        cosines = [
            float(x @ y / x.norm() / y.norm()) for x, y in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True)
        ]
        scores.append(1 - sum(cosines) / 60)
    for layers in ((0, 5), (1, 4)):
        order = sorted(range(layers[0], layers[1] + 1), key=lambda i: scores[i])
        for batch_size in (1, 2, "auto"):
            found = gone(
                model,
                windows,
                method="block_influence",
                ratio=0.5,
                layers=layers,
                calibration={"batch_size": batch_size},
            )
            assert found == sorted(order[: len(order) // 2])


def test_the_last_of_the_selected_layers_go(model: Any) -> None:
    assert gone(model, None, method="last", ratio=0.5) == [3, 4, 5]
    assert gone(model, None, method="last", ratio=0.5, layers=(1, 4)) == [3, 4]


def test_what_a_layer_draws_does_not_depend_on_the_range(model: Any) -> None:
    wide = gone(model, None, method="random_layers", ratio=0.5)
    kept_inside = [i for i in range(1, 6) if i not in wide]
    narrow = gone(model, None, method="random_layers", ratio=0.2, layers=(1, 5))
    assert len(narrow) == 1
    assert not set(narrow) & set(kept_inside)


def test_at_least_one_layer_stays(model: Any, windows: torch.Tensor) -> None:
    assert len(gone(model, None, method="last", ratio=0.99)) == 5


def test_a_dense_model_without_a_finite_loss_is_an_error_though_a_removal_would_mend_it(
    model: Any, windows: torch.Tensor
) -> None:
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="dense model is nan or inf"):
        gone(model, windows, method="perplexity_greedy", ratio=0.2)


def test_progress_moves_within_a_question_and_never_goes_back(model: Any, windows: torch.Tensor) -> None:
    told: list[float] = []
    job = job_of(model, windows, told, layers=(1, 4))
    losses = Losses(job)
    at_first = len(told)
    losses.without(1)
    assert len(told) > at_first + 3
    perplexity_greedy(losses, (1, 2, 3, 4), 2)
    assert told == sorted(told)
    assert told[-1] <= 1


def test_a_cancellation_comes_through_in_the_middle_of_a_question(model: Any, windows: torch.Tensor) -> None:
    calls = 0

    def cancel(done: float, total: float, unit: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise Cancelled

    job = job_of(model, windows)
    job.calibrate_progress = cancel
    with pytest.raises(Cancelled):
        perplexity_greedy(Losses(job), (1, 2, 3, 4), 2)
    assert calls == 30
