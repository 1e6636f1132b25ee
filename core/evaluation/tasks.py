"""lm-eval tasks: its own definitions and metrics, on data that is at hand.

A task of the seven reads the installed package (core.data.tasks); every other one reads its hub data. `available` and
`check_tasks` answer without importing the harness.
"""

import copy
import math
import os
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from core import settings
from core.data import packages, task_files
from core.data.tasks import (
    CODE_ADVICE,
    OFFLINE_TASKS,
    TaskInfo,
    available,
    check_tasks,
    code_allowed,
    definition_file,
    offline_data,
)
from core.data.texts import hub_failures
from core.errors import DataError, InputError, UnknownNameError
from core.evaluation.chance import rates_of_samples
from core.evaluation.metrics import Metric
from core.evaluation.precision import in_float32_if_it_fails
from core.progress import Progress, silent

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

__all__ = ["TaskInfo", "TaskResult", "available", "check_tasks", "evaluate_task", "prepare_tasks"]

BOOTSTRAP = 1000  # draws for the standard error of metrics that are no mean; means have a closed form


@dataclass(frozen=True)
class TaskResult:
    """What a task gave: its metrics, and one row a document.

    A row has `stage`, `task`, `doc` (number in the scored split), `doc_hash`, `target`; of multiple choice also
    `choice`, `choice_norm` (by log-likelihood a character), `correct`, `correct_norm`, `loglikelihoods`; of other tasks
    `response` and `score`. What does not apply is None, so that the rows of all tasks fit one table. `documents` holds,
    by task, the texts behind the rows (`doc_hash`, `prompt` without examples and chat template, `choices`, `target`).
    """

    metrics: list[Metric]
    samples: list[dict[str, Any]]
    documents: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    harness: str = ""


def prepare_tasks(names: "tuple[str, ...] | list[str]", progress: Progress = silent) -> None:
    """Fetch and open the data of tasks before the work begins. DataError or UnknownNameError if one cannot be had."""
    for number, name in enumerate(names):
        progress(number, len(names), "tasks")
        if name in OFFLINE_TASKS:
            offline_data(name)
        else:
            _load(name, 0, 0)
    progress(len(names), len(names), "tasks")


def evaluate_task(
    model: Any,
    tokenizer: Any,
    name: str,
    *,
    shots: int = 0,
    limit: int | None = None,
    chat_template: bool = False,
    batch_size: int | str = "auto",
    seed: int = 0,
    progress: Progress = silent,
    stage: str = "pruned",
) -> TaskResult:
    """Judge a loaded causal model on one task (or group: then on all of its tasks).

    `limit` takes the first documents of each task. `seed` counts for few-shot examples and for sampled answers; the
    global generators are seeded with it, so that a task's result does not depend on what ran before. A float16 model
    whose numbers overflow is judged again in float32, and the protocol says so. `progress` counts tokens (answers where
    the task generates text).
    """
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise InputError("This model's tokenizer has no chat template.", "Set `chat_template: false`.")
    loaded = _load(name, shots, seed)
    if limit is None and name in OFFLINE_TASKS:
        _hold_documents(loaded["tasks"][name])

    def judge() -> Any:
        return _judge(model, tokenizer, loaded, limit, chat_template, batch_size, seed, progress)

    from core.evaluation.harness import hurried_harness

    with hurried_harness():
        results, dtype = in_float32_if_it_fails(model, judge)
        rows = {
            task_name: [
                ({"stage": stage, **_sample(task_name, task, row)}, _document(task, row))
                for row in _one_filter(results["samples"][task_name])
            ]
            for task_name, task in loaded["tasks"].items()
        }
    base = {
        "harness": f"{packages.HARNESS} {packages.version(packages.HARNESS)}",
        "shots": shots,
        "limit": limit,
        "chat_template": chat_template,
        "dtype": dtype,
        **({"seed": seed} if shots else {}),
        **({"task_file_sha256": task_files.read(name).sha256} if task_files.is_file(name) else {}),
    }
    metrics: list[Metric] = []
    samples: list[dict[str, Any]] = []
    documents: dict[str, list[dict[str, Any]]] = {}
    for task_name, task in loaded["tasks"].items():
        protocol = {
            **base,
            **_data_protocol(task_name, task, shots),
            "task_version": results["versions"].get(task_name),
        }
        count = int(results["n-samples"][task_name]["effective"])
        own = [sample for sample, _ in rows[task_name]]
        documents[task_name] = [document for _, document in rows[task_name]]
        found = rates_of_samples(own)
        details = {} if found is None else asdict(found)
        metrics += _metrics(results["results"][task_name], stage, task_name, count, protocol, details)
        samples += own
    for group in loaded.get("groups", {}):
        of_group = (results.get("groups") or {}).get(group, {})
        metrics += _metrics(of_group, stage, group, len(samples), base)
    return TaskResult(metrics, samples, documents, str(base["harness"]))


