"""Why a run failed, for people and for what can be done about it.

`explain` makes any exception an error of core/errors.py, whose message says what was needed and whose advice what to
do; `cause_of` puts it into one word, which events.jsonl keeps, so that a page can offer the change that helps
(core/remedies.py).

| cause | what |
|---|---|
| memory | device or host memory is exhausted |
| disk | no room left where the runs lie |
| gated | a model whose licence was not accepted, or that needs a login |
| model, data | a model, text or task data that cannot be had |
| nan | numbers that are none |
| killed | the worker was killed from outside, by the system most likely |
"""

import errno
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from core.errors import (
    DataError,
    DiskFullError,
    EspalierError,
    GatedModelError,
    ModelError,
    NumericalError,
    OutOfMemoryError,
)

KILLED = "killed"
CAUSES: dict[type[EspalierError], str] = {
    OutOfMemoryError: "memory",
    DiskFullError: "disk",
    GatedModelError: "gated",
    ModelError: "model",
    DataError: "data",
    NumericalError: "nan",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "os error 28", "errno 28")
_UNITS = {"bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMGT]iB)", re.IGNORECASE)


def cause_of(error: EspalierError) -> str:
    """The error in one word; '' for what nothing is offered for."""
    return next((word for kind, word in CAUSES.items() if isinstance(error, kind)), "")


def explain(error: BaseException, place: Path | None = None, stage: str | None = None) -> EspalierError:
    """What an exception means for people. `place`: where the run lies; `stage`: what it was doing."""
    if disk_is_full(error):
        return disk_full(place)
    if isinstance(error, EspalierError):
        return error
    if out_of_memory(error):
        return _memory(error, stage)
    kind = type(error).__name__
    return EspalierError(f"An unexpected error: {kind}: {_first_line(error)}", "The log has the whole traceback.")


def out_of_memory(error: BaseException) -> bool:
    """Whether device or host memory was refused."""
    return _on_gpu(error) or isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def disk_is_full(error: BaseException) -> bool:
    """Whether the error, or one that it came of, is a disk without room. Libraries wrap it in errors of their own."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL)
        or (not isinstance(each, EspalierError) and any(word in str(each).lower() for word in _FULL_WORDS))
        for each in _chain(error)
    )


def disk_full(place: Path | None = None) -> DiskFullError:
    """The error for a disk without room."""
    left = "" if place is None else f": {size(shutil.disk_usage(place).free)} are left where the runs lie"
    return DiskFullError(
        f"The disk is full{left}.",
        "Free some space or delete runs that are not needed, then retry; or let the run keep no weights.",
    )


@contextmanager
def full_disk_told() -> Iterator[None]:
    """For what people ask for, also as a decorator: a disk without room is a DiskFullError that says so."""
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            raise disk_full() from error
        raise


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _memory(error: BaseException, stage: str | None) -> OutOfMemoryError:
    gpu = _on_gpu(error)
    free, total = _left(gpu)
    asked = _asked_for(str(error))
    during = f" in the stage {stage.partition('.')[0]}" if stage else ""
    needed = f"{size(asked)} more were needed, and {size(free)}" if asked else size(free)
    return OutOfMemoryError(
        f"The memory of {'the GPU' if gpu else 'this machine'} ran out{during}: {needed} of {size(total)} were free.",
        "Lower what the run holds at once: batch size, calibration samples or window length; or use a smaller model.",
    )


def _on_gpu(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def _left(gpu: bool) -> tuple[int, int]:
    """Bytes that are free and that there are, now that the work was given up."""
    if gpu:
        cuda = sys.modules["torch"].cuda
        if cuda.is_available():
            free, total = cuda.mem_get_info()
            return int(free), int(total)
    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def _asked_for(text: str) -> int | None:
    match = _ASKED.search(text)
    return None if match is None else int(float(match[1]) * _UNITS[match[2].lower()])


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else "no message"
