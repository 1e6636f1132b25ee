"""What `benchmarks.load` prints: how old what pages showed was, and what happened when it was oldest."""

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks.load_visitors import Visitor


class Seen(NamedTuple):
    """A bar that arrived: how old what it says was, when, which run's it was, and of which stage."""

    seconds: float
    arrived: float
    run: str
    stage: str
    visitor: int


def ages(home: Path, visitors: list[Visitor]) -> tuple[list[Seen], list[Seen]]:
    """`age` and `kept` of every bar that was shown."""
    from core.jobs.rundir import list_runs

    events: dict[str, list[tuple[float, str, str]]] = {}
    for run in list_runs(home / "runs"):
        for event in run.events():
            if event["kind"] == "progress" and event.get("total") and 0 < event["done"] < event["total"]:
                share, moment = f"{event['done'] / event['total']:.2%}", _seconds(event["time"])
                stage = " ".join(filter(None, (event["stage"], event.get("task"))))
                events.setdefault(share, []).append((moment, run.id, stage))
    found, kept = [], []
    for number, visitor in enumerate(visitors):
        before: tuple[float, str] | None = None
        for arrived, share in visitor.shown:
            known = [each for each in events.get(share, ()) if each[0] <= arrived + 0.01]
            if not known:
                before = None
                continue
            moment, run_id, stage = max(known)
            if before is not None and before[1] != share and arrived - before[0] < 30:
                kept.append(Seen(arrived - before[0], arrived, run_id, stage, number))
            if before is None or before[1] != share:
                found.append(Seen(arrived - moment, arrived, run_id, stage, number))
            before = (moment, share)
    return found, kept


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def worst(home: Path, visitors: list[Visitor], seen: list[Seen], begun: float) -> None:
    """Print the five oldest, each with what else happened between the event and its arrival."""
    from core.jobs.rundir import list_runs

    moments = [
        (_seconds(event["time"]), f"{run.id[-4:]} {event.get('state') or event['stage'] + ' ' + event['status']}")
        for run in list_runs(home / "runs")
        for event in run.events()
        if event["kind"] in ("state", "stage")
    ]
    for each in sorted(seen, reverse=True)[:5]:
        since = each.arrived - each.seconds
        drawn = [
            f"{'whole page' if whole else 'fragment'} took {seconds:.1f} s"
            for seconds, whole, there in visitors[each.visitor].updates
            if seconds > 1 and since < there and there - seconds < each.arrived + 0.5
        ]
        meanwhile = [word for moment, word in sorted(moments) if since - 1 < moment < each.arrived]
        print(
            f"  {each.seconds:5.2f} s at {each.arrived - begun:5.0f} s: run {each.run[-4:]}, {each.stage}, "
            f"visitor {each.visitor}; {', '.join(drawn) or 'no slow update'}; {', '.join(meanwhile) or 'nothing else'}"
        )


def said(name: str, values: list[float]) -> str:
    """`update  n 123  p50 0.04 s  p95 0.31 s  most 0.90 s`."""
    if not values:
        return f"{name:8} none"
    ordered = sorted(values)
    middle, high = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (0.5, 0.95))
    return f"{name:8} n {len(values):6}  p50 {middle:5.2f} s  p95 {high:5.2f} s  most {ordered[-1]:5.2f} s"
