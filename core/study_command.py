"""`python -m core study list | show | run | status | stop | pack | import | remove`: studies from a terminal.

Where the app owns the queue, `run` and `stop` leave word for it in the runs' files; where nobody does, `run` owns it
until the study is over.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from core.service import Service
    from core.study import Study

DONE, FAILED, CANCELLED = 0, 1, 130
POLL_S = 1.0


def add(commands: Any) -> None:
    """Add the command to the parser's `commands`."""
    study = commands.add_parser("study", help="many runs as one: list, show, run, status, stop, pack, import, remove")
    actions = study.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="studies that come with Espalier, and those of this home").set_defaults(
        function=_list
    )
    show = _action(actions, "show", _show, "its runs with hours, disk and memory, without starting anything")
    show.add_argument("--price", metavar="PER_HOUR", type=float, help="what an hour of this machine costs")
    show.add_argument("--yaml", action="store_true", help="the study's file itself")
    show.add_argument("--json", action="store_true", help="as JSON")
    run = _action(actions, "run", _run, "queue what is not done yet, and see it through; also resumes")
    run.add_argument("--queue", action="store_true", help="only queue it, for the app to run")
    status = _action(actions, "status", _status, "which of its runs are where")
    status.add_argument("--json", action="store_true", help="as JSON")
    _action(actions, "stop", _stop, "cancel its runs that wait or run")
    pack = _action(actions, "pack", _pack, "write what its runs came to, all but weights, as one file")
    pack.add_argument("-o", "--out", metavar="FILE", help="where (default: NAME.parquet)")
    details = "of each document whether it was right (default), every log-likelihood too, or nothing"
    pack.add_argument("--documents", choices=("outcomes", "full", "none"), default="outcomes", help=details)
    pack.add_argument("--origin", metavar="TEXT", default="", help="a line that says who measured it, and where")
    taken = actions.add_parser("import", help="unpack a packed study: its runs can be read, and never change")
    taken.add_argument("file", metavar="FILE.parquet", help="what `study pack` wrote")
    taken.set_defaults(function=_import)
    _action(actions, "remove", _remove, "take an imported study back, with the runs that came with it")


def _action(actions: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text)
    parser.add_argument("study", metavar="NAME_OR_FILE", help="a study's name, or its YAML file")
    parser.set_defaults(function=function)
    return parser


def study_of(service: "Service", name: str) -> "Study":
    """The study that a name or a file stands for. InputError where there is none."""
    from core.study import Study
    from core.yaml_text import MAX_BYTES

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        return service.studies.find(name)
    try:
        with path.open("rb") as file:
            return Study.from_yaml(file.read(MAX_BYTES + 1).decode("utf-8"))
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no UTF-8 text.", "Check the path.") from error


def _shown() -> "Service":
    from core.service import Service

    return Service(supervisor=False)


def _list(_options: argparse.Namespace) -> int:
    from core.study import expand

    service = _shown()
    try:
        for study in service.studies.all():
            print(f"{study.id:<36}  {len(expand(study).runs):>4} runs  {study.name}")
    finally:
        service.close()
    return DONE


def _show(options: argparse.Namespace) -> int:
    from core.studies import as_json

    service = _shown()
    try:
        study = study_of(service, options.study)
        if options.yaml:
            print(study.to_yaml(), end="")
            return DONE
        found = service.studies.preview(study, options.price)
    finally:
        service.close()
    if options.json:
        print(as_json(found))
        return DONE
    rows = found.rows
    for row in rows[rows["problem"] == ""].to_dict("records"):
        what = f"done: {row['done']}" if row["done"] else f"{_time(row['seconds'])}"
        print(f"{_bytes(row['disk_bytes']):>9} disk  {_bytes(row['memory_bytes']):>9} memory  {what:>9}  {row['name']}")
    for row in rows[rows["problem"] != ""].to_dict("records"):
        print(f"left out: {row['name']}: {row['problem']}")
    money = "" if found.money is None else f", costs {found.money:,.2f}"
    many = "" if found.at_once == 1 else f" each, {found.at_once} at a time"
    print(f"{found.to_do} runs to do: about {_time(found.seconds)}, {_bytes(found.disk_bytes)} on disk, "
          f"at most {_bytes(found.memory_bytes)} of memory{many}{money}. {found.basis}".rstrip())  # fmt: skip
    return DONE


