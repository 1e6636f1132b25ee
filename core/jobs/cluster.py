"""Runs on a cluster: the same worker command, as a job that somebody else starts on some node.

A thread of its own talks to the cluster, so that a head that does not answer never keeps the queue or a page waiting;
everything here answers at once with what that thread saw last. The run directory, on a file system that all nodes
share, stays the truth: its lock says that a worker lives, its events how far it is. cluster.json in it says under which
name the job was asked for, so that the next app finds it again instead of asking twice.
"""

import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from core import settings
from core.errors import EspalierError, InputError
from core.jobs.rundir import RunDirectory, read_json, to_json, write_atomic
from core.jobs.status import now_iso

FILE = "cluster.json"
LOOK_EVERY_S = 1.0
RETRY_EVERY_S = 3.0
COUNT_EVERY_S = 10.0
LOST_AFTER_S = 30.0
"""A head that answers nothing for so long has lost the jobs whose worker gives no sign of life."""
REFUSED_AFTER_S = 30.0
"""A head that has just started refuses jobs until its agents are up: it is asked again for so long."""
AMOUNTS = {"cpus": "CPU", "gpus": "GPU"}
OVER = ("STOPPED", "SUCCEEDED", "FAILED")
# What a worker on another node must be told; no token, which everybody who may look at the cluster's jobs would see.
_HANDED_ON = (
    "ESPALIER_CACHE", "ESPALIER_STREAM", "ESPALIER_ROOTS", "HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)  # fmt: skip
_log = logging.getLogger(__name__)


class ClusterError(EspalierError):
    """A cluster that refuses what it is asked."""


class Unreachable(ClusterError):
    """A cluster that does not answer."""


@dataclass(frozen=True)
class Order:
    """What is asked of a cluster for one attempt at a run. `earlier` is the job of the attempt before, if any."""

    submission_id: str
    entrypoint: str
    cpus: float = 1.0
    gpus: float = 0.0
    metadata: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    earlier: str = ""


@dataclass(frozen=True)
class Seen:
    """Where a job stands: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; the exit code if it is known."""

    status: str
    code: int | None = None
    message: str = ""

    @property
    def over(self) -> bool:
        """Whether it ended."""
        return self.status in OVER


@dataclass(frozen=True)
class Capacity:
    """What the nodes of a cluster have in all."""

    nodes: int = 0
    cpus: float = 0.0
    gpus: float = 0.0


class Jobs(Protocol):
    """What a connection to a cluster can do (core/jobs/ray_cluster.py). Each may raise ClusterError or Unreachable."""

    def capacity(self) -> Capacity: ...
    def look(self, submission_id: str) -> Seen | None: ...
    def submit(self, order: Order) -> None: ...
    def stop(self, submission_id: str) -> None: ...


@dataclass(frozen=True)
class ClusterView:
    """A cluster now. `problem` says in a sentence why nothing is sent there; `since` seconds that it has been so."""

    address: str
    reachable: bool
    problem: str = ""
    since: float = 0.0
    capacity: Capacity = Capacity()


class Job:
    """One attempt at a run, as the cluster has it. Its fields are written by the cluster's thread."""

    def __init__(self, order: Order, *, known: bool = False) -> None:
        self.order = order
        self.submission_id = order.submission_id
        self.seen: Seen | None = None
        """None until the cluster has spoken of it."""
        self.gone = False
        """The cluster does not know it, though it was asked for: its head was lost, or the request never arrived."""
        self.refused: ClusterError | None = None
        self.refused_since: float | None = None
        self.asked_for = known
        self.stopping = False
        self.stopped = False
        self.forgotten = False

    @property
    def over(self) -> bool:
        """Whether nothing is to be expected of it any more."""
        return self.gone or self.refused is not None or (self.seen is not None and self.seen.over)

    @property
    def pending(self) -> bool:
        """Whether it has not begun: it waits for a node."""
        return not self.over and (self.seen is None or self.seen.status == "PENDING")


class Cluster:
    """One cluster, seen through a thread. Every method returns at once. `connect` may raise ClusterError."""

    def __init__(self, address: str, connect: Callable[[str], Jobs]) -> None:
        self.address = address
        self._connect = connect
        self._jobs: list[Job] = []
        self._connection: Jobs | None = None
        self._problem = "It is being asked for the first time."
        self._changed_at = time.monotonic()
        self._reachable = False
        self._capacity = Capacity()
        self._count_at = 0.0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="cluster", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; jobs go on."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=1.0)  # it may be inside a request; it changes nothing after that

    def view(self) -> ClusterView:
        """The cluster now."""
        return ClusterView(
            self.address, self._reachable, self._problem, time.monotonic() - self._changed_at, self._capacity
        )

    @property
    def lost(self) -> bool:
        """Whether it has not answered for so long that its jobs are lost."""
        return not self._reachable and time.monotonic() - self._changed_at > LOST_AFTER_S

    def submit(self, order: Order) -> Job:
        """Ask for a job; one that is there under this name, or under its earlier one and lives, is taken over."""
        return self._follow(Job(order))

    def find(self, submission_id: str) -> Job:
        """A job that was asked for before; `gone` once the cluster says that it has none."""
        return self._follow(Job(Order(submission_id, ""), known=True))

    def stop(self, job: Job) -> None:
        """Ask a job to end, also one that is nobody's any more; repeated until the cluster has heard it."""
        job.stopping = True
        self._wake.set()

    def forget(self, job: Job) -> None:
        """Look no more after a job, once what was asked for it is done."""
        job.forgotten = True
        with self._lock:
            if job in self._jobs and (job.over or job.stopped or not job.stopping):
                self._jobs.remove(job)

    def _follow(self, job: Job) -> Job:
        with self._lock:
            self._jobs.append(job)
        self._wake.set()
        return job

    # --- the thread

    def _watch(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                self._round()
                pause = LOOK_EVERY_S
            except Unreachable as error:
                self._say(False, error.message)
                pause = LOOK_EVERY_S
            except ClusterError as error:
                self._say(False, str(error))
                pause = RETRY_EVERY_S
            except Exception as error:  # noqa: BLE001 - one odd answer must not end all looking
                _log.exception("The cluster's thread met an error and goes on.")
                self._say(False, f"{type(error).__name__}: {error}")
                pause = RETRY_EVERY_S
            self._wake.wait(pause)

    def _round(self) -> None:
        if self._connection is None:
            self._connection = self._connect(self.address)
        if time.monotonic() >= self._count_at:
            self._capacity = self._connection.capacity()
            self._count_at = time.monotonic() + (COUNT_EVERY_S if self._capacity.nodes else LOOK_EVERY_S)
        self._say(True, "" if self._capacity.nodes else "It has no node that works yet.")
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            if not self._closed and not job.over:
                self._tend(self._connection, job)
            if job.forgotten:
                self.forget(job)

    def _tend(self, jobs: Jobs, job: Job) -> None:
        if not job.asked_for:
            if job.stopping:
                job.gone = True
                return
            self._ask(jobs, job)
            if job.over or not job.asked_for:
                return
        if job.stopping and not job.stopped:
            jobs.stop(job.submission_id)
            job.stopped = True
        seen = jobs.look(job.submission_id)
        if seen is None:
            job.gone = True
        job.seen = seen or job.seen

    def _ask(self, jobs: Jobs, job: Job) -> None:
        order = job.order
        if order.earlier and (before := jobs.look(order.earlier)) is not None and not before.over:
            job.submission_id = order.earlier  # it lives after all
        elif jobs.look(order.submission_id) is None:
            try:
                jobs.submit(order)
            except Unreachable:
                raise
            except ClusterError as error:
                job.refused_since = job.refused_since or time.monotonic()
                if time.monotonic() - job.refused_since < REFUSED_AFTER_S:
                    return
                job.refused = error
        job.asked_for = True

    def _say(self, reachable: bool, problem: str) -> None:
        self._count_at = self._count_at if reachable else 0.0  # until it answers something, every round asks
        if reachable != self._reachable:
            self._changed_at = time.monotonic()
            _log.info("The cluster %s %s", self.address, "answers." if reachable else f"does not answer: {problem}")
        self._reachable, self._problem = reachable, problem


# ------------------------------------------------------------------------------------------------------ which cluster


class Clusters:
    """The cluster that the settings name, and those that runs were given to before the settings changed."""

    def __init__(self, home: Path, connect: Callable[[str], Jobs] | None = None) -> None:
        self._preferences = home / "settings.json"
        self._connect = connect or _ray
        self._open: dict[str, Cluster] = {}
        self._known: tuple[int | None, str] = (None, "")

    def address(self) -> str:
        """Where new runs go: a dashboard's address, or '' for this machine. The environment wins over settings.json."""
        if said := settings.ray_address():
            return said
        try:
            mark = self._preferences.stat().st_mtime_ns
        except FileNotFoundError:
            return ""
        if mark != self._known[0]:
            kept = (read_json(self._preferences) or {}).get("ray_address")
            self._known = (mark, kept.strip().rstrip("/") if isinstance(kept, str) else "")
        return self._known[1]

    def current(self) -> Cluster | None:
        """Where new runs go; None for this machine. InputError for an address that cannot be one."""
        address = self.address()
        return self.at(check_address(address)) if address else None

    def at(self, address: str) -> Cluster:
        """The cluster of an address; it is asked from now on."""
        if address not in self._open:
            self._open[address] = Cluster(address, self._connect)
        return self._open[address]

    def found(self, directory: RunDirectory, attempt: int) -> tuple[Cluster, Job] | None:
        """The job of this attempt at a run, if it was given to a cluster."""
        word = read_json(directory.path / FILE) or {}
        address, submission_id = word.get("address"), word.get("submission_id")
        if word.get("attempt") != attempt or not isinstance(address, str) or not isinstance(submission_id, str):
            return None
        try:
            cluster = self.at(check_address(address))
        except InputError:
            return None
        return cluster, cluster.find(submission_id)

    def close(self) -> None:
        """End the threads; jobs go on. Clusters are asked anew by the next question."""
        opened, self._open = list(self._open.values()), {}
        for cluster in opened:
            cluster.close()


def check_address(address: str) -> str:
    """The address without its last slash. InputError if it is no http address of a machine."""
    try:
        parts = urlsplit(address.strip())
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fits = False
    if not fits or parts.query or parts.fragment or parts.username or len(address) > 300:
        raise InputError(
            f"{address[:100]!r} is not the address of a Ray cluster.", "Give its dashboard, such as http://head:8265."
        )
    return address.strip().rstrip("/")


def _ray(address: str) -> Jobs:
    from core.jobs.ray_cluster import connect

    return connect(address)


# ------------------------------------------------------------------------------------------------------- what is asked


def order_of(directory: RunDirectory, home: Path, attempt: int, device: str, capacity: Capacity) -> Order:
    """The job of one attempt at a run: the worker's command, with its output in log.txt.

    The first attempt's name is the run's id; Ray takes no name twice, so later ones have their number behind it.
    """
    gpu = device != "cpu" and (device != "auto" or capacity.gpus > 0)
    command = shlex.join([sys.executable, "-m", "core.jobs.worker", str(directory.path)])
    # `exec`: what Ray asks to stop is the worker itself, and not a shell around it.
    entrypoint = (
        f"cd {shlex.quote(str(settings.REPOSITORY))} && exec {command} >>{shlex.quote(str(directory.log_file))} 2>&1"
    )
    handed = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    return Order(
        submission_id=name_of(directory.id, attempt),
        entrypoint=entrypoint,
        cpus=settings.ray_cpus(),
        gpus=1.0 if gpu else 0.0,
        metadata={"espalier_run": directory.id, "attempt": str(attempt), "home": str(home)},
        environment={"ESPALIER_HOME": str(home), "PYTHONUNBUFFERED": "1", **handed},
        earlier=name_of(directory.id, attempt - 1) if attempt > 1 else "",
    )


def name_of(run_id: str, attempt: int) -> str:
    """Under which name an attempt is asked for."""
    return run_id if attempt <= 1 else f"{run_id}-{attempt}"


def record(directory: RunDirectory, address: str, submission_id: str, attempt: int) -> None:
    """Write down what is about to be asked of whom."""
    word = {"v": 1, "address": address, "submission_id": submission_id, "attempt": attempt, "time": now_iso()}
    write_atomic(directory.path / FILE, to_json(word))