# --------------------------------------------------------------------------------------------------------- definitions


@lru_cache(maxsize=1)
def _manager() -> "TaskManager":
    """The index of all of lm-eval's tasks; making it takes about ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _load(name: str, shots: int, seed: int) -> dict[str, Any]:
    """lm-eval's {tasks, groups} for a name, with few-shot count and seed set as its own command line does."""
    import datasets

    from core.evaluation.harness import quiet_harness

    datasets.disable_progress_bars()  # they would fill the run's log
    with quiet_harness():
        if task_files.is_file(name):
            loaded = _load_file(name)
        else:
            loaded = _load_offline(name, shots) if name in OFFLINE_TASKS else _load_from_hub(name)
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False) and not code_allowed():
            raise InputError(f"The task {name} runs code that the model writes.", CODE_ADVICE)
        if task.get_config("num_fewshot") != 0:  # a task that says 0 itself means it
            task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=seed)
    return loaded


def _load_offline(name: str, shots: int) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    config = dict(load_yaml(definition_file(name), resolve_func=True))
    config.pop("tag", None)
    data = offline_data(name)
    config["custom_dataset"] = lambda **_: data
    if "process_docs" in config:
        config["process_docs"] = _once(config["process_docs"])
    config["training_split"] = None  # the package has none, and few-shot documents are read even where none are used
    if shots:
        config["fewshot_split"] = "validation"
        if OFFLINE_TASKS[name].scored == "validation":
            # Named the test split as well, the harness keeps the document in question out of its own examples.
            config["test_split"] = "validation"
    loaded: dict[str, Any] = TaskManager(include_defaults=False).load([config])
    return loaded


def _once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A task's own document function, called once a split: the harness asks for the documents again and again."""
    made: dict[int, Any] = {}

    def remembered(split: Any) -> Any:
        if id(split) not in made:
            made[id(split)] = process(split)
        return made[id(split)]

    return remembered


def _hold_documents(task: Any) -> None:
    """Take the scored documents out of Arrow once: the harness reads all of them four times."""
    documents = list(task.eval_docs)
    setattr(task, "test_docs" if task.has_test_docs() else "validation_docs", lambda: documents)


def _load_from_hub(name: str) -> dict[str, Any]:
    manager = _manager()
    if name not in manager.task_index:
        raise UnknownNameError("task", name, OFFLINE_TASKS)
    try:
        loaded: dict[str, Any] = manager.load([name])
        return loaded
    except hub_failures() as error:
        where = "this machine is set to work offline" if settings.offline() else "the hub did not give it"
        raise DataError(
            f"The data of the task {name} cannot be had: {where} ({type(error).__name__}: {error}).",
            f"Check the network, or choose among {', '.join(OFFLINE_TASKS)}.",
        ) from error


