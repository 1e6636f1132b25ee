"""What hardware there is, its free memory, and which number format suits it. No torch until a device is used.

GPUs are found through NVML, host memory through psutil, so that a page can show both without loading torch.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from core.errors import DeviceError, InputError

if TYPE_CHECKING:
    import torch


_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where the two kinds of Linux control groups say what a container may hold and holds; files' pages go."""


@dataclass(frozen=True)
class DeviceInfo:
    """One device. Memory in bytes; `compute_capability` of a CUDA device, e.g. (9, 0)."""

    kind: Literal["cpu", "cuda"]
    index: int
    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """`cpu` or `cuda:<index>`."""
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


@cache
def _nvml() -> Any:
    """The NVML module, initialised; None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - NVML's errors have no common base when its library is missing
        return None
    return pynvml


def _wanted() -> list[str] | None:
    """The entries of CUDA_VISIBLE_DEVICES; None where it is not set."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if wanted is None else [part.strip() for part in wanted.split(",") if part.strip()]


def _visible(count: int) -> list[int]:
    """NVML's indices in the order CUDA counts them, as CUDA_VISIBLE_DEVICES says: numbers, or GPUs' UUIDs."""
    wanted = _wanted()
    if wanted is None:
        return list(range(count))
    nvml, named = _nvml(), not all(part.isdigit() for part in wanted)
    uuids = [_uuid(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)] if named else []
    found = []
    for part in wanted:
        index = int(part) if part.isdigit() else next((i for i, uuid in enumerate(uuids) if uuid.startswith(part)), -1)
        if not 0 <= index < count:  # CUDA sees none from here on
            break
        found.append(index)
    return found


def _uuid(nvml: Any, handle: Any) -> str:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return str(uuid.decode() if isinstance(uuid, bytes) else uuid)


def visible_name(device: str) -> str:
    """What CUDA_VISIBLE_DEVICES must say for a child that is to see only this device (`cuda:1`) of ours."""
    index = int(device.partition(":")[2] or 0)
    wanted = _wanted()
    return str(index) if wanted is None else wanted[index]


def gpus() -> list[DeviceInfo]:
    """CUDA devices that the driver shows, in CUDA's order."""
    nvml = _nvml()
    if nvml is None:
        return []
    found = []
    for index, physical in enumerate(_visible(nvml.nvmlDeviceGetCount())):
        handle = nvml.nvmlDeviceGetHandleByIndex(physical)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
        capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        found.append(DeviceInfo("cuda", index, str(name), int(memory.total), int(memory.free), tuple(capability)))
    return found


@cache
def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
            return next(names, "CPU")
    except OSError:
        return "CPU"


def cpu() -> DeviceInfo:
    """The host's processor and memory; of a container, as much as it may take."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    if (limit := _limit()) is not None and limit[0] < total:
        total, free = limit[0], min(free, max(limit[0] - limit[1], 0))
    return DeviceInfo("cpu", 0, _cpu_name(), total, free)


def _limit() -> tuple[int, int] | None:
    """Bytes that this container may hold, and those it holds and cannot give up; None where there is no limit."""
    for folder, most, now, files in _CGROUPS:
        try:
            limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in (most, now))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            return int(limit), int(used) - int(stat.get(files, 0))
        except (OSError, ValueError):  # not this kind of system, or `max`
            continue
    return None


def devices() -> list[DeviceInfo]:
    """GPUs first, the CPU last."""
    return [*gpus(), cpu()]


def resolve_device(wanted: str) -> str:
    """`auto` → the first GPU, else the CPU; `cuda` → `cuda:0`. InputError if there is no such device."""
    found = gpus()
    if wanted == "auto":
        return found[0].key if found else "cpu"
    if wanted == "cpu":
        return "cpu"
    index = int(wanted.partition(":")[2] or 0)
    if index >= len(found):
        have = ", ".join(gpu.key for gpu in found) or "no CUDA device"
        raise InputError(
            f"device {wanted} asked for, but this machine has {have}.", "Choose auto, cpu or one of these."
        )
    return f"cuda:{index}"


def info(device: str) -> DeviceInfo:
    """What there is to know of a resolved device (`cpu`, `cuda:0`)."""
    return next((d for d in devices() if d.key == device), cpu())


def nvml_handle(device: str) -> Any:
    """NVML and its handle of a resolved CUDA device; None for the CPU and where there is no driver."""
    nvml = _nvml()
    if nvml is None or not device.startswith("cuda"):
        return None
    index = int(device.partition(":")[2] or 0)
    visible = _visible(nvml.nvmlDeviceGetCount())
    return (nvml, nvml.nvmlDeviceGetHandleByIndex(visible[index])) if index < len(visible) else None


@cache
def identity(device: str) -> str:
    """A name of a resolved device that is the same in all processes: `cpu`, or a GPU's UUID."""
    found = nvml_handle(device)
    if found is None:
        return device.replace(":", "-")
    return _uuid(*found)


def resolve_dtype(wanted: str, device: str) -> str:
    """`auto` → float32 on a CPU, bfloat16 from compute capability 8.0, else float16."""
    if wanted != "auto":
        return wanted
    if device == "cpu":
        return "float32"
    capability = info(device).compute_capability
    return "bfloat16" if capability is None or capability >= (8, 0) else "float16"


def torch_device(device: str) -> "torch.device":
    """The torch device of a resolved name. DeviceError where the driver shows a GPU that torch cannot use.

    On a GPU cuDNN's attention is switched off for this process: it makes a plan for each new length of text, tens of
    milliseconds every time, and every token that is written, and most batches of a task, have one of their own.
    """
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        raise DeviceError(
            f"The driver shows {info(device).name}, but torch {torch.__version__} cannot use it.",
            "Install a CUDA build of torch that fits the driver, or choose the device cpu.",
        )
    if device != "cpu":
        torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(device)
