"""Helper process: write the names of all of lm-eval's tasks to a file. `python -m core.evaluation.task_index FILE`

It takes about ten seconds, most of them spent reading thousands of small files, which no page should wait for.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.tasks import OFFLINE_TASKS, TaskInfo, index_text
from core.files import write_atomic


def harness_tasks() -> list[TaskInfo]:
    """Every task, group and tag that lm-eval knows, by name."""
    from lm_eval.tasks import TaskManager

    entries: dict[str, Any] = TaskManager().task_index
    return [_info(name, entries) for name in sorted(entries)]


def _info(name: str, entries: dict[str, Any]) -> TaskInfo:
    entry = entries[name]
    config = entry.cfg or {}
    kind = {"TASK": "task", "PY_TASK": "task", "GROUP": "group"}.get(entry.kind.name, "tag")
    data_set = config.get("dataset_path")
    members = () if kind == "task" else tuple(dict.fromkeys(_members(name, entries, set())))
    configs = [config, *((entries[member].cfg or {}) for member in members)]
    return TaskInfo(
        name=name,
        kind=kind,
        offline=name in OFFLINE_TASKS,
        unsafe=any(each.get("unsafe_code", False) is not False for each in configs),
        data_set=data_set if isinstance(data_set, str) else "",
        members=members,
    )


def _members(name: str, entries: dict[str, Any], seen: set[str]) -> Iterator[str]:
    """Names of the tasks that a group or tag stands for, those of groups inside it, too."""
    entry = entries.get(name)
    if entry is None or name in seen:
        return
    seen.add(name)
    if entry.kind.name in ("TASK", "PY_TASK"):
        yield name
    elif entry.kind.name == "TAG":
        yield from (task for task in sorted(entry.tags) if task in entries)
    else:
        yield from _listed((entry.cfg or {}).get("task"), entries, seen)


def _listed(items: Any, entries: dict[str, Any], seen: set[str]) -> Iterator[str]:
    """Members as a group's file lists them: names, or mappings that name a task or a group inside."""
    for item in items if isinstance(items, list) else []:
        if isinstance(item, str):
            yield from _members(item, entries, seen)
        elif isinstance(item, dict):
            inner = item.get("task")
            if isinstance(inner, list):
                yield from _listed(inner, entries, seen)
            else:
                yield from _members(str(item.get("group") or inner), entries, seen)


def main(arguments: list[str]) -> int:
    """Write the file whole, or not at all."""
    (target,) = arguments
    write_atomic(Path(target), index_text(harness_tasks()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
