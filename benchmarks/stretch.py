"""Runs of a study in stretches of time, where a machine is to be had for minutes only: the first in the file first.

    python -m benchmarks.stretch STUDY.yaml --home DIR [--devices 0 1] [--slots 3] [--minutes 9]
                                 [--only WORD …] [--skip WORD …] [--tinyllama DIR] [--leave GIB]

Each run is `python -m core run` in its own process, `--slots` at once on each device (CUDA_VISIBLE_DEVICES; `cpu` for
none). What was finished is not done again; what was cut off goes on from its last stage, part or checkpoint. At the
end of the stretch processes are killed: nothing finished is lost. Then a line a run says what became of it; runs not
made are listed as not made. With `--tinyllama`, whose weights are random, a table of time and memory follows. Needs
neither streamlit nor duckdb; `study pack` takes the home afterwards.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import row, tinyllama_folder
from core.jobs.rundir import RunDirectory, list_runs, new_run_id, to_json, write_atomic
from core.jobs.states import State
from core.preview import settle
from core.study import Planned, Study, expand, key_of

LEAST_S = 45.0  # a run is not begun when less is left
POLL_S = 0.2
GIB = 2**30
STAGES = ("load", "calibrate", "prune", "save", "recover")


class Stretch:
    """The runs of one study in one home, on some devices, until a moment."""

    def __init__(self, study: Study, home: Path, slots: Sequence[str], until: float) -> None:
        self.study, self.home, self.until = study, home, until
        self.free = list(slots)
        self.at_work: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}
        self.known = {key_of(run.experiment()): run for run in list_runs(home / "runs") if run.exists()}

    def state(self, run: Planned) -> State | None:
        """Where a run stands; None where it was not begun."""
        return self.known[run.key].status().state if run.key in self.known else None

    def work(self, runs: Sequence[Planned]) -> None:
        """Begin runs while there is a slot and time for one, and see them through."""
        ahead = [run for run in runs if (state := self.state(run)) is None or not state.finished]
        while self.at_work or (ahead and self._time_left() > LEAST_S):
            self._collect()
            if self._time_left() <= 0:
                self._kill()
                return
            while ahead and self.free and self._time_left() > LEAST_S:
                self._begin(ahead.pop(0), self.free.pop(0))
            time.sleep(POLL_S)

    def _time_left(self) -> float:
        return self.until - time.monotonic()

    def _begin(self, run: Planned, slot: str) -> None:
        if run.key not in self.known:
            name = new_run_id(settle(run.experiment).hash)
            self.known[run.key] = RunDirectory.of(self.home / "runs", name)
        directory = self.known[run.key]
        file = self.home / "stretch" / f"{directory.id}.yaml"
        write_atomic(file, run.experiment.to_yaml())
        directory.path.mkdir(parents=True, exist_ok=True)
        log = (self.home / "stretch" / f"{directory.id}.log").open("ab")
        environment = {**os.environ, "ESPALIER_HOME": str(self.home)}
        environment["CUDA_VISIBLE_DEVICES"] = "" if slot == "cpu" else slot
        process = subprocess.Popen(
            [sys.executable, "-m", "core", "run", str(file), "--run-dir", str(directory.path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
        log.close()
        self.at_work[run.key] = (slot, process)
        say(f"begins on {slot}: {run.name}")

    def _collect(self) -> None:
        for key, (slot, process) in list(self.at_work.items()):
            if process.poll() is not None:
                del self.at_work[key]
                self.free.append(slot)
                directory = self.known[key]
                if directory.exists():  # `study pack` and the pages find it by this
                    write_atomic(directory.study_file, to_json({"v": 1, "study": self.study.id}))
                say(f"exit {process.returncode}: {directory.id}; {self._time_left():.0f} s left")

    def _kill(self) -> None:
        for _, process in self.at_work.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._collect()


def taken(devices: Sequence[str], leave: float) -> list[Any]:
    """Memory of each GPU, taken until `leave` GiB of it are free; it is given back with what is returned."""
    import torch

    if not all(device.isdecimal() for device in devices) or not torch.cuda.is_available():
        raise SystemExit(f"--leave takes memory of GPUs, and {', '.join(devices)} is none here: give their numbers.")
    held = []
    for device in devices:
        free, _ = torch.cuda.mem_get_info(int(device))
        held.append(torch.empty(max(0, int(free - leave * GIB)), dtype=torch.uint8, device=f"cuda:{device}"))
        say(f"device {device}: {held[-1].numel() / GIB:.1f} of {free / GIB:.1f} GiB taken")
    return held


def described(run: Planned) -> str:
    """A run's name, with what the names of dense models leave out and options ask for."""
    told = [run.name, "speed" if run.experiment.evaluation.speed else "", f"device {run.experiment.device}"]
    return ", ".join(filter(None, told))


