"""The command line: `python -m core COMMAND`; `--help` lists the commands.

`run` works without streamlit, duckdb and plotly. Exit codes: 0 done, 1 the run failed, 2 what was asked for cannot be
done, 130 cancelled.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import evaluate_command, queue_command, report_command, study_command
from core.errors import EspalierError, ExperimentError, InputError

if TYPE_CHECKING:
    from core.experiment import Experiment

DONE, FAILED, REFUSED, CANCELLED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and do it; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.function(options))
    except ExperimentError as error:
        for problem in error.problems:
            where = f"{problem.field}: " if problem.field else ""
            _complain(f"{where}{problem.message} {problem.advice}".strip())
        if not error.problems:
            _complain(str(error))
        return REFUSED
    except EspalierError as error:
        _complain(str(error))
        return REFUSED
    except KeyboardInterrupt:
        return CANCELLED
    except BrokenPipeError:  # | head
        sys.stderr.close()
        return DONE


def _complain(text: str) -> None:
    print(f"espalier: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core", description="Espalier: prune, judge and compare models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="do one run in the foreground")
    run.add_argument("file", metavar="FILE.yaml", help="the experiment")
    _add_common(run)
    run.set_defaults(function=_run)

    evaluate_command.add(commands, _evaluate, _add_common)
    _add_export(commands)
    study_command.add(commands)
    queue_command.add(commands)
    report_command.add(commands)
    for name, function, text in (
        ("methods", _methods, "list the pruning methods"),
        ("models", _models, "list the models that can be chosen by name"),
        ("tasks", _tasks, "list the evaluation tasks"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--json", action="store_true", help="as JSON")
        command.set_defaults(function=function)
    reindex = commands.add_parser("reindex", help="rebuild results.duckdb from the run directories")
    reindex.set_defaults(function=_reindex)
    return parser


def _add_common(command: Any) -> None:
    """Options of every command that does a run."""
    command.add_argument("--run-dir", metavar="DIR", help="where its files go; an unfinished run there is continued")
    command.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="changes", help="e.g. pruning.ratio=0.4"
    )
    command.add_argument(
        "--allow-unsafe-code",
        action="store_true",
        help="let tasks run code that the model writes, or that their YAML file names, in this process",
    )


def _add_export(commands: Any) -> None:
    export = commands.add_parser("export", help="write a model as others load it: Hugging Face form or GGUF")
    export.add_argument("run", metavar="RUN", nargs="?", help="a run's id, the beginning of one, or a run's folder")
    export.add_argument("--model", metavar="NAME", help="in place of RUN: a dense model, as `models` lists them")
    export.add_argument("--to", choices=("hf", "gguf"), required=True, help="Hugging Face form, or GGUF for llama.cpp")
    export.add_argument(
        "--dtype", default="", help="float32, float16, bfloat16; for GGUF also q8_0, q4_0 (default: as stored)"
    )
    export.add_argument(
        "--stage",
        choices=("pruned", "recovered"),
        default="",
        help="which model of a run with recovery (default: the last)",
    )
    export.add_argument("--out", metavar="DIR", help="where it goes (default: export/ in the run's folder)")
    export.add_argument("--push", metavar="REPO", help="upload it to this repository of a model hub, too")
    export.add_argument("--public", action="store_true", help="make that repository public, if it is made new")
    export.add_argument("--trust-remote-code", action="store_true", help="for --model: let its own code run")
    export.set_defaults(function=_export)


# ----------------------------------------------------------------------------------------------------------------- run


def _run(options: argparse.Namespace) -> int:
    from core.experiment import Experiment

    return _work(Experiment.from_yaml(_read(options.file)), options)


def _evaluate(options: argparse.Namespace) -> int:
    return _work(evaluate_command.experiment_of(options), options)


def _work(experiment: "Experiment", options: argparse.Namespace) -> int:
    """Do a run in the foreground, in its folder; the exit code."""
    from core.jobs import worker

    worker.prepare_environment()
    from core.data.tasks import allow_code
    from core.jobs.pipeline import require_data, settle
    from core.jobs.rundir import RunDirectory, new_run_id
    from core.settings import runs_dir

    if options.allow_unsafe_code:
        allow_code()
    if options.changes:
        experiment = experiment.with_changes(_changes(options.changes))
    setting = settle(experiment)
    require_data(experiment)
    path = Path(options.run_dir) if options.run_dir else runs_dir() / new_run_id(setting.hash)
    directory = RunDirectory(path)
    with directory.lock():
        if _prepare(directory, experiment, setting):
            print(f"{directory.path} is complete already.")
            return DONE
        print(f"Run {directory.id} in {directory.path}", flush=True)
        with _Bar() as bar:
            code = worker.work(directory, bar.hear)
        return _report(directory, code)


def _prepare(directory: Any, experiment: Any, setting: Any) -> bool:
    """Make the run directory, or check that the one there is this run; True if it is complete already."""
    from core.jobs.rundir import is_run_id, new_run_id
    from core.jobs.states import State

    if directory.exists():
        if directory.experiment() != experiment:
            raise InputError(
                f"{directory.path} holds another run ({directory.experiment().name or directory.id}).",
                "Choose another --run-dir.",
            )
        state = directory.recorded().state
        if state is State.COMPLETE:
            return True
        if state.finished:
            raise InputError(f"The run in {directory.path} is {state}, and finished runs never change.",
                             "Choose another --run-dir.")  # fmt: skip
        return False
    strangers = [entry.name for entry in directory.path.iterdir() if entry.name != directory.lock_file.name]
    if strangers:
        raise InputError(
            f"{directory.path} is not empty and holds no run ({strangers[0]}).", "Choose another --run-dir."
        )
    name = {} if is_run_id(directory.path.name) else {"run_id": new_run_id(setting.hash)}
    directory.write_state(State.WAITING, hash=setting.hash, resolved=setting.resolved, **name)
    directory.write_experiment(experiment)
    return False


def _read(file: str) -> str:
    path = Path(file)
    try:
        if path.stat().st_size > 1 << 20:
            raise InputError(f"{file} is too large for an experiment ({path.stat().st_size} bytes).", "Check the path.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no UTF-8 text.", "Check the path.") from error


def _changes(items: Sequence[str]) -> Mapping[str, Any]:
    """`--set a.b=value` as a mapping; values are read as YAML scalars, lists or mappings."""
    from core import yaml_text

    changes: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {item} has no value.", "Write --set KEY=VALUE, e.g. --set pruning.ratio=0.4.")
        changes[key.strip()] = yaml_text.load_value(value)
    return changes


class _Bar:
    """A progress bar fed by events; where there is no terminal, one line a stage."""

    def __enter__(self) -> "_Bar":
        from tqdm import tqdm

        self._bar: Any = None
        self._key: Any = None
        self._terminal = sys.stderr.isatty()
        self._tqdm = tqdm
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = self._key = None

    def hear(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        kind = event["kind"]
        if kind == "progress" and self._terminal:
            self._move(event)
        elif kind == "stage":
            self._close()
            if event["status"] == "reused":
                self._say(f"{event['stage']}: done by an earlier attempt")
            elif event["status"] == "finished":
                self._say(f"{event['stage']}: {event['seconds']:.1f} s")
        elif kind == "warning":
            self._say(f"note: {event['text']}")

    def step(self, stage: str, done: float, total: float, unit: str) -> None:
        """Show where an export is; without a terminal one line a stage."""
        if self._terminal:
            self._move({"stage": stage, "done": done, "total": total, "unit": unit})
        elif stage != self._key:
            self._key = stage
            self._say(stage)

    def _move(self, event: Mapping[str, Any]) -> None:
        key = (event["stage"], event.get("task"), event["unit"], event["total"])
        if key != self._key:
            self._close()
            title = f"{event['stage']} {event.get('task') or ''}".strip()
            scale = event["unit"] == "bytes"
            self._bar = self._tqdm(
                total=event["total"], desc=title, unit=f" {event['unit']}", unit_scale=scale, leave=False, disable=False
            )
            self._key = key
        self._bar.n = round(event["done"], 1)
        self._bar.refresh()

    def _say(self, text: str) -> None:
        self._tqdm.write(text, file=sys.stderr)


def _report(directory: Any, code: int) -> int:
    status = directory.recorded()
    if code != DONE:
        _complain(f"{status.state.lower()}: {status.reason} {status.advice}".strip())
        if code == FAILED:
            _complain(f"the log is {directory.log_file}")
        return code
    results = directory.results() or {}
    pruning = results.get("pruning", {})
    if (results.get("experiment") or {}).get("pruning") is None:
        print(f"{pruning['params_after']:,} parameters, {pruning['nonzero_after']:,} of them not zero, "
              f"{pruning['bytes']:,} bytes")  # fmt: skip
    else:
        gone = f"−{pruning['achieved_model_ratio']:.1%} of the model"
        print(f"parameters {pruning['params_before']:,} → {pruning['params_after']:,}, "
              f"non-zero {pruning['nonzero_after']:,} ({gone})")  # fmt: skip
    for metric in results.get("metrics", []):
        value = "nan" if metric["value"] is None else f"{metric['value']:.4g}"
        error = "" if metric["stderr"] is None else f" ± {metric['stderr']:.2g}"
        batch = (metric["protocol"] or {}).get("batch", 1)
        of = f"  (batch {batch})" if batch != 1 and metric["task"].startswith("speed") else ""
        of += "" if metric["stage"] == "pruned" else f"  ({metric['stage']})"
        print(f"{metric['task']:<28} {metric['metric']:<26} {value}{error}{of}")
    print(f"results: {directory.results_file}")
    return DONE


# -------------------------------------------------------------------------------------------------------------- export


def _export(options: argparse.Namespace) -> int:
    from core.jobs import worker

    worker.prepare_environment()
    from core.errors import Cancelled, RunError
    from core.jobs.exporting import Order, ended_by_signals, find_run, perform
    from core.models.push import PushError
    from core.settings import home

    if (options.run is None) == (options.model is None):
        raise InputError("Nothing, or two things, to export.", "Give a RUN, or --model NAME.")
    if options.stage and options.run is None:
        raise InputError("--stage is of a run, and a dense model has none.", "Leave it out.")
    run = find_run(options.run, home()) if options.run is not None else None
    out = Path(options.out) if options.out else None
    order = Order(
        run, options.model, options.to, options.dtype, out, options.push, not options.public, options.trust_remote_code,
        options.stage,
    )  # fmt: skip
    try:
        with ended_by_signals() as check, _Bar() as bar:

            def hear(stage: str, done: float, total: float, unit: str) -> None:
                check()
                bar.step(stage, done, total, unit)

            exported, url = perform(order, hear)
    except Cancelled as error:
        _complain(str(error))
        return CANCELLED
    except (RunError, PushError) as error:
        _complain(str(error))
        return FAILED
    for text in (*exported.checks, *exported.notes):
        print(text)
    print(f"{exported.path}  {exported.bytes / 1e6:,.1f} MB, {exported.architecture}, {exported.dtype}")
    if url:
        print(f"uploaded to {url}")
    return DONE


# --------------------------------------------------------------------------------------------------------------- lists


def _table(rows: Sequence[Mapping[str, Any]], as_json: bool) -> int:
    if as_json:
        print(json.dumps(list(rows), ensure_ascii=False, indent=1))
        return DONE
    columns = list(rows[0]) if rows else []
    widths = {name: max(len(str(row[name])) for row in rows) for name in columns[:-1]}
    for row in rows:
        print("  ".join([*(f"{row[name]!s:<{widths[name]}}" for name in columns[:-1]), str(row[columns[-1]])]).rstrip())
    return DONE


def _methods(options: argparse.Namespace) -> int:
    from core.pruning.registry import methods

    rows = [{"name": m.name, "kind": m.kind, "title": m.title, "summary": m.summary} for m in methods().values()]
    return _table(rows, options.json)


def _models(options: argparse.Namespace) -> int:
    from core.models.catalogue import entries

    rows = [
        {"name": e.name, "where": "on this machine" if e.offline else "hub", "licence": e.license, "title": e.title}
        for e in entries()
    ]
    code = _table(rows, options.json)
    if not options.json:
        print("\nAlso any hub id (organisation/name) and the path of any folder in Hugging Face form.")
    return code


def _tasks(options: argparse.Namespace) -> int:
    from core.data.tasks import available

    rows = [
        {"name": info.name, "kind": info.kind, "data": "on this machine" if info.offline else "hub"}
        for info in available(wait=True)
    ]
    return _table(rows, options.json)


def _reindex(_options: argparse.Namespace) -> int:
    from core.settings import database_file
    from core.storage.store import reindex

    count = reindex()
    print(f"{count} runs in {database_file()}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
