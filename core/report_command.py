"""`python -m core report`: a study, or some runs, as a paper: HTML, Markdown or LaTeX, in English or German.

Works while the app has the home open: the store is then built in memory, from the files.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import InputError

if TYPE_CHECKING:
    from core.reports import Report
    from core.service import Service

DONE = 0
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")


def add(commands: Any) -> None:
    """Add the command to the parser's `commands`."""
    report = commands.add_parser(
        "report", help="a study or runs as a paper: tables, figures and text, for HTML or LaTeX"
    )
    what = report.add_mutually_exclusive_group(required=True)
    what.add_argument("--study", metavar="NAME_OR_FILE", help="all complete runs of a study")
    what.add_argument("--runs", metavar="ID", nargs="+", help="runs, each by its id or the beginning of one")
    report.add_argument("--format", choices=("html", "markdown", "latex"), default="html", dest="form")
    report.add_argument("--language", choices=("en", "de"), default="en", help="English or German")
    report.add_argument("--out", metavar="DIR", default="report", help="where the files go (default: report)")
    report.add_argument("--name", metavar="NAME", default="report", help="what they are called (default: report)")
    report.add_argument("--mark-tasks", action="store_true", help="mark significant differences of single tasks, too")
    report.add_argument(
        "--charts", choices=("png", "svg"), help="Compare's charts as images, too: needs Kaleido and a Chrome"
    )
    report.set_defaults(function=_report)


def _report(options: argparse.Namespace) -> int:
    from core.report import writing
    from core.service import Service

    if not _STEM.fullmatch(options.name):
        raise InputError(
            f"--name {options.name!r} is no name for a file.", "Use letters, digits, - and _, at most 60 of them."
        )
    service = Service(supervisor=False)
    try:
        made = _made(service, options)
        out = Path(options.out)
        written = writing.write(made.document, options.form, out, options.name)
        if options.charts:
            written += service.reports.write_charts(made, out / f"{options.name}-charts", options.charts)
    finally:
        service.close()
    beside = len(written) - 1
    print(f"{written[0]}, with {beside} {'file' if beside == 1 else 'files'} beside it")
    if options.form == "latex":
        print(f"latexmk -pdf {options.name}.tex makes the PDF, in {out}.")
    return DONE


def _made(service: "Service", options: argparse.Namespace) -> "Report":
    from core.study_command import study_of

    if options.study is not None:
        study = study_of(service, options.study)
        return service.reports.of_study(study, options.language, mark_tasks=options.mark_tasks)
    return service.reports.of_runs(options.runs, options.language, mark_tasks=options.mark_tasks)
