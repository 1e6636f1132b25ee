"""Which device a waiting run gets, and why it waits: a made-up machine, no device is asked."""

import pytest

from core.device import DeviceInfo
from core.jobs import places
from core.jobs.places import Need, Start, Wait, Working, choose

GB = 10**9


def gpu(index: int, free: int = 80, name: str = "H100") -> DeviceInfo:
    return DeviceInfo("cuda", index, name, 80 * GB, free * GB, (9, 0))


def cpu(free: int = 100, total: int = 128) -> DeviceInfo:
    return DeviceInfo("cpu", 0, "EPYC", total * GB, free * GB)


def works(device: str, need: int = 10, **held: int) -> Working:
    return Working(device, Need("auto", need * GB), **{name: value * GB for name, value in held.items()})


def test_runs_are_spread_over_the_gpus_one_each_and_the_next_waits_its_turn() -> None:
    machine = [gpu(0), gpu(1), gpu(2, free=50), cpu()]
    working: list[Working] = []
    for _ in range(3):
        found = choose(Need("auto", 10 * GB, 5 * GB), working, machine, 500 * GB)
        assert isinstance(found, Start)
        working.append(works(found.device))
    assert sorted(run.device for run in working) == ["cuda:0", "cuda:1", "cuda:2"]
    assert choose(Need("auto", 10 * GB), working, machine, 500 * GB) == Wait("")
    assert choose(Need("auto", 10 * GB), working[:2], machine, 500 * GB) == Start("cuda:2")


def test_the_gpu_with_the_most_room_comes_first() -> None:
    assert choose(Need("cuda", GB), [], [gpu(0, free=20), gpu(1, free=70), cpu()], 500 * GB) == Start("cuda:1")


def test_a_numbered_gpu_is_that_one_and_the_cpu_takes_runs_beside_them() -> None:
    machine = [gpu(0), gpu(1), cpu()]
    assert choose(Need("cuda:0"), [works("cuda:1")], machine, 500 * GB) == Start("cuda:0")
    assert choose(Need("cuda:1"), [works("cuda:1")], machine, 500 * GB) == Wait("")
    assert choose(Need("cpu"), [works("cuda:0"), works("cuda:1")], machine, 500 * GB) == Start("cpu")
    assert choose(Need("auto"), [], [cpu()], 500 * GB) == Start("cpu")


def test_several_a_gpu_where_that_is_set_by_what_each_has_yet_to_take() -> None:
    machine = [gpu(0, free=40), cpu()]
    young = works("cuda:0", need=30, device_held=5)  # takes 25 more of the 40 that are free
    assert choose(Need("auto", 14 * GB), [young], machine, 500 * GB, gpu_runs=2) == Start("cuda:0")
    found = choose(Need("auto", 16 * GB), [young], machine, 500 * GB, gpu_runs=2)
    assert isinstance(found, Wait)
    assert found.reason.startswith(
        "It needs about 16.0 GB of memory: 15.0 GB of 80.0 GB are free on H100, besides what"
    )


def test_memory_that_others_hold_is_waited_for_and_said() -> None:
    machine = [gpu(0, free=5), cpu()]
    found = choose(Need("auto", 9 * GB), [], machine, 500 * GB)
    assert found == Wait("It needs about 9.0 GB of memory: 5.0 GB of 80.0 GB are free on H100.", "cuda")
    assert choose(Need("auto", 9 * GB), [], [gpu(0, free=10), cpu()], 500 * GB) == Start("cuda:0")
    assert choose(Need("auto", 9 * GB), [], machine, 500 * GB, anyway=True) == Start("cuda:0")


def test_the_host_must_have_room_for_the_weights_too() -> None:
    found = choose(Need("auto", 9 * GB, 30 * GB), [], [gpu(0), cpu(free=20)], 500 * GB)
    assert found == Wait("It needs about 30.0 GB of memory: 20.0 GB of 128.0 GB are free on this machine.", "cpu")


def test_what_no_waiting_would_bring_is_tried() -> None:
    assert choose(Need("cpu", 200 * GB), [], [cpu()], 500 * GB) == Start("cpu")


def test_runs_on_the_cpu_are_limited_by_memory() -> None:
    machine = [cpu(free=100)]
    running = [works("cpu", need=40, host_held=10)]
    assert choose(Need("cpu", 60 * GB), running, machine, 500 * GB) == Wait("")
    assert choose(Need("cpu", 60 * GB), running, machine, 500 * GB, cpu_runs=4) == Start("cpu")
    assert isinstance(choose(Need("cpu", 75 * GB), running, machine, 500 * GB, cpu_runs=4), Wait)


@pytest.mark.parametrize(("disk", "starts"), [(0, True), (1, True), (3, False)])
def test_a_disk_without_room_holds_the_queue_before_runs_fail(disk: int, starts: bool) -> None:
    found = choose(Need("cpu", GB, 0, disk * GB), [], [cpu()], 2 * GB)
    assert isinstance(found, Start) is starts
    assert starts or found == Wait("It needs about 3.0 GB on the disk: 2.0 GB are left, of which 200 MB stay free.")
    full = choose(Need("cpu"), [], [cpu()], 50 * 10**6)
    assert full == Wait("The disk is full: 50 MB are left, of which 200 MB stay free.")


@pytest.mark.parametrize("resolved", [None, [], {"needs": 3}, {"needs": {"device": "9", "host": -1, "disk": True}}])
def test_what_nobody_knows_is_not_waited_for(resolved: object) -> None:
    assert Need.of("auto", resolved) == Need("auto")
    assert choose(Need.of("auto", resolved), [], [cpu(free=0)], GB) == Start("cpu")


def test_a_gpu_that_went_away_is_waited_for() -> None:
    assert choose(Need("cuda:3"), [], [gpu(0), cpu()], GB) == Wait("")


def test_how_many_the_cpu_takes_follows_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "cores", lambda: 2)
    assert [places.cpu_runs(wanted) for wanted in (None, 3)] == [1, 3]
    monkeypatch.setattr(places, "cores", lambda: 64)
    assert places.cpu_runs(None) == 8


def test_how_many_work_side_by_side_follows_what_they_ask_for() -> None:
    machine = [gpu(0), gpu(1), cpu()]
    assert places.side_by_side(["auto"], machine) == 2
    assert places.side_by_side(["auto", "cpu"], machine) == 3
    assert places.side_by_side(["cuda:1", "cuda:1"], machine) == 1
    assert places.side_by_side(["cuda"], machine, gpu_runs=2) == 4
    assert places.side_by_side(["auto"], [cpu()], cpu_runs=4) == 4
    assert places.side_by_side([], machine) == places.side_by_side(["cuda:9"], machine) == 1
