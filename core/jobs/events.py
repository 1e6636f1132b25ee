"""events.jsonl: what a worker says while it works, one JSON object a line, only ever appended.

`{"v": 1, "seq", "attempt", "time", "kind": "state|stage|progress|metric|warning|heartbeat", …}`. `seq` counts on over
all attempts of a run. Lines that matter for resumption (state, stage, metric, warning) are forced to disk; progress is
thinned to one line in half a second; a heartbeat says every two seconds that the worker lives and what memory it holds.
"""

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.jobs.states import State
from core.jobs.status import finite, fold_of, now_iso

PROGRESS_EVERY_S = 0.5
HEARTBEAT_EVERY_S = 2.0
_DURABLE = frozenset({"state", "stage", "metric", "warning"})

Listener = Callable[[Mapping[str, Any]], None]


class EventWriter:
    """Appends events to one file. Safe to call from several threads; the process must hold the run's worker lock.

    `listener` hears every event after it was written (the command line's progress bar); it must not raise.
    """

    def __init__(self, path: Path, *, attempt: int | None = None, listener: Listener | None = None) -> None:
        """`attempt` None continues from the file: one more than its highest."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fold = fold_of(path)
        before = fold.update(path)
        self.attempt = attempt if attempt is not None else before.attempt + 1
        self._seq = fold.last_seq
        self._listener = listener
        self._lock = threading.RLock()
        self._series: _Series | None = None
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None
        self._handle: int | None = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._torn = _ends_torn(self._handle)
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write the progress that is still held back, end the heartbeat, close the file. May be called twice."""
        self._stop.set()
        heart, self._heart = self._heart, None
        if heart is not None and heart is not threading.current_thread():
            heart.join(timeout=5)
        with self._lock:
            if self._handle is None:
                return
            with suppress(OSError):
                self._flush_progress()
            os.close(self._handle)
            self._handle = None

    # --- kinds of event

    def state(self, state: State, *, reason: str = "", advice: str = "", **more: Any) -> None:
        """The run enters `state`, for a `reason` (one sentence), with `advice`. Nothing follows a final state."""
        said = {key: text for key, text in (("reason", reason), ("advice", advice)) if text}
        with self._lock:
            self._flush_progress()
            self._append("state", {"state": str(state), **said, **more})
            self._over = state.finished

    def stage(self, name: str, status: str, **more: Any) -> None:
        """A stage `started`, `finished` (with `seconds`) or was `reused` from an earlier attempt."""
        with self._lock:
            self._flush_progress()
            self._series = None
            self._append("stage", {"stage": name, "status": status, **more})

    def progress(self, stage: str, done: float, total: float, unit: str, task: str | None = None) -> None:
        """How far the stage is. Call it as often as you like: the first, the last and one in 0.5 s are written."""
        with self._lock:
            series = self._series
            if series is None or not series.same(stage, task, total, unit, done):
                self._flush_progress()
                series = self._series = _Series(stage, task, total, unit, done)
            series.done = done
            series.pending = True
            now = time.monotonic()
            if now - series.written >= PROGRESS_EVERY_S or (done >= total and not series.complete):
                self._flush_progress(now)

    def metric(self, metric: Mapping[str, Any]) -> None:
        """A number that was measured (core.evaluation.metrics.Metric as a dict)."""
        self._append("metric", metric)

    def warning(self, text: str, stage: str | None = None) -> None:
        """Something that people should know beside the result."""
        self._append("warning", {"text": text, **({"stage": stage} if stage else {})})

    def start_heartbeat(self) -> None:
        """Say every two seconds what memory the worker holds, from a thread of its own."""
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()

    # --- writing

    def _flush_progress(self, now: float | None = None) -> None:
        series = self._series
        if series is None or not series.pending:
            return
        self._append("progress", series.event())
        series.written = time.monotonic() if now is None else now
        series.pending = False
        series.complete = series.done >= series.total

    def _append(self, kind: str, body: Mapping[str, Any]) -> None:
        with self._lock:
            if self._handle is None or self._over:
                return
            head = {"v": 1, "seq": self._seq + 1, "attempt": self.attempt, "time": now_iso(), "kind": kind}
            event = {**head, **{key: value for key, value in body.items() if key not in head}}
            line = json.dumps(finite(event), ensure_ascii=False, allow_nan=False, default=str) + "\n"
            data = (("\n" if self._torn else "") + line).encode()
            self._torn = True  # until the whole line is known to be there
            written = os.write(self._handle, data)
            if written != len(data):
                raise OSError(errno.ENOSPC, "events.jsonl could not be written: the disk is full")
            self._torn = False
            self._seq += 1
            if kind in _DURABLE:
                os.fsync(self._handle)
        if self._listener is not None:
            self._listener(event)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_EVERY_S):
            with suppress(OSError):  # a full disk must not end the heartbeat: the work itself will say so
                self._append("heartbeat", memory_now())


class _Series:
    """Progress of one piece of work, from which the time left is reckoned."""

    def __init__(self, stage: str, task: str | None, total: float, unit: str, done: float) -> None:
        self.stage, self.task, self.total, self.unit = stage, task, total, unit
        self.first_done, self.begun = done, time.monotonic()
        self.done, self.pending, self.complete, self.written = done, False, False, -math.inf

    def same(self, stage: str, task: str | None, total: float, unit: str, done: float) -> bool:
        known = (self.stage, self.task, self.total, self.unit)
        return known == (stage, task, total, unit) and done >= self.done

    def event(self) -> dict[str, Any]:
        elapsed, gained = time.monotonic() - self.begun, self.done - self.first_done
        left = max(self.total - self.done, 0.0)
        eta = round(elapsed * left / gained, 1) if gained > 0 and elapsed > 0.2 else (0.0 if left == 0 else None)
        body = {"stage": self.stage, "done": self.done, "total": self.total, "unit": self.unit, "eta_s": eta}
        return body if self.task is None else {**body, "task": self.task}


def memory_now() -> dict[str, int]:
    """`rss_bytes` of this process with its children, and `device_bytes` that torch holds on GPUs once it uses them."""
    import sys

    import psutil

    process = psutil.Process()
    total = process.memory_info().rss
    with suppress(psutil.Error):
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                total += child.memory_info().rss
    cuda = sys.modules.get("torch.cuda")
    try:
        if cuda is None or not cuda.is_initialized():
            return {"rss_bytes": total}
        used = sum(cuda.memory_reserved(index) for index in range(cuda.device_count()))
    except AttributeError:  # torch is being imported by the main thread just now
        return {"rss_bytes": total}
    return {"rss_bytes": total, "device_bytes": used}


def _ends_torn(handle: int) -> bool:
    """Whether the file's last line has no end: a worker was killed while it wrote, or the disk was full."""
    size = os.fstat(handle).st_size
    return size > 0 and os.pread(handle, 1, size - 1) != b"\n"
