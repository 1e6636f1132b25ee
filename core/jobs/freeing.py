"""Whether a cancelled run gave its memory back: what it held when it was asked to stop, and what is left of it after.

The answer is freed.json in the run's folder, for its page. A process that outlived its worker is ended here. Device
memory is asked of NVML, by process; where the driver does not say which process holds what (containers have numbers of
their own), by what is in use on the whole device before and after: it must have fallen by what the worker said it held.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from core.device import info, nvml_handle
from core.jobs import processes
from core.jobs.rundir import RunDirectory, read_json, to_json, write_atomic
from core.jobs.status import now_iso

FILE = "freed.json"
WAIT_S = 1.0  # a driver takes a moment to clear up after a process


@dataclass(frozen=True)
class Held:
    """What a worker and its children held when it was asked to stop. Sizes in bytes; None where nobody can tell.

    `on_device`: by process. `in_use`: on the whole device, by everybody. `claimed`: what the worker last said it held.
    """

    device: str
    asked: float
    family: tuple[tuple[int, float], ...]
    rss: int
    on_device: int | None = None
    in_use: int | None = None
    claimed: int = 0


@dataclass(frozen=True)
class Freed:
    """What became of it. `left`: processes that could not be ended; `device_left` bytes still held on the device, None
    where the device could not be asked."""

    seconds: float
    forced: bool
    rss: int
    device: str
    device_bytes: int | None = None
    device_left: int | None = None
    left: tuple[int, ...] = field(default=())

    @property
    def all(self) -> bool:
        """Whether nothing of the run is left in any memory that could be asked."""
        return not self.left and not self.device_left

    @property
    def asked(self) -> bool:
        """Whether the run's device could be asked what is left there; a CPU's memory is the processes' own."""
        return self.device_left is not None or not self.device.startswith("cuda")


def look(process: psutil.Process, device: str, claimed: int = 0) -> Held:
    """What a worker holds now, with all its children. `claimed`: bytes that it last said it holds on the device."""
    family, rss = [], 0
    members = [process]
    with suppress(psutil.Error):
        members += process.children(recursive=True)
    for member in members:
        with suppress(psutil.Error):
            family.append((member.pid, member.create_time()))
            rss += member.memory_info().rss
    pids = [pid for pid, _ in family]
    return Held(device, time.monotonic(), tuple(family), rss, _on_device(device, pids), _in_use(device), claimed)


def settle(directory: RunDirectory, held: Held, *, forced: bool) -> Freed:
    """After the worker is gone: end what is left of its family, see what the device says, and write that down."""
    seconds = time.monotonic() - held.asked
    left = _end(held.family)
    freed = Freed(round(seconds, 1), forced, held.rss, held.device, *_device(held), left)
    with suppress(OSError):  # a full disk must not keep the run from being over
        write_atomic(directory.path / FILE, to_json({"v": 1, "time": now_iso(), **vars(freed), "left": list(left)}))
    return freed


def read(directory: RunDirectory) -> Freed | None:
    """What was written down of a run; None if nothing was, or nobody can read it."""
    content: Mapping[str, Any] = read_json(directory.path / FILE) or {}
    numbers = {name: content.get(name) for name in ("seconds", "rss", "device_bytes", "device_left")}
    if not all(value is None or (isinstance(value, int | float) and value >= 0) for value in numbers.values()):
        return None
    seconds, rss, left = numbers["seconds"], numbers["rss"], content.get("left")
    if seconds is None or rss is None or not isinstance(left, list):
        return None
    held, still = (None if value is None else int(value) for value in (numbers["device_bytes"], numbers["device_left"]))
    return Freed(
        seconds=float(seconds),
        forced=content.get("forced") is True,
        rss=int(rss),
        device=str(content.get("device", "")),
        device_bytes=held,
        device_left=still,
        left=tuple(pid for pid in left if isinstance(pid, int)),
    )


def _end(family: Sequence[tuple[int, float]]) -> tuple[int, ...]:
    """Kill whoever of a family still lives; those that will not go."""
    deadline = time.monotonic() + WAIT_S
    while True:
        alive = [found for pid, created in family if (found := processes.find(pid, created)) is not None]
        for member in alive:
            with suppress(psutil.Error):
                member.kill()
        if not alive or time.monotonic() > deadline:
            return tuple(member.pid for member in alive)
        time.sleep(0.02)


def _device(held: Held) -> tuple[int | None, int | None]:
    """Bytes that the run held on its device, and those that are still held there."""
    pids = [pid for pid, _ in held.family]
    deadline = time.monotonic() + WAIT_S
    while True:
        if held.on_device:
            before, left = held.on_device, _on_device(held.device, pids)
        elif held.in_use is not None and (now := _in_use(held.device)) is not None:
            fallen = max(held.in_use - now, 0)
            before, left = max(fallen, held.claimed), max(held.claimed - fallen, 0)
        else:
            return None, None
        if not left or time.monotonic() > deadline:
            return before, left
        time.sleep(0.05)


def _on_device(device: str, pids: Sequence[int]) -> int | None:
    """Bytes that NVML counts for these processes; None where it does not tell."""
    found = nvml_handle(device)
    if found is None:
        return None
    nvml, handle = found
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    return sum(int(each.usedGpuMemory or 0) for each in running if each.pid in pids)


def _in_use(device: str) -> int | None:
    """Bytes in use on the whole device; None for the CPU, whose memory is everybody's."""
    if not device.startswith("cuda"):
        return None
    now = info(device)
    return now.total_bytes - now.free_bytes if now.key == device else None
