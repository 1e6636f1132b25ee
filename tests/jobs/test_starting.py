"""The supervisor starts runs where there is room: GPUs that are made up, processes that are real."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from core import device
from core.device import DeviceInfo
from core.errors import QueueError
from core.jobs import processes, starting, supervisor
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.jobs.supervisor import Supervisor

GB = 10**9
HOLDS_THE_LOCK = """
import os, sys, time
from pathlib import Path
from core.jobs.events import EventWriter
from core.jobs.processes import identity
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
directory = RunDirectory(Path(sys.argv[1]))
with directory.lock(), EventWriter(directory.events_file, attempt=1) as events:
    events.state(State.RUNNING, **identity(), place=os.environ["ESPALIER_PLACE"])
    while not (directory.path / "end").exists():
        time.sleep(0.02)
    events.state(State.COMPLETE)
"""


class Machine:
    """Devices whose free memory a test sets, and workers that hold their run's lock until they are let go."""

    def __init__(self, gpus: int) -> None:
        self.free = {"cpu": 100 * GB, **{f"cuda:{index}": 80 * GB for index in range(gpus)}}
        self.disk = 500 * GB
        self.environments: dict[str, dict[str, str]] = {}
        self.started: list[subprocess.Popen[bytes]] = []

    def devices(self) -> list[DeviceInfo]:
        gpus = [DeviceInfo("cuda", int(key[5:]), "H100", 80 * GB, free, (9, 0))
                for key, free in self.free.items() if key != "cpu"]  # fmt: skip
        return [*gpus, DeviceInfo("cpu", 0, "EPYC", 128 * GB, self.free["cpu"])]

    def popen(self, command: list[str], **how: Any) -> "subprocess.Popen[bytes]":
        directory = command[-1]
        self.environments[RunDirectory(directory).id] = how["env"]
        process = subprocess.Popen([sys.executable, "-c", HOLDS_THE_LOCK, directory], **how)
        self.started.append(process)
        return process


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(gpus=2)
    gpus = lambda: [each for each in made.devices() if each.kind == "cuda"]  # noqa: E731
    monkeypatch.setattr(starting, "devices", made.devices)
    monkeypatch.setattr(device, "gpus", gpus)
    monkeypatch.setattr(starting.shutil, "disk_usage", lambda _: SimpleNamespace(free=made.disk))
    fake = SimpleNamespace(Popen=made.popen, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(processes, "subprocess", fake)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


@pytest.fixture
def boss(machine: Machine) -> Iterator[Supervisor]:
    one = Supervisor()
    one.start()
    yield one
    one.stop()


@pytest.fixture
def queued(boss: Supervisor, experiment: Any, run_of: Any) -> Any:
    def make(device: str = "auto", needs: int = 10) -> RunDirectory:
        directory: RunDirectory = run_of(experiment().with_changes({"device": device}))
        boss.enqueue(directory.id, resolved={"needs": {"device": needs * GB, "host": GB, "disk": GB}})
        return directory

    return make


def seen_by(machine: Machine, run: RunDirectory) -> str:
    return machine.environments[run.id]["CUDA_VISIBLE_DEVICES"]


def end(*runs: RunDirectory) -> None:
    for run in runs:
        (run.path / "end").touch()


def test_two_gpus_work_side_by_side_each_run_sees_its_own_and_the_third_waits(
    boss: Supervisor, machine: Machine, queued: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")  # what the app itself may use
    one, two, three, beside = (queued(device) for device in ("auto", "cuda", "auto", "cpu"))
    until(lambda: len(boss.view().running) == 3)
    assert boss.view().waiting == (three.id,)
    assert boss.view().waits == {}
    seen = {machine.environments[run.id]["CUDA_VISIBLE_DEVICES"] for run in (one, two)}
    assert seen == {"5", "7"}
    assert machine.environments[one.id]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert machine.environments[one.id]["ESPALIER_PLACE"] != machine.environments[two.id]["ESPALIER_PLACE"]
    assert machine.environments[beside.id]["CUDA_VISIBLE_DEVICES"] == "5,7"
    end(two)
    until(lambda: three.id in boss.view().running)
    until(lambda: three.id in machine.environments)
    assert seen_by(machine, three) == seen_by(machine, two)
    end(one, three, beside)
    until(lambda: not boss.view().running)


def test_a_numbered_gpu_is_waited_for_while_the_other_works_on(
    boss: Supervisor, machine: Machine, queued: Any, until: Any
) -> None:
    first, second, third = (queued(device) for device in ("cuda:1", "cuda:1", "auto"))
    until(lambda: {first.id, third.id} == set(boss.view().running))
    assert boss.view().waiting == (second.id,)
    assert "CUDA_VISIBLE_DEVICES" not in {*machine.environments[first.id]} - {*os.environ}
    assert machine.environments[third.id]["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_run_waits_for_memory_says_so_and_others_go_on(
    boss: Supervisor, machine: Machine, queued: Any, until: Any
) -> None:
    machine.free |= {"cuda:0": 6 * GB, "cuda:1": 5 * GB}
    large, small = queued(needs=20), queued(needs=4)
    until(lambda: boss.view().running == (small.id,))
    reason = "It needs about 20.0 GB of memory: 5.0 GB of 80.0 GB are free on H100."
    until(lambda: boss.view().waits == {large.id: reason})
    kept = json.loads((boss.home / "queue.json").read_text())
    assert kept["waits"] == {large.id: reason}
    assert large.status().state is State.WAITING
    machine.free["cuda:1"] = 40 * GB
    until(lambda: large.id in boss.view().running)
    until(lambda: boss.view().waits == {})


def test_a_run_that_waits_for_memory_has_the_app_asked_for_it_now_and_then_and_starts_when_it_is_there(
    boss: Supervisor, machine: Machine, queued: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[frozenset[str], bool]] = []

    def make_room(kinds: frozenset[str]) -> bool:
        other = threading.Thread(target=boss.view)  # it gets the supervisor's lock meanwhile
        other.start()
        other.join(30)
        asked.append((kinds, other.is_alive()))
        if len(asked) == 1:
            raise RuntimeError("no answer")
        if len(asked) == 3:  # the chat's last answer has ended
            machine.free["cuda:1"] = 40 * GB
        return len(asked) == 3

    monkeypatch.setattr(supervisor, "ROOM_EVERY_S", 0.4)
    monkeypatch.setattr(boss, "_make_room", make_room)
    small = queued(needs=4)
    until(lambda: boss.view().running == (small.id,))
    assert asked == []
    machine.free |= {"cuda:0": 6 * GB, "cuda:1": 5 * GB}
    began = time.monotonic()
    large = queued(needs=20)
    until(lambda: large.id in boss.view().running)
    assert time.monotonic() - began >= 0.8
    assert asked == [(frozenset({"cuda"}), False)] * 3


def test_nobody_is_asked_for_memory_for_a_disk_that_is_full_or_a_queue_that_is_paused(
    boss: Supervisor, machine: Machine, queued: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[frozenset[str]] = []
    monkeypatch.setattr(supervisor, "ROOM_EVERY_S", 0.0)
    monkeypatch.setattr(boss, "_make_room", lambda kinds: bool(asked.append(kinds)))
    machine.disk = 100 * 10**6
    run = queued()
    until(lambda: run.id in boss.view().waits)
    boss.pause()
    machine.disk = 50 * GB
    machine.free |= {"cuda:0": GB, "cuda:1": GB}
    time.sleep(3 * supervisor.POLL_S)
    assert asked == []
    boss.resume()
    until(lambda: asked)
    assert asked[0] == {"cuda"}
    boss.pause()


def test_a_run_that_waits_for_memory_can_be_started_all_the_same(
    boss: Supervisor, machine: Machine, queued: Any, until: Any
) -> None:
    machine.free |= {"cuda:0": 6 * GB, "cuda:1": 5 * GB}
    large = queued(needs=20)
    until(lambda: large.id in boss.view().waits)
    boss.start_anyway(large.id)
    until(lambda: large.id in boss.view().running)
    with pytest.raises(QueueError, match="is not waiting"):
        boss.start_anyway(large.id)


def test_a_full_disk_holds_the_queue_and_it_goes_on_when_there_is_room(
    boss: Supervisor, machine: Machine, queued: Any, until: Any
) -> None:
    machine.disk = 100 * 10**6
    run = queued()
    until(lambda: run.id in boss.view().waits)
    assert "100 MB are left" in boss.view().waits[run.id]
    assert run.status().state is State.WAITING
    machine.disk = 50 * GB
    until(lambda: run.id in boss.view().running)


def test_a_run_whose_folder_cannot_be_written_to_fails_and_the_queue_goes_on(
    boss: Supervisor, queued: Any, until: Any
) -> None:
    boss.pause()
    broken, good = queued(), queued()
    broken.log_file.mkdir()  # root may write anywhere, but not into a folder
    boss.resume()
    until(lambda: good.id in boss.view().running)
    status = broken.status()
    assert status.state is State.FAILED
    assert status.reason.startswith("Its worker cannot be started: ")


def test_an_adopted_run_keeps_its_gpu(boss: Supervisor, machine: Machine, queued: Any, until: Any) -> None:
    first, second = queued(), queued()
    until(lambda: first.status().state is second.status().state is State.RUNNING)
    places = {run.id: machine.environments[run.id]["ESPALIER_PLACE"] for run in (first, second)}
    assert set(places.values()) == {"cuda:0", "cuda:1"}
    boss.halt()
    boss.start()
    assert {active.directory.id: active.device for active in boss._active.values()} == places
    end(first)
    until(lambda: boss.view().running == (second.id,))
    third = queued()
    until(lambda: third.id in boss.view().running)
    assert machine.environments[third.id]["ESPALIER_PLACE"] == places[first.id]


def test_a_worker_says_where_it_works(
    experiment: Any, run_of: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESPALIER_PLACE", "cpu")
    directory = run_of(experiment())
    output, _ = start("-m", "core.jobs.worker", str(directory.path)).communicate(timeout=120)
    assert directory.status().state is State.COMPLETE, output
    assert directory.status().place == "cpu"


@pytest.mark.parametrize(
    ("visible", "count", "found", "second"),
    [
        (None, 3, [0, 1, 2], "1"),
        ("2,0", 3, [2, 0], "0"),
        ("GPU-bb,GPU-aa", 3, [1, 0], "GPU-aa"),
        ("1,9,0", 3, [1], None),
        ("", 3, [], None),
    ],
)
def test_what_cuda_would_see_is_counted_as_cuda_counts_it(
    visible: str | None, count: int, found: list[int], second: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    uuids = ["GPU-aa11", "GPU-bb22", "GPU-cc33"]
    fake = SimpleNamespace(nvmlDeviceGetHandleByIndex=lambda index: index, nvmlDeviceGetUUID=lambda index: uuids[index])
    monkeypatch.setattr(device, "_nvml", lambda: fake)
    assert device._visible(count) == found
    if second is not None:
        assert device.visible_name("cuda:1") == second


def test_a_container_has_as_much_memory_as_it_may_take(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": "4000000000\n", "memory.current": "3000000000\n"}
    for name, content in {**files, "memory.stat": "anon 1\ninactive_file 500000000\n"}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(device, "_CGROUPS", ((tmp_path, "memory.max", "memory.current", "inactive_file"),))
    here = device.cpu()
    assert here.total_bytes == 4 * GB
    assert here.free_bytes == min(1_500_000_000, here.free_bytes)
    (tmp_path / "memory.max").write_text("max\n")
    assert device.cpu().total_bytes > 0
    monkeypatch.setattr(device, "_CGROUPS", ())
    assert device.cpu().free_bytes > 0
