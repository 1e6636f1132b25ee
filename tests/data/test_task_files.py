"""Tasks that users write: what of a file would run code is found without running it."""

from pathlib import Path
from typing import Any

import pytest

from core.data import task_files, tasks
from core.errors import InputError
from core.files import write_atomic

PLAIN = """
task: fruit
dataset_path: json
dataset_kwargs: {data_files: {test: fruit.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: label
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cached list of names, so that no helper is started; code is not allowed."""
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks, "_code_allowed", False)
    rows = [*(tasks.TaskInfo(name, offline=True) for name in tasks.OFFLINE_TASKS), tasks.TaskInfo("mmlu")]
    write_atomic(tasks.index_file(), tasks.index_text(rows))


def write(folder: Path, text: str, name: str = "fruit.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_file_of_plain_data_runs_nothing_and_finds_its_data_beside_it(tmp_path: Path) -> None:
    (tmp_path / "fruit.jsonl").write_text("{}\n")
    found = task_files.read(write(tmp_path, PLAIN))
    assert found.runs == ()
    assert found.name == "fruit"
    assert found.config["dataset_kwargs"]["data_files"] == {"test": str(tmp_path / "fruit.jsonl")}
    assert tasks.check_tasks([str(found.path)]) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("process_docs: !function evil.run", "`!function evil.run`"),
        ("doc_to_text: !function evil.run", "evil.run"),
        ("metric_list: [{metric: !function evil.run}]", "evil.run"),
        ("fewshot_config: {sampler: first_n, samples: !function evil.run}", "evil.run"),
        ("class: !function evil.Task", "evil.Task"),
        ("class: evil.Task", "`class`"),
        ("custom_dataset: evil", "`custom_dataset`"),
        ("use_prompt: 'evil.yaml:*'", "`use_prompt`"),
        ("unsafe_code: true", "the model writes"),
        ("unsafe_code: 0", "the model writes"),
        ("metric_list: [{metric: code_eval}]", "code_eval"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]", "another library"),
        ("dataset_path: pandas", "pandas"),
        ("dataset_path: /etc", "/etc"),
        ("dataset_kwargs: {trust_remote_code: true}", "trust_remote_code"),
    ],
)
def test_what_would_run_code_is_refused_without_running_it(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    key = line.partition(":")[0]
    kept = "\n".join(row for row in PLAIN.splitlines() if not row.startswith(f"{key}:"))
    path = write(tmp_path, f"{kept}\n{line}\n")
    assert said in " ".join(task_files.read(path).runs)
    (problem,) = tasks.check_tasks([path])
    assert "would run code" in problem.message
    assert "--allow-unsafe-code" in problem.advice


def test_code_in_an_included_file_is_found(tmp_path: Path) -> None:
    write(tmp_path, "process_docs: !function evil.run\n", "base.yaml")
    assert task_files.read(write(tmp_path, f"include: base.yaml\n{PLAIN}")).runs == ("`!function evil.run`",)


def test_what_is_allowed_on_the_command_line_passes(tmp_path: Path) -> None:
    path = write(tmp_path, f"{PLAIN}\nprocess_docs: !function evil.run\n")
    assert tasks.check_tasks([path])
    tasks.allow_code()
    assert tasks.check_tasks([path]) == []


def test_no_variable_of_the_environment_allows_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ESPALIER_ALLOW_UNSAFE_CODE", "HF_ALLOW_CODE_EVAL", "ALLOW_UNSAFE_CODE"):
        monkeypatch.setenv(name, "1")
    assert tasks.check_tasks([write(tmp_path, f"{PLAIN}\nunsafe_code: true\n")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "no mapping"),
        ("task: [", "no YAML"),
        ("task: !python/object/apply:os.system ['true']", "no YAML"),
        ("group: g\ntask: [piqa]", "one task"),
        ("task: ../../etc", "names its task"),
        ("include: fruit.yaml\ntask: x", "includes itself"),
        ("a: &a [1]\nb: [*a, *a]\ntask: x", "aliases"),
        ("include: nowhere.yaml\ntask: x", "nowhere.yaml"),
    ],
)
def test_what_is_no_task_is_refused_in_words(text: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=said):
        task_files.read(path)
    (problem,) = tasks.check_tasks([path])
    assert said in str(problem)


def test_a_file_must_not_take_the_name_of_a_known_task(tmp_path: Path) -> None:
    for name in ("piqa", "mmlu"):
        (problem,) = tasks.check_tasks([write(tmp_path, PLAIN.replace("task: fruit", f"task: {name}"))])
        assert "name of its own" in problem.advice


def test_hub_data_of_a_file_that_is_not_here_is_refused_offline(tmp_path: Path) -> None:
    path = write(
        tmp_path, PLAIN.replace("dataset_path: json", "dataset_path: org/fruit").replace("dataset_kwargs", "metadata")
    )
    (problem,) = tasks.check_tasks([path])
    assert "data hub" in problem.message


def test_names_of_stages_are_short_and_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    one, other = (task_files.short_name(str(tmp_path / part / "fruit.yaml")) for part in ("a", "b"))
    assert one.startswith("fruit-")
    assert one != other
    assert task_files.short_name("piqa") == "piqa"


def test_the_digest_covers_what_is_included(tmp_path: Path) -> None:
    write(tmp_path, "description: one\n", "base.yaml")
    path = write(tmp_path, f"include: base.yaml\n{PLAIN}")
    before: Any = task_files.read(path)
    write(tmp_path, "description: two\n", "base.yaml")
    assert task_files.read(path).sha256 != before.sha256
    assert before.config["description"] == "one"
