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
            now = time.monotonic()
            series.reach(done, now)
            every = PROGRESS_EVERY_S if series.moved else HEARTBEAT_EVERY_S
            if now - series.written_at >= every or (series.moved and done >= total):
                self._write_progress(series)

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

    def _flush_progress(self) -> None:
        if self._series is not None and self._series.moved:
            self._write_progress(self._series)

    def _write_progress(self, series: "_Series") -> None:
        now = time.monotonic()
        self._append("progress", series.event(now))
        series.written_at, series.written = now, series.done

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
        self.first, self.begun = done, time.monotonic()
        self.done, self.advanced_at = done, self.begun
        self.written, self.written_at = math.nan, -math.inf

    @property
    def moved(self) -> bool:
        """Whether there is something that was not written yet."""
        return self.done != self.written

    def reach(self, done: float, now: float) -> None:
        if done > self.done:
            self.done, self.advanced_at = done, now

    def same(self, stage: str, task: str | None, total: float, unit: str, done: float) -> bool:
        known = (self.stage, self.task, self.total, self.unit)
        return known == (stage, task, total, unit) and done >= self.done

    def eta(self, now: float) -> float | None:
        """Seconds left at the mean rate so far, counting down between steps; None while it cannot be told."""
        left, gained = self.total - self.done, self.done - self.first
        if left <= 0:
            return 0.0
        if gained <= 0 or now - self.begun < 0.2:
            return None
        expected = (self.advanced_at - self.begun) * left / gained - (now - self.advanced_at)
        return round(expected, 1) if expected > 0 else None

    def event(self, now: float) -> dict[str, Any]:
        done, total = round(self.done, 3), self.total
        body = {"stage": self.stage, "done": done, "total": total, "unit": self.unit, "eta_s": self.eta(now)}
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