def _load_file(name: str) -> dict[str, Any]:
    """A user's own file. The harness gets the data that was parsed and checked, or the file if code is allowed."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    (problem,) = check_tasks([name]) or (None,)
    if problem is not None:
        raise InputError(problem.message, problem.advice)
    found = task_files.read(name)
    if found.runs:
        config = dict(load_yaml(found.path, resolve_func=True))
        if isinstance(config.get("dataset_kwargs"), dict) and "data_files" in config["dataset_kwargs"]:
            config["dataset_kwargs"] = found.config["dataset_kwargs"]  # with paths beside the file in whole
    else:
        _render_in_a_sandbox()
        config = copy.deepcopy(found.config)
    try:
        loaded: dict[str, Any] = TaskManager(include_defaults=False).load([config])
        return loaded
    except hub_failures() as error:
        raise DataError(
            f"The data of the task's file {found.path.name} cannot be had ({type(error).__name__}: {error}).",
            "Check `dataset_path` and `dataset_kwargs` in it.",
        ) from error


def _render_in_a_sandbox() -> None:
    """From now on the harness renders templates without access to Python's insides: they came from a user's file."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    stock = lm_eval.utils.env
    if isinstance(stock, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(
        loader=stock.loader, undefined=stock.undefined, keep_trailing_newline=stock.keep_trailing_newline
    )
    sandbox.filters.update(stock.filters)
    lm_eval.utils.env = sandbox


def _data_protocol(name: str, task: Any, shots: int) -> dict[str, Any]:
    offline = OFFLINE_TASKS.get(name)
    if offline is not None:
        data, split = f"{packages.TASK_DATA} {packages.version(packages.TASK_DATA)}", offline.scored
    else:
        data = str(task.config.dataset_path)
        split = str(task.config.test_split or task.config.validation_split)
    examples = {"shots_from": task.fewshot_cfg.split} if shots and getattr(task, "fewshot_cfg", None) else {}
    return {"data": data, "split": split, **examples}


# --------------------------------------------------------------------------------------------------------- measurement


def _judge(
    model: Any,
    tokenizer: Any,
    loaded: dict[str, Any],
    limit: int | None,
    chat_template: bool,
    batch_size: int | str,
    seed: int,
    progress: Progress,
) -> Any:
    import numpy as np
    import torch
    from lm_eval import evaluator

    from core.evaluation.harness import WatchedLM, watched_preparation

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if code_allowed():
        os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")  # what the metric of such tasks asks for besides
    lm = WatchedLM(model, tokenizer, batch_size=batch_size, progress=progress)
    with watched_preparation(progress), torch.inference_mode():
        return evaluator.evaluate(
            lm,
            loaded,
            limit=limit,
            bootstrap_iters=BOOTSTRAP,
            log_samples=True,
            confirm_run_unsafe_code=code_allowed(),
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
        )


def _metrics(
    found: dict[str, Any],
    stage: str,
    task: str,
    n: int,
    protocol: dict[str, Any],
    rates: dict[str, float] | None = None,
) -> list[Metric]:
    """`{"acc,none": …, "acc_stderr,none": …}` as metrics; a filter that is not `none` goes into the protocol.

    `rates` of the documents stand beside accuracies.
    """
    metrics = []
    for key, value in found.items():
        metric, _, chosen = key.partition(",")
        if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = found.get(f"{metric}_stderr,{chosen}")
        stderr = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
        named = protocol if chosen == "none" else {**protocol, "filter": chosen}
        details = dict(rates or {}) if metric.startswith("acc") else {}
        metrics.append(Metric(stage, task, metric, float(value), stderr, n, named, details))
    return metrics


def _one_filter(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the first filter only: others repeat the same documents."""
    return [row for row in rows if row["filter"] == rows[0]["filter"]]


def _sample(name: str, task: Any, row: dict[str, Any]) -> dict[str, Any]:
    choice = task.OUTPUT_TYPE == "multiple_choice"
    sample: dict[str, Any] = {
        "task": name,
        "doc": int(row["doc_id"]),
        "doc_hash": str(row["doc_hash"])[:16],
        "target": str(task.doc_to_text(row["doc"]) if getattr(task, "multiple_input", 0) else row["target"]),
        "choice": None,
        "choice_norm": None,
        "correct": None,
        "correct_norm": None,
        "loglikelihoods": None,
        "response": None,
        "score": None,
    }
    if choice:
        return sample | _choice_columns(task, row)
    numbers = [float(row[key]) for key in row["metrics"] if isinstance(row.get(key), int | float)]
    return sample | {"response": str(row["filtered_resps"][0]), "score": numbers[0] if numbers else None}


def _document(task: Any, row: dict[str, Any]) -> dict[str, Any]:
    """The text of a document as the task words it; where the choices stand inside the text, each with its text."""
    doc = row["doc"]
    choice = task.OUTPUT_TYPE == "multiple_choice"
    choices = [str(each) for each in task.doc_to_choice(doc)] if choice else []
    prompt, target = str(task.doc_to_text(doc)), str(row["target"])
    if getattr(task, "multiple_input", 0):
        choices, prompt, target = [f"{each} {target.strip()}" for each in choices], "", prompt
    return {"doc_hash": str(row["doc_hash"])[:16], "prompt": prompt, "choices": choices, "target": target}


def _choice_columns(task: Any, row: dict[str, Any]) -> dict[str, Any]:
    """What was chosen, as the harness chooses: by log-likelihood, and by log-likelihood a character."""
    choices = task.doc_to_choice(row["doc"])
    logs = [float(response[0]) for response in row["filtered_resps"]][: len(choices)]
    normed = [value / max(1, len(text)) for value, text in zip(logs, choices, strict=True)]
    by_length = "acc_norm" in row
    return {
        "choice": logs.index(max(logs)),
        "choice_norm": normed.index(max(normed)) if by_length else None,
        "correct": bool(row["acc"]) if "acc" in row else None,
        "correct_norm": bool(row["acc_norm"]) if by_length else None,
        "loglikelihoods": logs,
    }
