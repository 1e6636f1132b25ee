"""Whether other programs used a device while something was measured on it: said in words beside the value.

| device | what is looked at | disturbed from |
|---|---|---|
| CPU, GPU | time that other processes kept cores busy | a tenth of the machine's cores |
| CPU, GPU | time that this process's threads were ready, and had no core (Linux) | 5 % of the time |
| GPU | its use while this process rests, before and after (NVML) | 5 % |
| GPU | by how much the memory of others changed meanwhile (NVML) | 256 MiB |

A GPU is fed by one thread of the host, and waits for the next kernel of a small model most of the time: what keeps the
host busy slows it down as much as what keeps the GPU busy.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from core.device import nvml_handle

OTHERS = 0.1  # of the machine's cores
WAITED = 0.05  # of the time that passed, or that the threads ran, if that is more
GPU_BUSY = 5  # per cent
GPU_MEMORY = 256 << 20
REST_S = 1.2  # NVML's use is an average over up to a second
SAMPLES = 3


def watch(device: str) -> "CpuWatch | GpuWatch":
    """Begin to watch a resolved device; `verdict` of what it returns ends it."""
    return GpuWatch(device) if device.startswith("cuda") else CpuWatch()


class _Look(NamedTuple):
    """Seconds: the clock; cores busy, all together; of them ours; our threads on a core, and waiting for one."""

    clock: float
    busy: float
    own: float
    ran: float
    waited: float


class CpuWatch:
    """What others did on the CPU since it was made."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._before = self._look()

    def verdict(self) -> str:
        """What disturbed, in words without a full stop; '' if nothing did."""
        now, before, cores = self._look(), self._before, psutil.cpu_count() or 1
        others = max(0.0, now.busy - before.busy - (now.own - before.own)) / max(now.clock - before.clock, 1e-9)
        ran, waited = now.ran - before.ran, now.waited - before.waited
        if waited > WAITED * max(ran, now.clock - before.clock):
            return f"this process waited for a core {waited / max(ran + waited, 1e-9):.0%} of its time"
        if others > OTHERS * cores:
            return f"other programs kept {others:.1f} of {cores} cores busy"
        return ""

    def _look(self) -> _Look:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0) + getattr(times, "steal", 0.0)
        mine = self._process.cpu_times()
        own = mine.user + mine.system + mine.children_user + mine.children_system  # children that have ended
        return _Look(time.monotonic(), sum(times) - idle, own, *_scheduled())


def _scheduled() -> tuple[float, float]:
    """Seconds on a core, and ready without one, of this process's threads; zeros where the system does not tell."""
    ran = waited = 0
    try:
        tasks = list(Path("/proc/self/task").iterdir())
    except OSError:
        return 0.0, 0.0
    for task in tasks:
        try:
            on, off, _ = (task / "schedstat").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            continue
        ran, waited = ran + int(on), waited + int(off)
    return ran / 1e9, waited / 1e9


class GpuWatch:
    """What others did on a GPU and its host since it was made; making it takes REST_S and a little more, and so does
    the verdict."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._found = nvml_handle(device)
        self._before = self._look()
        self._host = CpuWatch()

    def verdict(self) -> str:
        """What disturbed, in words without a full stop; '' if nothing did. Of the GPU nothing is said where the driver
        does not tell."""
        host = self._host.verdict()
        busy, memory = self._look()
        busiest, changed = max(busy, self._before[0]), abs(memory - self._before[1])
        if busiest >= GPU_BUSY:
            return f"other programs kept the GPU {busiest:.0f} % busy"
        if changed >= GPU_MEMORY:
            return f"the GPU memory of other programs changed by {changed / 2**30:.1f} GiB meanwhile"
        return host

    def _look(self) -> tuple[float, int]:
        """(per cent of use while this process rests, bytes that others hold, up to a constant)."""
        if self._found is None:
            return 0.0, 0
        import torch

        nvml, handle = self._found
        torch.cuda.synchronize(self._device)
        time.sleep(REST_S)
        busy = 0.0
        for _ in range(SAMPLES):
            busy = max(busy, float(_asked(nvml, nvml.nvmlDeviceGetUtilizationRates, handle, "gpu")))
            time.sleep(0.1)
        used = int(_asked(nvml, nvml.nvmlDeviceGetMemoryInfo, handle, "used"))
        return busy, used - int(torch.cuda.memory_reserved(self._device))


def _asked(nvml: Any, question: Any, handle: Any, field: str) -> float:
    """A field of an answer of NVML; 0 where the device does not tell (MIG, for one)."""
    try:
        return float(getattr(question(handle), field))
    except nvml.NVMLError:
        return 0.0
