"""Who waits for whom on a device."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.device_use import Use, lock_files

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def uses() -> Iterator[tuple[Use, Use]]:
    pair = Use("cpu"), Use("cpu")
    yield pair
    for use in pair:
        use.close()


def test_many_work_at_once_and_nobody_works_while_one_measures(uses: tuple[Use, Use]) -> None:
    one, other = uses
    assert one.enter()
    assert other.enter()
    other.leave()
    with one.alone() as alone:
        assert alone
        assert other.closed()
        assert not other.enter()
        assert one.enter()  # its own steps go on
        assert one.pass_by() == 0.0
        assert not other.enter()
    assert other.enter()
    assert one.pass_by() == 0.0  # who worked before the measurement works on after it


def test_a_measurement_waits_for_a_step_and_not_for_a_stream_of_steps(uses: tuple[Use, Use]) -> None:
    measures, works = uses
    over = threading.Event()
    steps: list[float] = []

    def stream() -> None:
        while not over.is_set():
            if works.enter():
                steps.append(time.monotonic())
                time.sleep(0.01)
                works.leave()
            else:
                time.sleep(0.001)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        while len(steps) < 5:
            time.sleep(0.005)
        begun = time.monotonic()
        with measures.alone() as alone:
            assert alone
            assert time.monotonic() - begun < 10
            time.sleep(0.05)
            before = len(steps)
            time.sleep(0.1)
            assert len(steps) == before
    finally:
        over.set()
        thread.join()


def test_a_run_between_two_steps_lets_the_measurement_through(uses: tuple[Use, Use]) -> None:
    measures, works = uses
    assert works.enter()
    inside, done = threading.Event(), threading.Event()

    def measure() -> None:
        with measures.alone() as alone:
            assert alone
            inside.set()
            done.wait(10)

    thread = threading.Thread(target=measure)
    thread.start()
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.monotonic())
        if inside.is_set() and len(ticks) > 3:
            done.set()

    while not inside.is_set():
        waited = works.pass_by(tick)
    thread.join()
    assert waited > 0
    assert len(ticks) > 3


def test_who_does_not_pause_is_waited_for_only_so_long(uses: tuple[Use, Use]) -> None:
    measures, works = uses
    assert works.enter()
    with measures.alone(patience=0.1) as alone:
        assert not alone


def test_the_lock_of_a_process_that_dies_is_gone_with_it(uses: tuple[Use, Use]) -> None:
    code = "from core.device_use import Use\nwith Use('cpu').alone(): print('in', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    assert uses[0].closed()
    process.kill()
    process.communicate()
    assert not uses[0].closed()


def test_waiting_can_be_cancelled(uses: tuple[Use, Use]) -> None:
    measures, works = uses

    def cancel() -> None:
        raise KeyboardInterrupt

    with measures.alone():
        with pytest.raises(KeyboardInterrupt):
            works.pass_by(cancel)
        with pytest.raises(KeyboardInterrupt), works.alone(cancel):
            pass
    with works.alone() as alone:
        assert alone


def test_devices_do_not_wait_for_each_other_and_the_files_are_the_users_own() -> None:
    cpu, gpu = Use("cpu"), Use("cuda:1")
    with cpu.alone() as alone:
        assert alone
        assert gpu.enter()
    assert [path.stat().st_mode & 0o777 for path in lock_files("cpu")] == [0o600, 0o600]
    cpu.close()
    gpu.close()


def test_without_a_place_for_the_files_nothing_is_waited_for(cache: Path) -> None:
    cache.write_text("no folder")
    use = Use("cpu")
    with use.alone() as alone:
        assert alone
    assert use.enter()
    assert use.pass_by() == 0.0
    use.close()
