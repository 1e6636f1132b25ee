"""Where a run stands, told from its files: events.jsonl (the worker's) and state.json (the supervisor's).

The two are joined without a clock: the higher attempt wins; within an attempt WAITING < RUNNING < INTERRUPTED <
finished, and of two finished states the worker's. So no order of writing, and no process that dies in between, can
bring a finished run back.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.jobs.states import State

_RANK = {State.WAITING: 0, State.RUNNING: 1, State.INTERRUPTED: 2}
_FINISHED_RANK = 3
_REMEMBERED = 512


def now_iso() -> str:
    """The present in UTC with milliseconds, as every file of a run has it: 2026-11-23T20:18:54.123Z."""
    return to_iso(datetime.now(UTC))


def to_iso(moment: datetime) -> str:
    """`moment` in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_iso(text: str) -> datetime:
    """Reverse of `to_iso`; raises ValueError on anything else."""
    return datetime.fromisoformat(text)


def finite(value: Any) -> Any:
    """`value` with nan and inf as None: JSON has neither, and other readers refuse them."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


@dataclass(frozen=True)
class RunStatus:
    """One look at a run. Times are ISO-8601 UTC; `done` and `total` count `unit`s; `eta_s` seconds; `memory` bytes.

    `updated` is when it last wrote anything, `spoke` when that was more than a heartbeat;
    `place` is the device that its worker was given, `cause` why it failed in one word
    (core/jobs/failures.py); both '' where there is none.
    """

    id: str
    state: State
    attempt: int = 1
    stage: str | None = None
    task: str | None = None
    done: float | None = None
    total: float | None = None
    unit: str = ""
    eta_s: float | None = None
    reason: str = ""
    advice: str = ""
    cause: str = ""
    created: str | None = None
    started: str | None = None
    finished: str | None = None
    pid: int | None = None
    pid_created: float | None = None
    place: str = ""
    updated: str | None = None
    spoke: str | None = None
    hash: str | None = None
    memory: Mapping[str, int] = field(default_factory=dict)

    @property
    def fraction(self) -> float | None:
        """How much of the present stage is done, 0 to 1; None if it does not say."""
        if self.done is None or not self.total:
            return None
        return min(max(self.done / self.total, 0.0), 1.0)


def parse_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Events in `data`; lines that are torn or no event are skipped, wherever they stand."""
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("seq"), int) and isinstance(event.get("kind"), str):
            yield event


class EventFold:
    """What the events of one run come to, kept up to date by reading only what was added."""

    def __init__(self) -> None:
        self.status = RunStatus(id="", state=State.WAITING, attempt=0)
        self.state: State | None = None
        self.last_seq = 0
        self._offset = 0
        self._inode: int | None = None
        self._lock = threading.Lock()

    def update(self, path: Path) -> RunStatus:
        """Read the complete lines added to `path` since the last call; a missing file is a run without events."""
        with self._lock:
            try:
                with path.open("rb") as file:
                    info = os.fstat(file.fileno())
                    if info.st_ino != self._inode or info.st_size < self._offset:
                        self._restart(info.st_ino)
                    file.seek(self._offset)
                    data = file.read()
            except FileNotFoundError:
                self._restart(None)
                return self.status
            complete = data[: data.rfind(b"\n") + 1]
            for event in parse_lines(complete):
                self._take(event)
            self._offset += len(complete)
            return self.status

    def _restart(self, inode: int | None) -> None:
        self.status, self.state = RunStatus(id="", state=State.WAITING, attempt=0), None
        self.last_seq, self._offset, self._inode = 0, 0, inode

    def _take(self, event: Mapping[str, Any]) -> None:
        self.last_seq = max(self.last_seq, event["seq"])
        changes: dict[str, Any] = {"updated": event.get("time"), "attempt": event.get("attempt", 1)}
        kind = event["kind"]
        if kind != "heartbeat":
            changes["spoke"] = event.get("time")
        if kind == "state":
            changes |= self._state_changes(event)
        elif kind == "stage":
            begun = event.get("status") == "started"
            changes |= {"stage": event.get("stage"), "task": None, "eta_s": None, "unit": ""}
            changes |= {"done": 0.0 if begun else None, "total": None}
        elif kind == "progress":
            changes |= {key: event.get(key) for key in ("stage", "task", "done", "total", "eta_s")}
            changes["unit"] = event.get("unit") or ""
        elif kind == "heartbeat":
            changes["memory"] = {key: value for key, value in event.items() if key.endswith("_bytes")}
        if isinstance(event.get("hash"), str):
            changes["hash"] = event["hash"]
        self.status = replace(self.status, **changes)

    def _state_changes(self, event: Mapping[str, Any]) -> dict[str, Any]:
        try:
            state = State(event["state"])
        except (KeyError, ValueError):
            return {}
        same_attempt = event.get("attempt", 1) == self.status.attempt
        if same_attempt and self.state is not None and self.state.finished:
            return {}
        self.state = state
        changes: dict[str, Any] = {"state": state, **{key: event.get(key, "") for key in ("reason", "advice", "cause")}}
        if state is State.RUNNING:
            changes |= {"started": self.status.started or event.get("time"), "finished": None}
            changes |= {"pid": event.get("pid"), "pid_created": event.get("pid_created")}
            changes["place"] = str(event.get("place") or "")
            changes |= {
                "stage": None,
                "task": None,
                "done": None,
                "total": None,
                "eta_s": None,
                "unit": "",
                "memory": {},
            }
        elif state.finished:
            changes |= {"finished": event.get("time"), "eta_s": None}
        return changes


_folds: OrderedDict[Path, EventFold] = OrderedDict()
_folds_lock = threading.Lock()


def fold_of(path: Path) -> EventFold:
    """The fold of an events.jsonl, remembered between calls so that a long file is read once."""
    with _folds_lock:
        fold = _folds.pop(path, None) or EventFold()
        _folds[path] = fold
        while len(_folds) > _REMEMBERED:
            _folds.popitem(last=False)
        return fold


def join(worker: EventFold, supervisor: Mapping[str, Any] | None) -> RunStatus:
    """One status from both writers (module docstring says how)."""
    status = worker.status
    if supervisor is None:
        return status
    try:
        state, attempt = State(supervisor["state"]), int(supervisor.get("attempt", 1))
    except (KeyError, ValueError, TypeError):
        return status
    common: dict[str, Any] = {
        "created": supervisor.get("created"),
        "hash": status.hash or supervisor.get("hash"),
    }
    if worker.state is not None and _order(status.attempt, worker.state) >= _order(attempt, state):
        return replace(status, **common)
    changes: dict[str, Any] = {"state": state, "attempt": attempt, "updated": supervisor.get("time")}
    changes |= {key: supervisor.get(key) or "" for key in ("reason", "advice", "cause")} | {"eta_s": None}
    if state.finished:
        changes["finished"] = supervisor.get("time")
    if state is State.WAITING:
        changes |= {"stage": None, "task": None, "done": None, "total": None, "unit": ""}
    return replace(status, **common, **changes)


def _order(attempt: int, state: State) -> tuple[int, int]:
    return attempt, _RANK.get(state, _FINISHED_RANK)
