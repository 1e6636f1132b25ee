"""Finished tasks of an interrupted run are not computed again."""

from typing import Any

import pyarrow.parquet as pq

from core.jobs.states import State

# A worker that dies, as by SIGKILL, when the second task begins; and one that writes down which tasks it computes.
WORKER = """
import os, sys
import core.evaluation.tasks as tasks
import core.jobs.worker
evaluate, begun = tasks.evaluate_task, []

def watched(model, tokenizer, name, **how):
    begun.append(name)
    if sys.argv[2] == "dies" and len(begun) == 2:
        os._exit(9)
    print("computed", name, flush=True)
    return evaluate(model, tokenizer, name, **how)

tasks.evaluate_task = watched
sys.exit(core.jobs.worker.main([sys.argv[1]]))
"""


def test_a_run_that_died_in_its_second_task_keeps_the_first(experiment: Any, run_of: Any, start: Any) -> None:
    made = experiment(pruning={"method": "l1", "ratio": 0.5})
    directory = run_of(
        made.with_changes({"evaluation.tasks": ["boolq", "winogrande"], "evaluation.limit": 2, "seed": 1})
    )
    process = start("-c", WORKER, str(directory.path), "dies")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 9, output
    assert directory.status().state is State.INTERRUPTED
    first = directory.stage("evaluate.task.boolq")
    assert first is not None
    assert directory.stage("evaluate.task.winogrande") is None

    process = start("-c", WORKER, str(directory.path), "lives")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output + directory.log_tail()
    computed = [line for line in (output + directory.log_tail()).splitlines() if line.startswith("computed")]
    assert computed == ["computed winogrande"]
    assert directory.stage("evaluate.task.boolq") == first
    results = directory.results()
    assert results is not None
    tasks = [row["task"] for row in results["metrics"]]
    assert [task for task in tasks if not task.startswith("perplexity/")] == ["boolq", "winogrande"]
    rows = pq.read_table(directory.samples_file).to_pylist()
    assert [row["task"] for row in rows if not row["task"].startswith("perplexity/")] == ["boolq"] * 2 + [
        "winogrande"
    ] * 2
