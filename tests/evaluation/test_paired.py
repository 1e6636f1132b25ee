"""Paired statistics, against brute force, scipy and simulated studies with a known truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from core.evaluation.paired import (
    Paired,
    bootstrap_mean,
    compare,
    compare_perplexity,
    difference_stderr,
    holm,
    mcnemar,
    mean_of,
    normal_p,
)


def answers(paired: Paired) -> tuple[list[int], list[int]]:
    """Documents with these counts, one number for each model's answer."""
    rest = paired.n - paired.both - paired.lost - paired.won
    pairs = [(1, 1)] * paired.both + [(1, 0)] * paired.lost + [(0, 1)] * paired.won + [(0, 0)] * rest
    first, second = zip(*pairs, strict=True)
    return list(first), list(second)


@pytest.mark.parametrize(("lost", "won"), [(0, 1), (1, 1), (5, 0), (3, 7), (6, 2), (9, 1)])
def test_mcnemar_counts_every_way_in_which_luck_could_have_split_the_disagreements(lost: int, won: int) -> None:
    splits = [sum(coins) for coins in itertools.product((0, 1), repeat=lost + won)]
    off = abs(won - (lost + won) / 2)
    expected = sum(abs(split - (lost + won) / 2) >= off for split in splits) / len(splits)
    assert mcnemar(lost, won) == pytest.approx(expected)


def test_models_that_never_disagree_do_not_differ() -> None:
    same = compare(50, 30, 0, 0)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_difference_and_standard_error_are_those_of_the_documents_own_differences() -> None:
    paired = compare(200, 90, 31, 12)
    first, second = map(np.array, answers(paired))
    assert (paired.first, paired.second) == (first.mean(), second.mean())
    assert paired.difference == pytest.approx((second - first).mean())
    assert paired.stderr == pytest.approx(stats.sem(second - first))
    assert difference_stderr(1, 1, 0) is None


def test_the_interval_is_the_percentile_bootstrap_over_documents() -> None:
    paired = compare(120, 50, 25, 9, seed=1)
    differences = np.subtract(*reversed(answers(paired)))
    expected = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=20_000, rng=2)
    assert (paired.low, paired.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.011)
    assert compare(120, 50, 25, 9, seed=1) == paired


def test_intervals_hold_the_true_difference_about_95_times_in_100() -> None:
    truth = np.array([0.45, 0.15, 0.08, 0.32])  # both right, lost, won, both wrong
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        both, lost, won, _ = map(int, generator.multinomial(150, truth))
        paired = compare(150, both, lost, won, draws=1000)
        hits += paired.low <= truth[2] - truth[1] <= paired.high
    assert 0.91 <= hits / 400 <= 0.985


def test_luck_alone_is_called_significant_at_most_5_times_in_100() -> None:
    generator = np.random.default_rng(1)
    wons = generator.binomial(40, 0.5, size=2000)
    assert np.mean([mcnemar(40 - int(won), int(won)) < 0.05 for won in wons]) <= 0.05


def test_counts_that_do_not_fit_are_an_error() -> None:
    for counts in ((0, 0, 0, 0), (10, 5, 4, 3), (10, -1, 2, 2)):
        with pytest.raises(ValueError, match="do not fit"):
            compare(*counts)


def test_in_a_mean_every_task_counts_alike_whatever_its_size() -> None:
    large, small = compare(1000, 500, 100, 0), compare(10, 4, 0, 2)
    mean = mean_of([large, small])
    assert mean.difference == pytest.approx((-0.1 + 0.2) / 2)
    assert mean.first == pytest.approx((0.6 + 0.4) / 2)
    assert mean.stderr == pytest.approx(math.hypot(large.stderr or 0, small.stderr or 0) / 2)
    assert mean.low < mean.difference < mean.high
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * (mean.stderr or 0), rel=0.1)
    assert mean.p == pytest.approx(2 * stats.norm.sf(mean.difference / (mean.stderr or 1)))


def test_perplexities_are_compared_by_the_ratio_over_the_same_windows() -> None:
    generator = np.random.default_rng(3)
    first = generator.normal(3.2, 0.5, 80)
    second = first + generator.normal(0.1, 0.02, 80)  # harder windows are harder for both
    low, high = compare_perplexity(first.tolist(), second.tolist())
    assert low < math.exp(0.1) < high
    assert high / low < 1.02
    with pytest.raises(ValueError, match="3 and 2 windows"):
        compare_perplexity([1.0, 2.0, 3.0], [1.0, 2.0])


def test_the_bootstrap_of_a_mean_agrees_with_scipy_and_does_not_depend_on_how_it_is_cut_up() -> None:
    values = np.random.default_rng(4).gamma(2.0, 1.0, 60)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=5).confidence_interval
    assert bootstrap_mean(values.tolist()) == pytest.approx(tuple(expected), abs=0.03)
    many = np.tile(values, 1000).tolist()  # more than one batch of samples
    low, high = bootstrap_mean(many, draws=200)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(len(many)), rel=0.25)


def test_p_of_a_difference_is_that_of_a_normal_distribution() -> None:
    assert normal_p(-1.959964, 1.0) == pytest.approx(0.05)
    assert (normal_p(0.0, 0.0), normal_p(0.1, 0.0)) == (1.0, 0.0)
    assert math.isnan(normal_p(0.1, None))


def test_holm_as_worked_by_hand() -> None:
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "unknown": math.nan})
    assert {name: corrected[name] for name in "abcd"} == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert math.isnan(corrected["unknown"])
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_with_holm_a_study_of_nothing_rarely_finds_anything() -> None:
    generator = np.random.default_rng(6)
    found = 0
    for _ in range(500):
        p = {str(i): float(value) for i, value in enumerate(generator.uniform(size=14))}
        found += min(holm(p).values()) < 0.05
    assert found / 500 < 0.08
