"""The app's own queue on a real GPU: a cancelled run gives the GPU's memory back, as NVML counts it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.device import nvml_handle
from core.jobs import freeing, supervisor
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.jobs.supervisor import Supervisor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.fresh,  # a fork of a process that has used CUDA cannot use it
]
GPU = "cuda:0"
CONTEXT = 100_000_000  # bytes that a process with a CUDA context holds at the very least


@pytest.fixture
def boss(home: Path) -> Iterator[Supervisor]:
    made = Supervisor()
    made.start()
    yield made
    made.stop()


def at_work(run: RunDirectory) -> bool:
    return any(event["kind"] == "progress" and event["unit"] == "windows" for event in run.events())


def held_by(pid: int, device: str = GPU) -> int:
    found = nvml_handle(device)
    assert found is not None
    nvml, handle = found
    running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    return sum(int(each.usedGpuMemory or 0) for each in running if each.pid == pid)


def test_a_cancelled_run_leaves_the_gpu_within_five_seconds_and_the_next_one_has_it(
    boss: Supervisor, experiment: Any, run_of: Any, until: Any
) -> None:
    run, following = run_of(experiment(slow=True, device=GPU)), run_of(experiment(device=GPU))
    boss.enqueue(run.id)
    boss.enqueue(following.id)
    until(lambda: at_work(run))
    pid = run.status().pid
    before = held_by(pid)
    assert before > CONTEXT
    assert following.status().state is State.WAITING  # one run at a time on a GPU
    boss.cancel(run.id)
    until(lambda: freeing.read(run), 40)
    freed = freeing.read(run)
    assert freed is not None
    assert run.status().state is State.CANCELLED
    assert (freed.device, freed.forced, freed.device_left, freed.all) == (GPU, False, 0, True)
    assert freed.device_bytes is not None
    assert freed.device_bytes >= before
    assert freed.seconds < 5 + supervisor.POLL_S + 1
    assert held_by(pid) == 0
    until(lambda: following.status().state.finished)
    assert following.status().state is State.COMPLETE
    assert (following.results() or {})["environment"]["device"] == GPU
    print(f"\ncancelled: {freed.seconds} s, {freed.device_bytes / 1e6:.0f} MB of the GPU came back")


def test_a_killed_run_leaves_the_gpu_and_goes_on(boss: Supervisor, experiment: Any, run_of: Any, until: Any) -> None:
    run = run_of(experiment(slow=True, device=GPU))
    boss.enqueue(run.id)
    until(lambda: at_work(run))
    pid = run.status().pid
    assert held_by(pid) > CONTEXT
    os.kill(pid, signal.SIGKILL)
    until(lambda: held_by(pid) == 0, 5)
    until(lambda: run.status().state.finished)
    assert run.status().state is State.COMPLETE
    assert run.status().attempt == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_work_side_by_side_and_a_third_run_takes_the_one_that_is_freed(
    boss: Supervisor, experiment: Any, run_of: Any, until: Any
) -> None:
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    runs = [run_of(experiment(slow=True, device="auto")) for _ in devices]
    following = run_of(experiment(device="auto"))
    for run in (*runs, following):
        boss.enqueue(run.id)
    until(lambda: all(at_work(run) for run in runs))
    places = {run.id: run.status().place for run in runs}
    assert sorted(map(str, places.values())) == devices  # one run at a time on each
    assert following.status().state is State.WAITING
    for run in runs:  # each holds memory of its own device alone
        held = {device: held_by(run.status().pid, device) for device in devices}
        assert held.pop(str(places[run.id])) > CONTEXT
        assert not any(held.values())
    last = runs[-1]
    boss.cancel(last.id)
    until(lambda: following.status().state.finished)
    assert last.status().state is State.CANCELLED
    assert following.status().state is State.COMPLETE
    assert (following.results() or {})["environment"]["device_name"] == torch.cuda.get_device_name(0)
    until(lambda: all(run.status().state.finished for run in runs))
    assert [run.status().state for run in runs[:-1]] == [State.COMPLETE] * (len(runs) - 1)
