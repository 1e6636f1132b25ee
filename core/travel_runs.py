"""Runs as the rows of a packed study, and its rows as runs: what core/travel.py packs and unpacks. No torch.

A run travels with everything but its weights and its log. What arrives is checked before anything is written, and what
is written lets no run of this machine take a part of its evaluation from it.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import EspalierError, InputError
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory, is_run_id, to_json
from core.jobs.status import from_iso, now_iso
from core.recovery.curve import FILE as CURVE
from core.storage.archive import Contents
from core.study import Study

FORMAT = 1
PACKED_STATES = ("COMPLETE", "FAILED")
_METRIC = ("stage", "task", "metric", "value", "stderr", "n")
_ADVICE = "Nothing was imported."


def things_of(directory: RunDirectory) -> Iterator[dict[str, Any]]:
    """The rows of one run: its experiment, how it ended, its numbers, the curve of its training."""
    run_id, status = directory.id, directory.status()
    results = dict(directory.results() or {})
    metrics = results.pop("metrics", None) or []
    yield {"kind": "run", "run": run_id, "name": directory.experiment().name,
           "text": directory.experiment_file.read_text(encoding="utf-8")}  # fmt: skip
    before = directory.read_state() or {}
    state = {
        **{name: getattr(status, name) for name in ("state", "created", "started", "finished", "reason", "advice")},
        "hash": status.hash,
        "resolved": before.get("resolved"),
        "stages": {
            name: {key: content.get(key) for key in ("finished", "seconds")}
            for name, content in directory.stages().items()
        },
    }
    yield {"kind": "state", "run": run_id, "text": json_of(state)}
    if results:
        yield {"kind": "results", "run": run_id, "text": json_of(results)}
    for metric in metrics:
        rest = {key: value for key, value in metric.items() if key not in _METRIC}
        yield {"kind": "metric", "run": run_id, **{key: metric.get(key) for key in _METRIC}, "text": json_of(rest)}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        yield {"kind": "curve", "run": run_id, "text": (directory.recovery_dir / CURVE).read_text(encoding="utf-8")}


def json_of(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# ----------------------------------------------------------------------------------------------------------- unpacking


def checked(contents: Contents) -> tuple[Mapping[str, Any], Study, dict[str, Experiment]]:
    """Where it comes from, the study, and each run's experiment: whatever of it is not as it should be is refused."""
    abouts, studies, runs = contents.of("archive"), contents.of("study"), contents.of("run")
    if len(abouts) != 1 or len(studies) != 1 or not runs:
        raise InputError("The file holds no study, or more than one.", _ADVICE)
    about = _object(abouts[0]["text"], "what it says of itself")
    if about.get("format") != FORMAT:
        raise InputError(f"The file is of format {about.get('format')!r}; this Espalier reads {FORMAT}.",
                         "Update Espalier.")  # fmt: skip
    try:
        study = Study.from_yaml(str(studies[0]["text"]))
    except EspalierError as error:
        raise InputError(f"Its study cannot be read: {error}", _ADVICE) from error
    experiments: dict[str, Experiment] = {}
    for row in runs:
        run_id = str(row["run"])
        if not is_run_id(run_id) or run_id in experiments:
            raise InputError(f"The file has a run called {run_id[:80]!r}.", _ADVICE)
        try:
            experiments[run_id] = Experiment.from_yaml(str(row["text"]))
        except EspalierError as error:
            raise InputError(f"The experiment of run {run_id} cannot be read: {error}", _ADVICE) from error
    strangers = {row["run"] for row in contents.things if row["run"] is not None} | contents.documents.keys()
    if strangers - experiments.keys():
        raise InputError("The file has numbers of runs that it does not hold.", _ADVICE)
    return about, study, experiments


def write_run(
    directory: RunDirectory, contents: Contents, run_id: str, study: str, experiment: Experiment
) -> Mapping[str, Any]:
    """Write a run's folder as its worker left it, but for weights and log; returns results.json's environment."""
    mine = [row for row in contents.things if row["run"] == run_id]
    texts = {kind: [row["text"] for row in mine if row["kind"] == kind] for kind in ("state", "results", "curve")}
    if len(texts["state"]) != 1 or len(texts["results"]) > 1 or len(texts["curve"]) > 1:
        raise InputError(f"Run {run_id} is not whole.", _ADVICE)
    state = _object(texts["state"][0], f"the state of run {run_id}")
    if state.get("state") not in PACKED_STATES:
        raise InputError(f"Run {run_id} is said to be {state.get('state')!r}.", _ADVICE)
    results = _object(texts["results"][0], f"the results of run {run_id}") if texts["results"] else {}
    directory.path.mkdir()
    _put(directory.experiment_file, next(str(row["text"]) for row in mine if row["kind"] == "run"))
    _put(directory.study_file, to_json({"v": 1, "study": study, "imported": True}))
    times = {name: _time(state.get(name)) for name in ("created", "started", "finished")}
    begun = times["started"] or times["created"] or now_iso()
    waiting = {"v": 1, "created": times["created"] or begun, "state": "WAITING", "time": times["created"] or begun,
               "attempt": 1, "reason": "", "advice": "", "hash": text_of(state.get("hash")) or "",
               "resolved": dict(mapping_of(state.get("resolved")))}  # fmt: skip
    _put(directory.state_file, to_json(waiting))
    ended = {"state": state["state"], "reason": text_of(state.get("reason")) or "",
             "advice": text_of(state.get("advice")) or ""}  # fmt: skip
    events = [(begun, {"state": "RUNNING"}), (times["finished"] or begun, ended)]
    lines = [
        json.dumps({"v": 1, "seq": place, "attempt": 1, "time": time, "kind": "state", **what}, ensure_ascii=False)
        for place, (time, what) in enumerate(events, 1)
    ]
    _put(directory.events_file, "\n".join(lines) + "\n")
    _put(directory.log_file, "This run was made on another machine; its log stayed there.\n")
    for name, content in mapping_of(state.get("stages")).items():
        # Without the numbers and their keys: no run on this machine takes a part of its evaluation from here.
        known = {"finished": _time(mapping_of(content).get("finished")), "seconds": mapping_of(content).get("seconds")}
        path = directory.stage_file(str(name))
        path.parent.mkdir(exist_ok=True)
        _put(path, to_json({"v": 1, "stage": str(name), "attempt": 1, "imported": True, **known}))
    if results:
        metrics = [
            {key: row[key] for key in _METRIC} | _object(row["text"], f"a number of run {run_id}")
            for row in mine
            if row["kind"] == "metric"
        ]
        _put(
            directory.results_file,
            to_json({**results, "run_id": run_id, "experiment": experiment.to_dict(), "metrics": metrics}),
        )
    if texts["curve"]:
        directory.recovery_dir.mkdir()
        _put(directory.recovery_dir / CURVE, str(texts["curve"][0]))
    return mapping_of(results.get("environment"))


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def bad_content() -> Iterator[None]:
    """What no file system or encoding takes is the file's fault."""
    try:
        yield
    except (UnicodeEncodeError, RecursionError) as error:
        raise InputError(f"The file holds what cannot be written ({type(error).__name__}).", _ADVICE) from error


def _object(text: Any, what: str) -> dict[str, Any]:
    try:
        value = json.loads(str(text))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"In the file, {what} cannot be read.", _ADVICE)
    return value


def mapping_of(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def text_of(value: Any) -> str | None:
    """The first 2,000 characters of a text; None for what is none."""
    return value[:2000] if isinstance(value, str) and value else None


def _time(value: Any) -> str | None:
    try:
        return value if from_iso(value) else None
    except (TypeError, ValueError):
        return None