def say(text: str) -> None:
    """A line at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def listed(stretch: Stretch, runs: Sequence[Planned]) -> None:
    """A line a run, and how many are in which state."""
    counts: dict[str, int] = {}
    for run in runs:
        state = stretch.state(run)
        word = "not made" if state is None else str(state).lower()
        counts[word] = counts.get(word, 0) + 1
        status = stretch.known[run.key].status() if state in (State.FAILED, State.INTERRUPTED) else None
        sys.stdout.write(f"{word:<11}  {run.name}{f': {status.reason}' if status else ''}\n")
    sys.stdout.write(", ".join(f"{count} {word}" for word, count in counts.items()) + "\n")


def costs(stretch: Stretch, runs: Sequence[Planned]) -> None:
    """Seconds of each stage of the runs that are complete, and peaks of memory in GiB.

    `trained`: tokens that recovery's training saw a second; the study limits its minutes. `GPU`: what torch held of it;
    `worker`: its resident memory; `with children`: as its heartbeats, every two seconds, say, so that the process that
    verifies the saved model counts.
    """
    row("run", *(f"{stage}, s" for stage in STAGES), "trained, tokens/s", "GPU", "worker", "with children")
    row("---", *["---:"] * (len(STAGES) + 4))
    for run in runs:
        if stretch.state(run) is not State.COMPLETE:
            continue
        directory = stretch.known[run.key]
        results = directory.results() or {}
        beats = [event["rss_bytes"] for event in directory.events() if event["kind"] == "heartbeat"]
        seconds = [f"{results['timings'][stage]:.1f}" if stage in results["timings"] else "" for stage in STAGES]
        training = (results.get("recovery") or {}).get("training") or {}
        rate = f"{training['tokens'] / training['seconds']:,.0f}" if training.get("seconds") else ""
        memory = results["memory"]
        peaks = [memory.get("peak_device_bytes", 0), memory["peak_rss_bytes"], max(beats, default=0)]
        row(run.name.rpartition(": ")[2], *seconds, rate, *(f"{peak / GIB:.2f}" for peak in peaks))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the study's YAML file")
    parser.add_argument("--home", type=Path, required=True, help="where runs/ is")
    parser.add_argument("--devices", nargs="+", default=["0"], help="numbers of CUDA devices, or cpu")
    parser.add_argument("--slots", type=int, default=1, help="runs at once on each device")
    parser.add_argument("--minutes", type=float, default=9.0, help="how long the stretch is")
    parser.add_argument("--tinyllama", type=Path, help="in place of the study's model: TinyLlama's shape, made here")
    parser.add_argument("--leave", type=float, help="GiB of each GPU's memory that runs may use; the rest is taken")
    parser.add_argument(
        "--only", nargs="*", default=[], help="words of which a run's name must hold one; also: speed, device cpu"
    )
    parser.add_argument("--skip", nargs="*", default=[], help="words that it must hold none of")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Work for one stretch, then list."""
    chosen = parsed(arguments)
    until = time.monotonic() + 60 * chosen.minutes
    study = Study.from_yaml(chosen.study.read_text(encoding="utf-8"))
    if chosen.tinyllama:
        model = {"name": str(tinyllama_folder(chosen.tinyllama.resolve()))}
        study = study.model_copy(update={"base": {**study.base, "model": model}})
    every = expand(study).runs
    runs = [run for run in every if not chosen.only or any(word in described(run) for word in chosen.only)]
    runs = [run for run in runs if not any(word in described(run) for word in chosen.skip)]
    slots = [device for _ in range(chosen.slots) for device in chosen.devices]
    stretch = Stretch(study, chosen.home.resolve(), slots, until)
    held = taken(chosen.devices, chosen.leave) if chosen.leave else []
    stretch.work(runs)
    del held
    listed(stretch, runs)
    if chosen.tinyllama:
        costs(stretch, runs)


if __name__ == "__main__":
    main(sys.argv[1:])
