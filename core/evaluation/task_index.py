"""Helper process: write the names of all of lm-eval's tasks to a file. `python -m core.evaluation.task_index FILE`

It takes about ten seconds, most of them spent reading thousands of small files, which no page should wait for.
"""

import sys
from pathlib import Path
from typing import Any

from core.data.tasks import OFFLINE_TASKS, TaskInfo, index_text
from core.data.texts import write_atomically


def harness_tasks() -> list[TaskInfo]:
    """Every task, group and tag that lm-eval knows, by name."""
    from lm_eval.tasks import TaskManager

    entries: dict[str, Any] = TaskManager().task_index
    return [_info(name, entries[name]) for name in sorted(entries)]


def _info(name: str, entry: Any) -> TaskInfo:
    config = entry.cfg or {}
    kind = {"TASK": "task", "PY_TASK": "task", "GROUP": "group"}.get(entry.kind.name, "tag")
    data_set = config.get("dataset_path")
    return TaskInfo(
        name=name,
        kind=kind,
        offline=name in OFFLINE_TASKS,
        unsafe=bool(config.get("unsafe_code", False)),
        data_set=data_set if isinstance(data_set, str) else "",
    )


def main(arguments: list[str]) -> int:
    """Write the file whole, or not at all."""
    (target,) = arguments
    write_atomically(Path(target), index_text(harness_tasks()).encode("utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
