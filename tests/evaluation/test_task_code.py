"""Tasks of users' files on a real model, templates that try to reach Python, and tasks that run code."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.data import tasks
from core.errors import InputError
from core.evaluation.tasks import evaluate_task, prepare_tasks
from core.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent.parent
TASK = """
task: fruit
dataset_path: json
dataset_kwargs: {data_files: {test: fruit.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "%s"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc}]
"""


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import lm_eval.utils

    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(tasks, "_code_allowed", False)
    monkeypatch.setattr(lm_eval.utils, "env", lm_eval.utils.env)
    write_atomic(tasks.index_file(), tasks.index_text([tasks.TaskInfo("mmlu")]))
    return iter(())


def write(folder: Path, text: str = "{{question}}", more: str = "") -> str:
    rows = [{"question": f"which one? {n}", "choices": ["a", "bc"], "label": n % 2} for n in range(6)]
    (folder / "fruit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "fruit.yaml").write_text((TASK % text) + more)
    return str(folder / "fruit.yaml")


def test_a_users_file_is_judged_like_any_task_and_its_content_stands_in_the_protocol(
    tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    path = write(tmp_path)
    prepare_tasks([path])
    result = evaluate_task(tiny_llama(), tiny_tokenizer(), path)
    (metric,) = result.metrics
    assert (metric.task, metric.metric, metric.n) == ("fruit", "acc", 6)
    assert len(metric.protocol["task_file_sha256"]) == 64
    assert [sample["task"] for sample in result.samples] == ["fruit"] * 6


def test_a_template_cannot_reach_pythons_insides(tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    path = write(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(Exception, match="unsafe"):
        evaluate_task(tiny_llama(), tiny_tokenizer(), path)


def test_a_file_with_code_is_refused_before_it_is_read_by_the_harness(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    path = write(tmp_path, more="process_docs: !function evil.run\n")
    with pytest.raises(InputError, match="would run code"):
        prepare_tasks([path])
    assert not (tmp_path / "ran").exists()


def test_a_file_with_code_works_where_it_is_allowed(tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any) -> None:
    (tmp_path / "helper.py").write_text("def first(docs):\n    return docs.select(range(2))\n")
    path = write(tmp_path, more="process_docs: !function helper.first\n")
    tasks.allow_code()
    (metric,) = evaluate_task(tiny_llama(), tiny_tokenizer(), path).metrics
    assert metric.n == 2


def test_data_that_is_not_there_is_said_when_the_task_is_prepared(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "fruit.jsonl").unlink()
    with pytest.raises(InputError, match="cannot be had"):
        prepare_tasks([path])


def test_tasks_that_run_what_the_model_writes_are_refused_by_the_harness_side_too(monkeypatch: Any) -> None:
    from core.evaluation import tasks as evaluation

    class Unsafe:
        UNSAFE_CODE = True

    monkeypatch.setattr(evaluation, "_load_from_hub", lambda _name: {"tasks": {"humaneval": Unsafe()}})
    with pytest.raises(InputError, match="runs code that the model writes"):
        prepare_tasks(["humaneval"])


def test_a_worker_is_not_allowed_what_the_command_line_was(tmp_path: Path) -> None:
    tasks.allow_code()
    code = "from core.data import tasks; print(tasks.code_allowed())"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
