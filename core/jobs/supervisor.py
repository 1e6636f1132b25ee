"""The supervisor: starts workers in the queue's order, watches them, and brings runs back that lost theirs.

One per store, guarded by a lock on the file system. It lives in the app's process as a thread; workers live in
processes of their own and outlive it. Everything that it knows is in the files (queue.json, each run's directory), so
that the next supervisor goes on where this one was killed.
"""

import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import settings
from core.device import resolve_device
from core.errors import EspalierError, InputError, QueueError
from core.files import sweep_of
from core.jobs import freeing, ownership, processes
from core.jobs.after_queue import AfterQueue
from core.jobs.cluster import Clusters
from core.jobs.looking import age, unknown, unwritten
from core.jobs.on_cluster import OnCluster, Placed
from core.jobs.queue import Queue
from core.jobs.rundir import RunDirectory, list_runs
from core.jobs.silence import Silence
from core.jobs.states import State
from core.jobs.status import RunStatus

POLL_S = 0.3
VIEW_WAIT_S = 0.2  # for a look at the queue while something is done with it
AFTER_ERROR_S = 3.0  # a full disk, say: no flood of log lines
SCAN_EVERY_S = 2.0
ROOM_EVERY_S = 5.0
"""How often the app is asked to let go of memory that a run waits for."""

_log = logging.getLogger(__name__)
_left_running: list["subprocess.Popen[bytes]"] = []  # workers that outlive a stopped supervisor; kept to be reaped


@dataclass
class _Active:
    """A run whose worker lives, or is about to. `process` is None for one that another process started.

    `placed`: its worker is a job of a cluster (core/jobs/on_cluster.py).
    """

    directory: RunDirectory
    device: str
    attempt: int
    process: "subprocess.Popen[bytes] | None" = None
    kill_at: float | None = None
    held: freeing.Held | None = None
    forced: bool = False
    silence: Silence = field(default_factory=Silence)
    placed: Placed | None = None
    memory_kills: int = field(default_factory=processes.out_of_memory_kills)


@dataclass(frozen=True)
class QueueView:
    """What the queue looks like now. `waits`: why a run waits although its turn has come."""

    paused: bool
    waiting: tuple[str, ...]
    running: tuple[str, ...]
    waits: Mapping[str, str] = field(default_factory=dict)


