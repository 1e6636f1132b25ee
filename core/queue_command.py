"""`python -m core queue show | when-empty` and `python -m core rebuild`: the queue from a terminal."""

import argparse
import sys
import time
from typing import Any

DONE, FAILED, CANCELLED = 0, 1, 130
POLL_S = 1.0


def add(commands: Any) -> None:
    """Add the commands to the parser's `commands`."""
    queue = commands.add_parser("queue", help="what waits, and a command for when the queue is empty")
    actions = queue.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("show", help="what runs and waits, in order").set_defaults(function=_show)
    after = actions.add_parser("when-empty", help="what to run, once, when the queue becomes empty: shut down, say")
    after.add_argument("command", metavar="COMMAND", nargs="?", help="kept, and off until --on or the switch on Runs")
    switch = after.add_mutually_exclusive_group()
    switch.add_argument("--on", action="store_true", help="run it when the queue is next empty")
    switch.add_argument("--off", action="store_true", help="do not run it")
    switch.add_argument("--forget", action="store_true", help="forget it")
    after.set_defaults(function=_when_empty)
    rebuild = commands.add_parser(
        "rebuild", help="make the model of a complete run again, where only numbers were kept"
    )
    rebuild.add_argument("run", metavar="RUN", help="a run's id, or the beginning of one")
    rebuild.add_argument("--queue", action="store_true", help="only queue it, for the app to run")
    rebuild.set_defaults(function=_rebuild)


def _show(_options: argparse.Namespace) -> int:
    from core.service import Service

    service = Service(supervisor=False)
    try:
        runs, line, waits = service.run_list(), service.status_line(), service.waits()
        after = service.after_queue.view()
    finally:
        service.close()
    for row in runs[runs["state"] == "RUNNING"].to_dict("records"):
        print(f"runs  {row['id']}  {row['name']}")
    waiting = runs[runs["state"].isin(("WAITING", "INTERRUPTED"))]
    for row in waiting.to_dict("records"):
        place = row["position"]
        print(f"{'–' if place is None or place != place else int(place):>4}  {row['id']}  {row['name']}")
        if row["id"] in waits:
            print(f"      {waits[row['id']]}")
    print("Nothing waits." if waiting.empty else f"{len(waiting)} waiting{', paused' if line.paused else ''}.")
    if after.on:
        print(f"When the queue is empty, this runs once: {after.command}")
    return DONE


def _when_empty(options: argparse.Namespace) -> int:
    from core.jobs.after_queue import AfterQueue
    from core.settings import home

    after = AfterQueue(home())
    if options.forget:
        after.set_command("")
    elif options.command is not None:
        after.set_command(options.command)
    if options.on or options.off:
        after.switch(options.on)
    view = after.view()
    if not view.command:
        print("No command is set for when the queue is empty.")
    else:
        print(f"{'On' if view.on else 'Off'}: when the queue is empty, {view.command!r}"
              f"{' runs once' if view.on else ' would run; switch it on with --on, or on Runs'}.")  # fmt: skip
    return DONE


def _rebuild(options: argparse.Namespace) -> int:
    from core.jobs.export_source import find_run
    from core.jobs.letters import Letters
    from core.service import Service

    service = Service(supervisor=not options.queue)
    try:
        run_id = find_run(options.run, service.home).id
        letters = Letters(service.home) if service.read_only else None
        helper = service.rebuilds.start(run_id, by=letters)
        print(f"Run {helper} makes the model of {run_id} again.", flush=True)
        if letters is not None:
            print("The Espalier that owns the queue runs it.")
            return DONE
        return _see_through(service, run_id)
    except KeyboardInterrupt:
        print("What runs goes on: the next Espalier on this home hands the model over.", file=sys.stderr)
        return CANCELLED
    finally:
        service.close()


def _see_through(service: Any, run_id: str) -> int:
    while True:
        now = service.rebuilds.of(run_id)
        if now is None or now.state in ("FAILED", "CANCELLED"):
            print("Its model was not made.", file=sys.stderr)
            return FAILED
        if now.weights:
            words = {"same": "bit for bit the same", "alike": "the same units, not the same bits"}
            trained = "; its recovery was trained again" if now.trained else ""
            print(f"{service.home / 'runs' / run_id}: {words[now.weights]}{trained}")
            return DONE
        if now.apart and not _handing_over(service, run_id):
            print(f"The model stays with run {now.run_id}: it is not the one that was measured here.")
            return DONE
        time.sleep(POLL_S)


def _handing_over(service: Any, run_id: str) -> bool:
    """A run that is complete is handed over within a moment, if it is at all."""
    time.sleep(2 * POLL_S)
    now = service.rebuilds.of(run_id)
    return now is None or bool(now.weights)
