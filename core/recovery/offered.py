"""What a pruned model can learn from, as the form offers it, and whether it can be had: asked before anything loads."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import settings
from core.data import texts
from core.data.corpora import corpora
from core.errors import InputError, Problem
from core.recovery.samples import GENERATED, INSTRUCTIONS, row_check

if TYPE_CHECKING:
    from core.experiment import Recovery, RecoveryData

_FIRST_LINE = 4 << 20


@dataclass(frozen=True)
class Lesson:
    """Data by name. format: of `recovery.data`; here: it is on this machine, or made on it, so no network is needed."""

    name: str
    title: str
    format: str
    here: bool


def lessons() -> list[Lesson]:
    """Passages, what the dense model writes itself, instruction sets, then the other corpora."""
    found = [
        Lesson("passages", "built-in passages", "text", True),
        Lesson(GENERATED, "written by the dense model", "text", True),
    ]
    for name, place in INSTRUCTIONS.items():
        found.append(Lesson(name, f"{name}, instructions", "instructions", _kept(place)))
    for corpus in corpora():
        if corpus.name != "passages":
            found.append(Lesson(corpus.name, corpus.name, "text", texts.hub_file(corpus.name, "train").is_file()))
    return found


def check_data(recovery: "Recovery", field: str = "recovery.data") -> list[Problem]:
    """Why the data cannot be had, or is not of its format, as far as a first look tells; asks no network."""
    data = recovery.data
    if data.path is not None and data.corpus is not None:
        what = f"Both a corpus ({data.corpus}) and a file ({data.path}) are given to learn from."
        return [Problem(f"{field}.corpus", what, "Give one of them.")]
    if data.path is not None:
        return _file_problems(data, field)
    known = {lesson.name: lesson for lesson in lessons()}
    name = data.corpus or "passages"
    lesson = known.get(name)
    wanted = lesson.format if lesson is not None else None
    if wanted is not None and data.format != wanted:
        words = {"text": "plain text", "instructions": "rows of instruction, input and output"}[wanted]
        return [Problem(f"{field}.format", f"{name} is {words}, not {data.format}.", f"Set {field}.format: {wanted}.")]
    if wanted is None and data.format == "text":
        names = ", ".join(each.name for each in known.values() if each.format == "text")
        return [
            Problem(
                f"{field}.corpus",
                f"There is no text corpus {name!r}.",
                f"Choose one of {names}; for a hub set of instructions or chats, set {field}.format.",
            )
        ]
    here = lesson.here if lesson is not None else _kept(INSTRUCTIONS.get(name, name))
    if not here and settings.offline():
        return [
            Problem(
                f"{field}.corpus",
                f"{name} comes from a data hub, and this machine is set to work offline.",
                "Choose passages or generated, or give a local file by path.",
            )
        ]
    return []


def _file_problems(data: "RecoveryData", field: str) -> list[Problem]:
    path = data.path or ""
    lines = Path(path).suffix.lower() in {".jsonl", ".ndjson"}
    try:
        start = texts.file_bytes(path, _FIRST_LINE)
        if data.format == "text" and not lines:
            _decoded(start, path)
            return []
        if not lines:
            what = f"{Path(path).name} is no JSONL file, and {data.format} are read from one."
            return [Problem(f"{field}.path", what, f"Choose a file that ends in .jsonl, or {field}.format: text.")]
        row_check(_first_row(start, path), data.format, f"The first row of {Path(path).name}")
    except InputError as error:
        about = "format" if error.message.startswith("The first row") else "path"
        return [Problem(f"{field}.{about}", error.message, error.advice)]
    return []


def _decoded(start: bytes, path: str) -> None:
    try:
        start[:4096].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < min(len(start), 4096) - 4:  # a letter may be cut in two at the end of what was read
            texts.file_text(path, start)


def _first_row(start: bytes, path: str) -> dict[str, Any]:
    line = next(line for line in start.splitlines() if line.strip())
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InputError(f"The first line of {Path(path).name} is no JSON object.", "Write one JSON object a line.")
    return row


def _kept(place: str) -> bool:
    """Whether a hub data set was fetched to this machine before."""
    home = Path(os.environ.get("HF_HOME", "") or Path.home() / ".cache" / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE", "") or home / "hub")
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", "") or home / "datasets")
    flat = place.replace("/", "--"), place.replace("/", "___")
    return (hub / f"datasets--{flat[0]}" / "snapshots").is_dir() or (prepared / flat[1]).is_dir()
