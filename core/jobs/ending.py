"""How a run's worker ends, and what becomes of the run: part of the supervisor (core/jobs/supervisor.py).

A worker that wrote how its run ended leaves nothing to do. One that did not was cancelled, or died, or was ended here
because it had fallen silent; its run goes on from its last finished stage, at most three times in a row in vain.
"""

import logging
import signal
import time
from typing import TYPE_CHECKING

import psutil

from core.jobs import freeing, processes
from core.jobs.looking import last_useful_attempt
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.jobs.status import RunStatus

if TYPE_CHECKING:
    from core.jobs.on_cluster import Placed
    from core.jobs.queue import Queue
    from core.jobs.supervisor import _Active

MAX_ATTEMPTS = 3  # starts in a row that finish nothing which the next one could use
KILL_AFTER_S = 20.0
WAKES_WITHIN_S = 15.0
"""A worker that does nothing may be woken by being asked where it stands: a read that hangs is tried again."""
_log = logging.getLogger(__name__)


class Ending:
    """Part of the Supervisor; called with its lock held."""

    _queue: "Queue"
    _active: "dict[str, _Active]"
    _changed: list[str]

    def _watch_job(self, active: "_Active", placed: "Placed") -> None:
        raise NotImplementedError

    def _watch_one(self, active: "_Active") -> None:
        if active.placed is not None:
            self._watch_job(active, active.placed)
            return
        code = active.process.poll() if active.process is not None else None
        lives = active.directory.worker_lives()
        if active.process is not None and code is None:
            lives = True  # started, and perhaps not far enough to have taken the lock
        elif lives:
            active.process = None  # ours was refused or is gone: another process works on this run
        elif active.kill_at is not None:
            lives = self._process_of(active) is not None  # it gave its lock back and is about to end by itself
        if not lives:
            self._settle(active, code, active.silence.why())
        elif active.kill_at is None:
            self._listen_to(active)
        elif time.monotonic() > active.kill_at:
            if (process := self._process_of(active)) is not None:
                processes.kill_group(process)
                active.forced = True
            active.kill_at = time.monotonic() + 1.0

    def _listen_to(self, active: "_Active") -> None:
        """Let a worker that does nothing write where each of its threads stands; kill it if that does not wake it.

        Only one that a supervisor started, at a place: what runs in somebody's terminal is theirs.
        """
        silence, now, status = active.silence, time.monotonic(), active.directory.recorded()
        if active.process is None and not status.place:
            return
        if not silence.too_long(status, lambda: processes.effort(self._process_of(active))):
            silence.end_at, silence.over = None, False
        elif silence.end_at is None:
            _log.error("Run %s does nothing: its worker is asked where it stands.", active.directory.id)
            silence.end_at, silence.over = now + WAKES_WITHIN_S, True
            if (process := self._process_of(active)) is not None:
                processes.ask_for_stacks(process)
        elif now > silence.end_at and (process := self._process_of(active)) is not None:
            _log.error("Run %s still does nothing: its worker is killed.", active.directory.id)
            silence.end_at = now + WAKES_WITHIN_S
            processes.kill_group(process)

    def _settle(self, active: "_Active", code: int | None, why: tuple[str, str] | None = None) -> None:
        """The worker is gone: finished runs are left as they are, the others are cancelled, queued again or failed.

        May be called again where a file could not be written: the run stays active until all of it is done.
        """
        directory, run_id = active.directory, active.directory.id
        cancelled, again = run_id in self._queue.cancelling, False
        if active.held is not None:
            freeing.settle(directory, active.held, forced=active.forced)
            active.held = None
        status = directory.status()
        if not status.state.finished:
            attempt = max(status.attempt, active.attempt)
            if cancelled:
                directory.write_state(State.CANCELLED, attempt=attempt, reason="Cancelled.")
            elif status.state is State.WAITING and status.attempt > active.attempt:
                again = True  # it was brought back already, but the queue's file could not be written
            else:
                cause = "" if active.silence.over else processes.cause_of_end(code)
                again = self._bring_back(active, attempt, why or self._end_of(active, code), cause)
        waited = self._queue.remove(run_id)
        if again:
            self._queue.add(run_id, first=True)
        if cancelled or waited or again:
            self._queue.write()
        del self._active[run_id]
        self._changed.append(run_id)

    def _bring_back(self, active: "_Active", attempt: int, why: tuple[str, str], cause: str) -> bool:
        """Let a run wait again, to go on from its finished stages; False: it failed, after three starts in vain."""
        directory, (reason, advice) = active.directory, why
        if directory.recorded().state is not State.INTERRUPTED:
            directory.write_state(State.INTERRUPTED, attempt=attempt, reason=reason, advice=advice, cause=cause)
        if attempt - last_useful_attempt(directory) >= MAX_ATTEMPTS:
            reason = f"{reason} It was started {MAX_ATTEMPTS} times in a row without getting further."
            directory.write_state(State.FAILED, attempt=attempt, reason=reason, advice=advice, cause=cause)
            return False
        directory.write_state(State.WAITING, attempt=attempt + 1, reason=reason)
        return True

    def _end_of(self, active: "_Active", code: int | None) -> tuple[str, str]:
        """Reason and advice for a worker that ended without a result."""
        if code == -signal.SIGKILL and processes.out_of_memory_kills() > active.memory_kills:
            return processes.ended_for_memory(active.directory.recorded().memory.get("rss_bytes", 0))
        return processes.describe_end(code)

    def _end_waiting(
        self, directory: RunDirectory, status: RunStatus, state: State, why: str, advice: str = "", cause: str = ""
    ) -> None:
        directory.write_state(state, attempt=status.attempt, reason=why, advice=advice, cause=cause)
        self._queue.remove(directory.id)
        self._queue.write()
        self._changed.append(directory.id)

    def _process_of(self, active: "_Active") -> psutil.Process | None:
        if active.process is not None:  # ours, and not reaped yet: its pid cannot be anybody else's
            return psutil.Process(active.process.pid) if active.process.poll() is None else None
        status = active.directory.status()
        return processes.find(status.pid, status.pid_created)

    def _ask_to_stop(self, active: "_Active") -> None:
        active.kill_at = time.monotonic() + KILL_AFTER_S
        if active.placed is not None:
            active.placed.cluster.stop(active.placed.job)
        elif (process := self._process_of(active)) is not None:
            claimed = active.directory.recorded().memory.get("device_bytes", 0)
            active.held = freeing.look(process, active.device, claimed)
            processes.ask_to_stop(process)
