"""A worker lets any measurement on this machine have it, not only one on its own device."""

from pathlib import Path

import pytest

from core.chat.manners import Manners
from core.device_use import Use


@pytest.fixture(autouse=True)
def quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of this test's own: nobody else works on these devices."""
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))


def test_a_measurement_on_any_device_stops_the_steps_and_nothing_is_left_taken() -> None:
    manners = Manners([Use("cpu"), Use("cuda:0")])
    assert manners.enter()
    manners.leave()
    measuring = Use("cuda:0")
    with measuring.alone(patience=2.0) as alone:
        assert alone
        assert not manners.enter()
        elsewhere = Use("cpu")
        with elsewhere.alone(patience=0.5) as free:  # the refused step holds nothing of the other device either
            assert free
        elsewhere.close()
    assert manners.enter()
    manners.leave()
    measuring.close()


def test_the_machine_s_devices_are_looked_at_the_worker_s_own_first() -> None:
    manners = Manners.of_machine("cpu")
    assert manners.enter()
    held = Use("cpu")
    with held.alone(patience=0.1) as alone:
        assert not alone  # a step is under way
    held.close()
    manners.leave()
