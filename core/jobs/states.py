"""The states of a run, and the one function that says which may follow which.

    WAITING ──▶ RUNNING ──▶ COMPLETE | FAILED | CANCELLED      finished: nothing follows
     ▲ │           │
     │ ▼           ▼
     INTERRUPTED ──▶ RUNNING | FAILED | CANCELLED              the worker is gone without a result

A worker takes a run out of WAITING or INTERRUPTED by starting; when it ends without a result, even before its first
word, the run is INTERRUPTED, and goes back to the queue. Paused is a flag of the queue, not a state of a run.
"""

from enum import StrEnum

from core.errors import QueueError


class State(StrEnum):
    """Where a run stands; the value is what the files hold."""

    WAITING = "WAITING"
    RUNNING = "RUNNING"
    INTERRUPTED = "INTERRUPTED"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def finished(self) -> bool:
        """Whether the run is over for good."""
        return not FOLLOWS[self]


FOLLOWS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.INTERRUPTED, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset({State.INTERRUPTED, State.COMPLETE, State.FAILED, State.CANCELLED}),
    State.INTERRUPTED: frozenset({State.WAITING, State.RUNNING, State.FAILED, State.CANCELLED}),
    State.COMPLETE: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


def transition(old: State | None, new: State) -> State:
    """Return `new` if a run in state `old` may enter it; `old` None is a run that has no state yet.

    Raises QueueError otherwise: a finished run never changes.
    """
    if old is None:
        if new in (State.WAITING, State.RUNNING):
            return new
        raise QueueError(f"A new run cannot begin as {new}.", "It begins as WAITING or RUNNING.")
    if new in FOLLOWS[old]:
        return new
    if old.finished:
        raise QueueError(f"A run that is {old} never changes; {new} was asked for.", "Start a new run instead.")
    allowed = ", ".join(sorted(FOLLOWS[old]))
    raise QueueError(f"A run that is {old} cannot become {new}.", f"It can become {allowed}.")
