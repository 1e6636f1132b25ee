"""Where a waiting run may start now, and if nowhere, why it waits. Pure: what there is, is handed in.

A GPU takes one run at a time (`ESPALIER_RUNS_PER_GPU`), each GPU of the machine its own; the CPU takes as many as its
cores are good for (`ESPALIER_CPU_RUNS`). Any of them only while its memory, less what the runs that work have yet to
take, suffices for what the run is thought to need; so a run waits where it would have crashed. One that needs more than
there is at all gains nothing by waiting: it is tried.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.device import DeviceInfo
from core.jobs.failures import size

DISK_KEPT_FREE = 200 * 10**6
"""Bytes that a new run leaves on the disk, for the words of those that work."""
CORES_A_RUN = 8
"""Of the CPU: small models gain little from more."""


@dataclass(frozen=True)
class Need:
    """What a run asks for: a device as its experiment says it, and what it is thought to take, in bytes; 0: unknown."""

    wanted: str = "auto"
    device: int = 0
    host: int = 0
    disk: int = 0

    @classmethod
    def of(cls, wanted: str, resolved: object) -> "Need":
        """From what state.json says was resolved when the run was queued; whatever is no number there is unknown."""
        found = resolved.get("needs") if isinstance(resolved, Mapping) else None
        needs: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        return cls(wanted, *(_count(needs.get(name)) for name in ("device", "host", "disk")))

    def of_memory(self, memory: str, place: str) -> int:
        """Bytes that it needs of a device's memory (`cpu`: the host's) when it works on `place`."""
        return self.device if memory == place else self.host if memory == "cpu" else 0


@dataclass(frozen=True)
class Working:
    """A run that works now: where, what it needs, and what it holds already, in bytes."""

    device: str
    need: Need
    host_held: int = 0
    device_held: int = 0

    def yet(self, memory: str) -> int:
        """Bytes of a device's memory that it has yet to take."""
        held = self.host_held if memory == "cpu" else self.device_held
        return max(self.need.of_memory(memory, self.device) - held, 0)


@dataclass(frozen=True)
class Start:
    """It may begin on this device."""

    device: str


@dataclass(frozen=True)
class Wait:
    """It may not; '' where its turn has simply not come. `memory`: the kind of device whose memory is short, or ''."""

    reason: str = ""
    memory: str = ""


def choose(
    need: Need,
    working: Sequence[Working],
    devices: Sequence[DeviceInfo],
    disk_free: int,
    *,
    cpu_runs: int = 1,
    gpu_runs: int = 1,
    anyway: bool = False,
) -> Start | Wait:
    """The device with the most room of those that the run may use. `anyway`: take its turn, whatever is free."""
    at_once = {"cpu": cpu_runs, "cuda": gpu_runs}
    slots = [
        each
        for each in _candidates(need, devices)
        if sum(run.device == each.key for run in working) < at_once[each.kind]
    ]
    if not slots:
        return Wait()
    best = max(slots, key=lambda each: _room(each, working))
    if anyway:
        return Start(best.key)
    if disk_free < need.disk + DISK_KEPT_FREE:
        needed = f"It needs about {size(need.disk)} on the disk" if need.disk else "The disk is full"
        return Wait(f"{needed}: {size(disk_free)} are left, of which {size(DISK_KEPT_FREE)} stay free.")
    host = next((each for each in devices if each.kind == "cpu" and each.key != best.key), None)
    for memory in (best, host):
        if memory is not None and (why := _short(need, memory, best.key, working)):
            return Wait(why, memory.kind)
    return Start(best.key)


def side_by_side(wanted: Iterable[str], devices: Sequence[DeviceInfo], *, cpu_runs: int = 1, gpu_runs: int = 1) -> int:
    """How many runs, which want these devices, may work at once; at least one."""
    usable = {each.key: each.kind for name in set(wanted) for each in _candidates(Need(name), devices)}
    return max(1, sum(cpu_runs if kind == "cpu" else gpu_runs for kind in usable.values()))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_runs(wanted: int | None) -> int:
    """How many runs work on the CPU side by side: what was asked for, or one for every eight cores."""
    return max(1, cores() // CORES_A_RUN) if wanted is None else wanted


def _candidates(need: Need, devices: Iterable[DeviceInfo]) -> list[DeviceInfo]:
    found = list(devices)
    gpus = [each for each in found if each.kind == "cuda"]
    if need.wanted == "cpu" or (need.wanted == "auto" and not gpus):
        return [each for each in found if each.kind == "cpu"]
    return [each for each in gpus if need.wanted in ("auto", "cuda", each.key)]


def _room(device: DeviceInfo, working: Iterable[Working]) -> int:
    return device.free_bytes - sum(run.yet(device.key) for run in working)


def _short(need: Need, memory: DeviceInfo, place: str, working: Sequence[Working]) -> str:
    """Why a run must wait for memory; '' where it need not, or where waiting cannot help."""
    needed, room = need.of_memory(memory.key, place), _room(memory, working)
    if needed <= room or needed > memory.total_bytes:
        return ""
    name = "this machine" if memory.kind == "cpu" else memory.name
    kept = ", besides what running ones have yet to take" if any(run.yet(memory.key) for run in working) else ""
    free = f"{size(max(room, 0))} of {size(memory.total_bytes)} are free on {name}{kept}"
    return f"It needs about {size(needed)} of memory: {free}."


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60 else 0