class Supervisor(OnCluster):
    """The one that starts and watches the workers of a store.

    `on_change(run_id)` is called after a run's state changed, outside of every lock, from the supervisor's thread or
    the caller's. What it raises is logged. `make_room(kinds)` is called in the same way, now and then while runs wait
    for memory of these kinds of device (`cpu`, `cuda`): whoever else holds some may let it go, and answers whether it
    did.
    """

    def __init__(
        self,
        home: Path | None = None,
        on_change: Callable[[str], None] | None = None,
        make_room: Callable[[frozenset[str]], bool] | None = None,
    ) -> None:
        self.home = (home or settings.home()).resolve()
        self.runs = self.home / "runs"
        self._on_change, self._make_room = on_change, make_room
        self._lock = threading.RLock()
        self._file_lock = ownership.lock_of(self.home)
        self.after = AfterQueue(self.home)
        self.clusters = Clusters(self.home)
        self._queue = Queue(self.home / "queue.json")
        self._viewed: QueueView | None = None
        self._active: dict[str, _Active] = {}
        self._needs = {}
        self._anyway = set()
        self._said_at = 0.0
        self._short_of = set()
        self._next_room = 0.0
        self._seen: set[str] = set()
        self._changed: list[str] = []
        self._next_scan = 0.0
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    # --- life

    def claim(self) -> None:
        """Take the store's lock, unless this process has it. QueueError, naming who has it, if it is taken."""
        if not self._file_lock.is_locked:
            ownership.take(self._file_lock, self.home)

    def start(self) -> None:
        """Claim the store, bring every run into a true state, and begin. QueueError if another process has it."""
        self.claim()
        _left_running[:] = [process for process in _left_running if process.poll() is None]
        with self._lock:
            self._clear_up()
            self._queue = Queue.read(self.home / "queue.json")
            self._reconcile()
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def halt(self) -> None:
        """End the thread; workers go on, and the store stays this process's. May be called twice."""
        self._stopping = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        with self._lock:
            _left_running.extend(a.process for a in self._active.values() if a.process is not None)
            self._active.clear()
            self.clusters.close()

    def stop(self) -> None:
        """End the supervisor and leave the store to others; its workers go on. May be called twice."""
        self.halt()
        self._file_lock.release()

    # --- what people ask for

    def enqueue(self, run_id: str, *, hash: str = "", resolved: Mapping[str, Any] | None = None) -> None:
        """Put a run, whose experiment.yaml is written, at the queue's end; one that is queued or works stays."""
        directory = RunDirectory.of(self.runs, run_id)
        if not directory.exists():
            raise InputError(f"Run {run_id} has no experiment.yaml.", "Write it before the run is queued.")
        with self._lock:
            self._require_life()
            if run_id in self._active or run_id in self._queue.order:
                return  # found when the supervisor started
            directory.write_state(State.WAITING, hash=hash, resolved=dict(resolved or {}))
            self._queue.add(run_id)
            self._queue.write()
            self._seen.add(run_id)
            self._changed.append(run_id)
        self._tell()
        self._wake.set()

    def cancel(self, run_id: str) -> None:
        """Take a waiting run out of the queue, or ask a running one to stop; after 20 s its group is killed.

        Asking again is harmless. QueueError if the run is over.
        """
        directory = RunDirectory.of(self.runs, run_id)
        with self._lock:
            self._require_life()
            if run_id not in self._active and directory.worker_lives():
                self._adopt(directory, directory.status())
            active = self._active.get(run_id)
            if active is None:
                status = directory.status()
                if status.state.finished:
                    raise QueueError(f"Run {run_id} is {status.state} already.", "There is nothing to cancel.")
                self._end_waiting(directory, status, State.CANCELLED, "Cancelled before it was started.")
            elif active.kill_at is None:
                self._queue.cancelling.append(run_id)
                self._queue.write()
                self._ask_to_stop(active)
        self._tell()
        self._wake.set()

    def pause(self) -> None:
        """Start no more runs; those that work go on."""
        self._set_paused(True)

    def resume(self) -> None:
        """Start runs again."""
        self._set_paused(False)

    def move(self, run_id: str, by: int) -> None:
        """Move a waiting run by that many places, towards the head if negative."""
        with self._lock:
            self._require_life()
            self._queue.move(run_id, by)
            self._queue.write()

    def start_anyway(self, run_id: str) -> None:
        """Let a waiting run start when its turn comes, however little memory or disk is free. QueueError otherwise."""
        with self._lock:
            self._require_life()
            if run_id not in self._queue.order:
                raise QueueError(f"Run {run_id} is not waiting.", "Only waiting runs can be started.")
            self._anyway.add(run_id)
        self._wake.set()

    def delete(self, run_id: str) -> None:
        """Remove a run with its files. QueueError while its worker lives."""
        directory = RunDirectory.of(self.runs, run_id)
        with self._lock:
            self._require_life()
            if run_id in self._active or directory.worker_lives():
                raise QueueError(f"Run {run_id} is running.", "Cancel it first.")
            if self._queue.remove(run_id):
                self._queue.write()
            if directory.path.is_dir():
                gone = directory.path.rename(self.runs / f".deleted-{run_id}")
                shutil.rmtree(gone, ignore_errors=True)
            self._seen.discard(run_id)
            self._changed.append(run_id)
        self._tell()

    def view(self) -> QueueView:
        """The queue now; as it was last looked at while a worker is being started, say, on a disk that is slow."""
        if self._lock.acquire(timeout=VIEW_WAIT_S if self._viewed else -1):
            try:
                waits = dict(self._queue.waits)
                self._viewed = QueueView(self._queue.paused, tuple(self._queue.order), tuple(self._active), waits)
            finally:
                self._lock.release()
        assert self._viewed is not None
        return self._viewed

    def _set_paused(self, paused: bool) -> None:
        with self._lock:
            self._require_life()
            self._queue.paused, self._queue.waits = paused, {}
            self._queue.write()
        self._wake.set()

    def _require_life(self) -> None:
        if not self._file_lock.is_locked:
            raise QueueError("The queue of this store is not held by this process.", "Start the supervisor first.")

    # --- the thread

    def _watch(self) -> None:
        while not self._stopping:
            try:
                with self._lock:
                    self._step()
                pause = POLL_S
            except Exception:  # noqa: BLE001 - one bad run or a full disk must not end the night's queue
                _log.exception("The supervisor met an error and goes on.")
                pause = AFTER_ERROR_S
            self._tell()
            self._ask_for_room()
            self._wake.wait(pause)
            self._wake.clear()

    def _step(self) -> None:
        troubles = []
        for active in list(self._active.values()):
            try:
                self._watch_one(active)
            except (OSError, EspalierError) as error:  # a folder that cannot be written to: the others go on
                troubles.append(error)
        if time.monotonic() >= self._next_scan:
            self._next_scan = time.monotonic() + SCAN_EVERY_S
            self._notice_foreign()
        self._short_of = set()
        if not self._queue.paused:
            self._start_somewhere()
        self.after.look(busy=bool(self._active or self._queue.order))
        if troubles:
            raise troubles[0]

    def _tell(self) -> None:
        with self._lock:
            changed, self._changed = list(dict.fromkeys(self._changed)), []
        for run_id in changed if self._on_change else ():
            try:
                self._on_change(run_id)  # type: ignore[misc]
            except Exception:  # noqa: BLE001 - the listener is not ours
                _log.exception("What follows a change of run %s failed.", run_id)

    def _ask_for_room(self) -> None:
        short_of, now = frozenset(self._short_of), time.monotonic()
        if self._make_room is None or not short_of or now < self._next_room:
            return
        self._next_room = now + ROOM_EVERY_S
        try:
            if self._make_room(short_of):
                _log.info("Memory that a run waits for is being let go of.")
        except Exception:  # noqa: BLE001 - whoever holds it is not ours, and the queue goes on without
            _log.exception("Nobody could be asked for the memory that a run waits for.")

    # --- after a restart, and runs that others started

    def _clear_up(self) -> None:
        """Remove what an app that was killed left half done: files that only owners write, folders of deleted runs."""
        for path in (self.home / "queue.json", self.runs / ".supervisor.json"):
            sweep_of(path)
        for gone in self.runs.glob(".deleted-*"):
            shutil.rmtree(gone, ignore_errors=True)

    def _reconcile(self) -> None:
        """Bring every run into a true state: adopt living workers, queue again what lost its worker."""
        lost: list[RunDirectory] = []
        waiting: list[RunDirectory] = []
        for directory in list_runs(self.runs):
            self._seen.add(directory.id)
            if directory.ended():
                continue
            sweep_of(directory.state_file)
            status = directory.status()
            if status.state.finished:
                continue
            placed = self._found(directory, status.attempt)
            if directory.worker_lives() or placed is not None:
                self._adopt(directory, status, placed)
            elif status.state is State.WAITING:
                waiting.append(directory)
            else:
                lost.append(directory)
        alive = {directory.id for directory in waiting}
        self._queue.order = [run_id for run_id in self._queue.order if run_id in alive]
        for directory in sorted(waiting, key=age):
            if directory.read_state() is None:
                with unwritten(f"that run {directory.id} waits"):
                    directory.write_state(State.WAITING)
            self._queue.add(directory.id)
        for directory in sorted(lost, key=age, reverse=True):
            self._active[directory.id] = active = _Active(directory, "", directory.recorded().attempt)
            with unwritten(f"what became of run {directory.id}"):  # it stays active: the thread tries again
                self._settle(active, None)
        self._queue.cancelling = [run_id for run_id in self._queue.cancelling if run_id in self._active]
        with unwritten("the queue's order"):
            self._queue.write()

    def _adopt(self, directory: RunDirectory, status: RunStatus, placed: Placed | None = None) -> None:
        try:
            device = status.place or resolve_device(directory.experiment().device)
        except EspalierError:
            device = "cpu"
        active = self._active[directory.id] = _Active(directory, device, status.attempt, placed=placed)
        self._changed.append(directory.id)
        if directory.id in self._queue.cancelling:
            self._ask_to_stop(active)

    def _notice_foreign(self) -> None:
        """Runs that the command line made since the last look: watch those that work, tell of those that are over.

        One that was left to wait, as a study's are, is put into the queue.
        """
        for directory in sorted(unknown(self.runs, self._seen), key=age):
            if directory.worker_lives():
                self._seen.add(directory.id)
                self._adopt(directory, directory.status())
            elif directory.ended():
                self._seen.add(directory.id)
                self._changed.append(directory.id)
            elif directory.read_state() is not None and directory.recorded().state is State.WAITING:
                self._seen.add(directory.id)
                self._queue.add(directory.id)
                self._queue.write()
                self._changed.append(directory.id)
