"""Threads follow the cores that others leave."""

import time

import pytest
import torch

from core.chat.threads import INTERVAL, Threads, spare


@pytest.mark.parametrize(
    ("cores", "others", "left"), [(8, 0.0, 8), (8, 0.4, 8), (8, 3.6, 4), (2, 1.0, 1), (2, 5.0, 1), (1, 1.0, 1)]
)
def test_spare_cores_are_those_the_others_leave_and_at_least_one(cores: int, others: float, left: int) -> None:
    assert spare(cores, others) == left


@pytest.mark.parametrize(("busy", "own", "left"), [(8.0, 8.0, 4), (8.0, 4.0, 2), (4.0, 0.0, 2), (0.0, 0.0, 4)])
def test_our_own_work_is_not_taken_for_that_of_others(
    monkeypatch: pytest.MonkeyPatch, busy: float, own: float, left: int
) -> None:
    before = torch.get_num_threads()
    now = time.monotonic()
    looks = iter([(now - 2 * INTERVAL, 100.0, 50.0), (now, 100.0 + busy * INTERVAL, 50.0 + own * INTERVAL)])
    monkeypatch.setattr(Threads, "_look", lambda self: next(looks))
    try:
        watched = Threads(cores=4)
        watched.adapt()
        assert watched.count == left
        if left != 4:
            assert torch.get_num_threads() == left
    finally:
        torch.set_num_threads(before)


def test_a_look_adds_up_real_seconds() -> None:
    watched = Threads(cores=4)
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    _, busy, own = watched._look()
    assert own - watched._own >= 0.25
    assert busy - watched._busy >= 0.2  # the system counts in hundredths
