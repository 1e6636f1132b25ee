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


def held_by(pid: int) -> int:
    found = nvml_handle(GPU)
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
