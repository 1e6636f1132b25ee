"""Work that tells nothing itself, and is told of all the same."""

import threading
import time

import pytest

from core.errors import Cancelled
from core.progress import while_it_lasts


def test_a_quiet_call_is_told_of_and_gives_its_result() -> None:
    ticks: list[float] = []

    def quiet() -> int:
        time.sleep(0.3)
        return 7

    assert while_it_lasts(quiet, lambda: ticks.append(time.monotonic()), every=0.02) == 7
    assert len(ticks) >= 3


def test_what_a_quiet_call_raises_is_raised() -> None:
    def fails() -> None:
        raise ValueError("no such repository")

    with pytest.raises(ValueError, match="no such repository"):
        while_it_lasts(fails, lambda: None)


def test_a_quiet_call_is_left_when_it_is_cancelled() -> None:
    let_go = threading.Event()

    def cancel() -> None:
        raise Cancelled

    begun = time.monotonic()
    with pytest.raises(Cancelled):
        while_it_lasts(lambda: let_go.wait(60), cancel, every=0.05)
    assert time.monotonic() - begun < 30
    let_go.set()
