"""The process that does one run: `python -m core.jobs.worker RUN_DIRECTORY`.

It takes the run's lock, says that it lives before it loads anything large, does the pipeline, and says how it ended. It
never waits for anybody: what it has to say is in the run directory.
"""

import faulthandler
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from core.errors import Cancelled, DiskFullError, QueueError
from core.files import sweep
from core.jobs.events import EventWriter, Listener
from core.jobs.failures import cause_of, disk_is_full, explain
from core.jobs.processes import DISK_FULL, identity
from core.jobs.rundir import RunDirectory
from core.jobs.states import State, transition
from core.jobs.stopping import StopRequest

NICENESS = 5
"""A worker gives way: on few cores the pages that watch it would wait for it otherwise."""
COMPLETE, FAILED, REFUSED, CANCELLED = 0, 1, 2, 130
_ENVIRONMENT = {
    # Threads that wait must not spin: beside a chat or a second run on few cores that made work five times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as the driver counts GPUs, which is how they are chosen
    "TQDM_DISABLE": "1",  # bars of libraries would fill log.txt
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
_log = logging.getLogger(__name__)


def work(directory: RunDirectory, listener: Listener | None = None) -> int:
    """Do the run in this process, whose only work it is, and return the exit code.

    The caller holds the run's lock. QueueError if the run is over already.
    """
    recorded = directory.recorded()
    begun = directory.events_file.exists() or directory.state_file.exists()
    was = State.INTERRUPTED if recorded.state is State.RUNNING else recorded.state  # RUNNING without its lock
    transition(was if begun else None, State.RUNNING)
    stop = StopRequest()
    attempt = _next_attempt(directory)
    with EventWriter(directory.events_file, attempt=attempt, listener=listener) as events:
        stop.install(lambda: _end_now(events))
        place = os.environ.get("ESPALIER_PLACE", "")
        events.state(State.RUNNING, **identity(), **({"place": place} if place else {}))
        events.start_heartbeat()
        sweep(directory.path)
        sweep(directory.stages_dir)
        handler = _log_to(directory)
        try:
            return _do(directory, events, stop)
        finally:
            stop.done()
            logging.getLogger().removeHandler(handler)
            handler.close()


def _next_attempt(directory: RunDirectory) -> int:
    """One more than the last attempt of which there is an event, but never less than the supervisor counts."""
    last = max((event.get("attempt", 1) for event in directory.events() if event["kind"] == "state"), default=0)
    asked = (directory.read_state() or {}).get("attempt", 1)
    return max(int(last) + 1, int(asked))


def _do(directory: RunDirectory, events: EventWriter, stop: StopRequest) -> int:
    try:
        from core.jobs.pipeline import run

        run(directory, events, stop.check)
        stop.done()
        events.state(State.COMPLETE)
        return COMPLETE
    except Exception as error:  # noqa: BLE001 - every end of a run is told in its events
        if stop.asked or isinstance(error, Cancelled):  # whatever came after the request came of it
            _log.info("Cancelled.", exc_info=error)
            stop.done()
            events.state(State.CANCELLED, reason="Cancelled.")
            return CANCELLED
        _log.error("The run failed.", exc_info=error)
        told = explain(error, directory.path, directory.recorded().stage)
        try:
            events.state(State.FAILED, reason=told.message, advice=told.advice, cause=cause_of(told))
        except OSError as unsaid:
            if isinstance(told, DiskFullError) and disk_is_full(unsaid):
                return DISK_FULL  # so full that not even that could be written: the supervisor says it
            raise
        return FAILED


def _end_now(events: EventWriter) -> None:
    """The work did not come to a progress call in time after it was asked to stop: say so and end, children first."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    with suppress(OSError):
        events.state(State.CANCELLED, reason="Cancelled.")
    with suppress(OSError):
        os.write(2, b"espalier: cancelled: the work was ended where it stood.\n")
    os._exit(CANCELLED)


def _log_to(directory: RunDirectory) -> logging.Handler:
    """Send what this program and Python's warnings say to log.txt."""
    handler = logging.FileHandler(directory.log_file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("core").setLevel(logging.INFO)
    logging.captureWarnings(True)
    return handler


def prepare_environment() -> None:
    """Keep libraries that are loaded from now on quiet, and kind to their neighbours; what is set already stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _first_to_go() -> None:
    """Where memory runs out, let the system end this process, and not the app or anything else of this user."""
    with suppress(OSError):  # other systems have no such file
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def main(arguments: list[str]) -> int:
    """Entry of the process that the supervisor starts; its output is log.txt already."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the supervisor asks one that has fallen silent
    prepare_environment()
    _first_to_go()
    with suppress(OSError):
        os.nice(NICENESS)
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m core.jobs.worker RUN_DIRECTORY\n")
        return REFUSED
    directory = RunDirectory(Path(arguments[0]))
    if not directory.exists():
        sys.stderr.write(f"{directory.path} is not a run: it has no experiment.yaml.\n")
        return REFUSED
    try:
        with directory.lock():
            return work(directory)
    except QueueError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
