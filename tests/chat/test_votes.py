"""Votes counted, against known values of Wilson's interval and the sign test."""

import pytest

from core.chat.votes import Vote, duels, sign_test, standings, wilson


def vote(winner: str | None, *models: str, verdict: str = "") -> Vote:
    return Vote(models, tuple(f"<{model}>" for model in models), winner, verdict or ("A" if winner else "tie"))


def test_wilson_s_interval_is_that_of_statsmodels() -> None:
    # statsmodels.stats.proportion.proportion_confint(count, nobs, method="wilson")
    for count, n, low, high in [(8, 10, 0.4901625, 0.9433178), (0, 5, 0.0, 0.4344825), (50, 100, 0.4038315, 0.5961685)]:
        assert wilson(count, n) == pytest.approx((low, high), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_sign_test_is_exact() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(3, 3) == 1.0
    assert sign_test(9, 1) == pytest.approx(2 * 11 / 1024)
    assert sign_test(0, 8) == pytest.approx(2 / 256)


def test_a_model_s_rate_counts_wins_whole_and_ties_half() -> None:
    votes = [vote("dense", "dense", "cut")] * 3 + [vote("cut", "cut", "dense"), vote(None, "cut", "dense")]
    votes.append(vote(None, "dense", "cut", verdict="bad"))
    first, second = standings(votes)
    assert (first.key, first.title) == ("dense", "<dense>")
    assert (first.votes, first.won, first.lost, first.tied, first.bad) == (6, 3, 1, 1, 1)
    assert first.rate == pytest.approx(4 / 6)
    assert second.rate == pytest.approx(2 / 6)
    assert first.low < first.rate < first.high
    (duel,) = duels(votes)
    assert (duel.first, duel.won, duel.lost, duel.even, duel.votes) == ("cut", 1, 3, 2, 6)
    assert duel.p == pytest.approx(sign_test(1, 3))


def test_of_a_vote_among_many_the_losers_tell_nothing_about_each_other() -> None:
    found = {(duel.first, duel.second): duel for duel in duels([vote("b", "a", "b", "c")])}
    assert set(found) == {("a", "b"), ("b", "c")}
    assert (found["a", "b"].won, found["a", "b"].lost) == (0, 1)
    assert (found["b", "c"].won, found["b", "c"].lost) == (1, 0)


def test_no_votes_are_no_standings() -> None:
    assert standings([]) == []
    assert duels([]) == []
