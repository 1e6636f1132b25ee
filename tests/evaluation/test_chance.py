"""What guessing gives, and how certain a score is."""

from pathlib import Path

import pytest
from scipy import stats

from core.evaluation.averages import SEVEN_METRICS
from core.evaluation.chance import certainty, rates, rates_of_samples


def test_chance_is_the_mean_over_documents_and_majority_the_most_frequent_answer() -> None:
    found = rates([2, 4, 4, 5], [1, 1, 0, 1])
    assert found is not None
    assert found.chance == pytest.approx((1 / 2 + 1 / 4 + 1 / 4 + 1 / 5) / 4)
    assert found.majority == 3 / 4
    assert rates([], []) is None


def test_answers_that_are_no_choice_are_an_error() -> None:
    with pytest.raises(ValueError, match="none of its"):
        rates([2], [2])
    with pytest.raises(ValueError, match="2 numbers"):
        rates([2, 2], [0])


def test_rates_are_read_off_the_rows_of_a_task_where_it_is_multiple_choice() -> None:
    rows = [{"target": "0", "loglikelihoods": [-1.0, -2.0]}, {"target": "0", "loglikelihoods": [-1.0, -2.0, -3.0]}]
    assert rates_of_samples(rows) == rates([2, 3], [0, 0])
    assert rates_of_samples([*rows, {"target": "7", "loglikelihoods": None}]) is None
    assert rates_of_samples([{"target": "a word", "loglikelihoods": [-1.0, -2.0]}]) is None


def test_certainty_is_the_half_width_of_the_normal_interval() -> None:
    low, high = stats.norm.interval(0.95, loc=0.5, scale=(0.25 / 100) ** 0.5)
    assert certainty(100) == pytest.approx((high - low) / 2)
    assert certainty(100, 0.9) < certainty(100)
    with pytest.raises(ValueError, match="no certainty"):
        certainty(0)


LARGE = ("boolq", "hellaswag", "piqa", "arc_easy")


def stated() -> dict[str, list[str]]:
    """The table of docs/evaluation.md: by task, its other cells."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line] for line in lines]
    return {row[0]: row[1:] for row in rows if row[0] in SEVEN_METRICS and len(row) == 7}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in SEVEN_METRICS]
)
def test_the_documents_rates_are_those_of_the_data(name: str) -> None:
    from core.evaluation.tasks import _load

    (task,) = _load(name, 0, 0)["tasks"].values()
    choices = [len(task.doc_to_choice(doc)) for doc in task.eval_docs]
    answer = task.doc_to_text if getattr(task, "multiple_input", 0) else task.doc_to_target
    found = rates(choices, [int(answer(doc)) for doc in task.eval_docs])
    assert found is not None
    metric, documents, _, chance, majority, width = stated()[name]
    assert metric == SEVEN_METRICS[name]
    assert documents == f"{len(choices):,}"
    assert (chance, majority) == (f"{found.chance:.2%}".replace("%", " %"), f"{found.majority:.2%}".replace("%", " %"))
    assert width.split()[0] == f"±{100 * certainty(len(choices)):.1f}"
