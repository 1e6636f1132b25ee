"""Who computes next: fair between those who ask, then between their answers; and in turn or together, as measured."""

from collections import Counter
from dataclasses import dataclass

from core.chat.sharing import TRIAL_S, TRIAL_TOKENS, Shares, Ways


@dataclass(eq=False)
class Asker:
    owner: str
    used: float = 0.0


def spend(shares: Shares, jobs: list[Asker], rounds: int, cost: dict[str, float], most: int = 1) -> Counter[str]:
    used: Counter[str] = Counter()
    for _ in range(rounds):
        for job in shares.choose(jobs, most, 0.05):
            seconds = cost.get(job.owner, 1.0)
            job.used += seconds
            shares.charge(job.owner, seconds)
            used[job.owner] += seconds
    return used


def test_one_who_asks_for_four_answers_gets_no_more_than_one_who_asks_for_one() -> None:
    shares = Shares()
    jobs = [Asker("many") for _ in range(4)] + [Asker("one")]
    for owner in ("many", "one"):
        shares.enter(owner)
    used = spend(shares, jobs, 400, {})
    assert used["many"] == used["one"] == 200
    assert {job.used for job in jobs[:4]} == {50.0}


def test_shares_are_of_time_not_of_steps() -> None:
    shares = Shares()
    jobs = [Asker("slow"), Asker("fast")]
    for job in jobs:
        shares.enter(job.owner)
    used = spend(shares, jobs, 400, {"slow": 3.0, "fast": 1.0})
    assert abs(used["slow"] - used["fast"]) <= 3.0


def test_who_comes_later_starts_level_and_who_left_owes_nothing() -> None:
    shares = Shares()
    shares.enter("first")
    old = Asker("first")
    spend(shares, [old], 100, {})
    shares.enter("late")
    late = Asker("late")
    used = spend(shares, [old, late], 10, {})
    assert used["first"] == used["late"] == 5
    shares.leave("first")
    shares.charge("first", 5.0)  # its last step, which ended it
    shares.enter("first")
    assert shares.choose([Asker("first"), late]) != []


def test_together_takes_one_of_each_who_asks_before_a_second_of_any() -> None:
    shares = Shares()
    jobs = [Asker("a"), Asker("a"), Asker("a"), Asker("b")]
    for owner in ("a", "b"):
        shares.enter(owner)
    assert [job.owner for job in shares.choose(jobs, 2, 0.05)] == ["a", "b"]
    assert sorted(job.owner for job in shares.choose(jobs, 4, 0.05)) == ["a", "a", "a", "b"]


BOTH = frozenset({"0 dense", "1 cut"})


def measured(ways: Ways, turns: float, together: float, models: frozenset[str] = BOTH) -> int:
    """Rounds until both are known, at these rates."""
    rounds = 0
    while not (trial := ways.trial(models)) or not trial.decided:
        now = ways.at_once(models)
        ways.note(models, 5, 5 / (together if now else turns), together=now)
        rounds += 1
        assert rounds < 1000
    return rounds


def test_a_gpu_decodes_together_only_where_that_was_measured_to_be_faster_in_sum() -> None:
    faster, slower, level = Ways("cuda:0"), Ways("cuda:0"), Ways("cuda:0")
    measured(faster, 100, 150)
    measured(slower, 150, 100)
    measured(level, 100, 103)
    assert faster.at_once(BOTH)
    assert not slower.at_once(BOTH)
    assert not level.at_once(BOTH)  # shares are exact in turn: a little more is not worth them


def test_the_first_steps_of_a_way_which_load_kernels_do_not_count() -> None:
    ways = Ways("cuda:0")
    for seconds in (2.0, 1.0):  # in turn, then together: the one that is tried first is the coldest
        ways.note(BOTH, 1, seconds, together=ways.at_once(BOTH))
    measured(ways, 120, 100)
    assert not ways.at_once(BOTH)


def test_each_set_of_models_is_measured_for_itself_and_long_enough() -> None:
    ways = Ways("cuda:0")
    measured(ways, 100, 150)
    trial = ways.trial(BOTH)
    assert trial is not None
    assert min(trial.turns.seconds, trial.together.seconds) >= TRIAL_S
    assert min(trial.turns.tokens, trial.together.tokens) >= TRIAL_TOKENS
    other = frozenset({"0 dense", "1 dense"})
    assert ways.trial(other) is None
    measured(ways, 150, 100, other)
    assert not ways.at_once(other)
    assert ways.at_once(BOTH)


def test_a_cpu_takes_turns_and_what_was_asked_for_is_done() -> None:
    assert not Ways("cpu").at_once(BOTH)
    assert Ways("cpu", "together").at_once(BOTH)
    assert not Ways("cuda:0", "turns").at_once(BOTH)