def _run(options: argparse.Namespace) -> int:
    from core.jobs.letters import Letters
    from core.service import Service

    service = Service(supervisor=not options.queue)
    try:
        study = study_of(service, options.study)
        letters = Letters(service.home) if service.read_only else None
        ids = service.studies.queue(study, by=letters)
        print(f"{len(ids)} runs queued of {study.name}.", flush=True)
        if letters is not None:
            print("The Espalier that owns the queue runs them: `study status` says where they stand.")
            return DONE
        return _see_through(service, study)
    except KeyboardInterrupt:
        print("What runs goes on, what waits is kept: the next Espalier on this home goes on with it.", file=sys.stderr)
        return CANCELLED
    finally:
        service.close()


def _see_through(service: "Service", study: "Study") -> int:
    """Wait until nothing of the study waits or runs, telling of each run that is over."""
    told: set[str] = set()
    if service.status_line().paused:
        print("The queue is paused: it starts no runs until it is resumed in the app.", file=sys.stderr)
    while True:
        status = service.studies.status(study)
        for row in status.rows.to_dict("records"):
            if row["state"] in ("COMPLETE", "FAILED", "CANCELLED") and row["run_id"] not in told:
                told.add(row["run_id"])
                print(f"{row['state'].lower():<9}  {row['run_id']}  {row['name']}", flush=True)
        if status.over:
            return DONE if set(status.counts) == {"COMPLETE"} else FAILED
        time.sleep(POLL_S)


def _status(options: argparse.Namespace) -> int:
    from core.studies import as_json

    service = _shown()
    try:
        found = service.studies.status(study_of(service, options.study))
    finally:
        service.close()
    if options.json:
        print(as_json(found))
        return DONE
    _table(found.rows)
    print(", ".join(f"{count} {state.lower()}" for state, count in found.counts.items()))
    return DONE


def _stop(options: argparse.Namespace) -> int:
    from core.jobs.letters import Letters

    service = _shown()
    try:
        ids = service.studies.stop(study_of(service, options.study), by=Letters(service.home))
    finally:
        service.close()
    print(f"{len(ids)} runs cancelled.")
    return DONE


def _pack(options: argparse.Namespace) -> int:
    service = _shown()
    try:
        study = study_of(service, options.study)
        out = Path(options.out or f"{study.id}.parquet")
        packed = service.travel.pack(study, out, options.documents, options.origin)
    finally:
        service.close()
    missing = f" {packed.missing} of the study are not over." if packed.missing else ""
    print(f"{packed.runs} runs in {packed.file}, {_bytes(packed.bytes)}.{missing}")
    return DONE


def _import(options: argparse.Namespace) -> int:
    service = _shown()
    try:
        found = service.travel.take_in(Path(options.file))
    finally:
        service.close()
    before = f" {found.here_before} were here before." if found.here_before else ""
    where = f" on {', '.join(found.devices)}" if found.devices else ""
    print(f"{len(found.runs)} runs of {found.name}{where}.{before} `study remove {found.study}` takes them back.")
    return DONE


def _remove(options: argparse.Namespace) -> int:
    service = _shown()
    try:
        found = service.travel.remove(service.studies.find(options.study).id)
    finally:
        service.close()
    print(f"{found.name} is gone, with {len(found.runs)} runs that came with it.")
    return DONE


def _table(rows: "pd.DataFrame") -> None:
    records: Sequence[dict[Any, Any]] = rows.to_dict("records")
    for row in records:
        print(f"{row['state']:<11}  {row['run_id'] or '–':<29}  {row['name']}")


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
