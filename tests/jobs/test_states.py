"""Which state may follow which."""

import itertools

import pytest

from core.errors import QueueError
from core.jobs.states import State, transition

W, R, I, C, F, X = State.WAITING, State.RUNNING, State.INTERRUPTED, State.COMPLETE, State.FAILED, State.CANCELLED
ALLOWED = {(W, R), (W, I), (W, F), (W, X), (R, I), (R, C), (R, F), (R, X), (I, W), (I, R), (I, F), (I, X)}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_only_the_drawn_transitions_are_allowed(old: State, new: State) -> None:
    if (old, new) in ALLOWED:
        assert transition(old, new) is new
    else:
        with pytest.raises(QueueError):
            transition(old, new)


def test_a_run_begins_waiting_or_running() -> None:
    assert transition(None, W) is W
    assert transition(None, R) is R
    with pytest.raises(QueueError, match="cannot begin as COMPLETE"):
        transition(None, C)


def test_finished_runs_never_change() -> None:
    assert {state for state in State if state.finished} == {C, F, X}
    with pytest.raises(QueueError, match="never changes"):
        transition(C, R)
