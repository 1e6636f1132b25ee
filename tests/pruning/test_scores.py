import pytest
import torch

from core.errors import NumericalError
from core.pruning.scores import checked, keep_best, keep_best_in_groups, stream


def test_the_best_stay_in_ascending_order_of_their_index() -> None:
    assert keep_best(torch.tensor([3.0, 9.0, 1.0, 5.0]), 2).tolist() == [1, 3]


def test_among_equal_scores_the_earlier_units_stay() -> None:
    assert keep_best(torch.ones(6), 4).tolist() == [0, 1, 2, 3]


def test_each_group_keeps_the_same_number_even_if_one_holds_all_the_best() -> None:
    scores = torch.tensor([9.0, 8.0, 7.0, 1.0, 3.0, 2.0])  # two KV groups of three query heads
    assert keep_best_in_groups(scores, 2, 2).tolist() == [0, 1, 4, 5]


def test_a_stream_depends_on_seed_layer_and_name_and_on_nothing_else() -> None:
    def draw(*key: int | str) -> float:
        return float(torch.rand(1, generator=stream(*key)))  # type: ignore[arg-type]

    assert draw(0, 3, "mlp") == draw(0, 3, "mlp")
    assert len({draw(0, 3, "mlp"), draw(1, 3, "mlp"), draw(0, 4, "mlp"), draw(0, 3, "attention")}) == 4


def test_scores_that_are_not_finite_name_the_method_and_the_place() -> None:
    with pytest.raises(NumericalError, match=r"wanda .* layer 3, q"):
        checked(torch.tensor([1.0, float("nan")]), (2,), "wanda", "layer 3, q")


def test_scores_of_another_shape_are_the_methods_fault() -> None:
    with pytest.raises(ValueError, match=r"\(2,\).*expected \(3,\)"):
        checked(torch.ones(2), (3,), "mine", "layer 0, mlp")
