"""Two runs on the same documents, from the files that runs leave to what pages show."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from core.evaluation.averages import AVERAGE_TASK, SEVEN_METRICS
from core.evaluation.outcomes import write_documents, write_samples
from core.evaluation.paired import compare, holm, mcnemar
from core.experiment import Experiment
from core.pairs import differences, flips, pair
from core.storage.store import Store

HARNESS = "lm_eval 0.4.13"
IDS = {name: f"20261123-20180{place}-0000000{place}-x7y9" for place, name in enumerate(("dense", "l1", "l2"))}


def answers(seed: int, n: int = 60, share: float = 0.6) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < share


def sample(task: str, doc: int, right: bool, norm: bool | None = None) -> dict[str, Any]:
    """A two-choice document whose right answer is 1."""
    logs = [-2.0, -1.0] if right else [-1.0, -2.0]
    row = {"task": task, "doc": doc, "doc_hash": f"{task[:4]}{doc:012x}", "target": "1", "loglikelihoods": logs}
    chosen = {"choice": int(right), "correct": bool(right)}
    return row | chosen | ({} if norm is None else {"choice_norm": int(norm), "correct_norm": bool(norm)})


@pytest.fixture
def run(home: Path) -> Any:
    """Writes a complete run: rows of its documents, and the metrics' protocols."""

    def make(name: str, samples: list[dict[str, Any]], shots: int = 0) -> str:
        folder = home / "runs" / IDS[name]
        folder.mkdir(parents=True)
        pruning = None if name == "dense" else {"method": name, "ratio": 0.3}
        folder.joinpath("experiment.yaml").write_text(Experiment.parse({"pruning": pruning}).to_yaml())
        event = {"v": 1, "seq": 1, "attempt": 1, "kind": "state", "state": "COMPLETE", "time": "2026-11-23T20:20:00Z"}
        folder.joinpath("events.jsonl").write_text(json.dumps(event) + "\n")
        protocol = {"harness": HARNESS, "shots": shots, "limit": 60}
        metrics = [
            {"stage": "pruned", "task": task, "metric": "acc", "value": 0.5, "n": 60, "protocol": protocol}
            for task in {row["task"] for row in samples}
        ]
        folder.joinpath("results.json").write_text(json.dumps({"schema": 1, "metrics": metrics}))
        write_samples(folder / "samples.parquet", samples)
        return IDS[name]

    return make


@pytest.fixture
def store(home: Path) -> Any:
    opened: list[Store] = []

    def of_home() -> Store:
        opened.append(Store.open(home))
        return opened[-1]

    yield of_home
    for each in opened:
        each.close()


def test_a_pair_is_counted_document_by_document(run: Any, store: Any, home: Path) -> None:
    first, second = answers(1), answers(2, share=0.4)
    norms = answers(3), answers(4)
    dense = run("dense", [sample("hellaswag", i, first[i], norms[0][i]) for i in range(60)])
    other = run("l1", [sample("hellaswag", i, second[i], norms[1][i]) for i in range(59, -1, -1)])
    found = pair(store(), home, dense, other)
    rows = {row.metric: row for row in found.tasks}
    for metric, (a, b) in {"acc": (first, second), "acc_norm": norms}.items():
        expected = compare(60, int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()))
        assert rows[metric].paired == expected
    assert [(row.metric, row.reported) for row in found.tasks] == [("acc_norm", True), ("acc", False)]
    assert rows["acc_norm"].corrected == pytest.approx(rows["acc_norm"].paired.p)
    assert math.isnan(rows["acc"].corrected)
    assert found.mean is None  # one task is no mean


def test_several_tasks_have_a_mean_and_corrected_p_values(run: Any, store: Any, home: Path) -> None:
    tasks = list(SEVEN_METRICS)
    rows = {
        name: [
            sample(task, i, right, right)
            for place, task in enumerate(tasks)
            for i, right in enumerate(answers(10 * seed + place, share=share))
        ]
        for name, seed, share in (("dense", 1, 0.7), ("l1", 2, 0.5))
    }
    dense, other = run("dense", rows["dense"]), run("l1", rows["l1"])
    opened = store()
    found = pair(opened, home, dense, other)
    main = [row for row in found.tasks if row.reported]
    assert [row.task for row in main] == tasks
    assert {row.task: row.corrected for row in main} == pytest.approx(holm({r.task: r.paired.p for r in main}))
    assert found.mean is not None
    assert found.mean.difference == pytest.approx(np.mean([row.paired.difference for row in main]))

    table = differences(opened, home, {dense: None, other: dense}).set_index(["task", "metric"])
    mean = table.loc[(AVERAGE_TASK, "acc")]
    assert mean["paired_stderr"] == pytest.approx(found.mean.stderr)
    assert mean["paired_p"] == pytest.approx(found.mean.p)
    boolq = next(row.paired for row in main if row.task == "boolq")
    assert table.loc[("boolq", "acc"), "paired_p"] == pytest.approx(mcnemar(boolq.lost, boolq.won))
    assert set(table["run_id"]) == {other}


def test_pairing_is_surer_than_taking_the_runs_as_independent(run: Any, store: Any, home: Path) -> None:
    first = answers(1, 400)
    second = first.copy()
    second[:20] = False
    dense = run("dense", [sample("piqa", i, first[i]) for i in range(400)])
    other = run("l1", [sample("piqa", i, second[i]) for i in range(400)])
    row = differences(store(), home, {other: dense}).iloc[0]
    apart = math.hypot(*(values.std(ddof=1) / 20 for values in (first, second)))
    assert row["paired_stderr"] < apart / 3
    assert row["paired_p"] < 0.01


def test_perplexities_are_paired_by_window(run: Any, store: Any, home: Path) -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(3.0, 0.4, 50)
    second = first + generator.normal(0.3, 0.05, 50)

    def windows(values: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"task": "perplexity/passages", "doc": i, "doc_hash": "ab", "score": float(value)}
            for i, value in enumerate(values)
        ]

    dense, other = run("dense", windows(first)), run("l1", windows(second))
    opened = store()
    (row,) = pair(opened, home, dense, other).perplexities
    assert (row.corpus, row.windows) == ("passages", 50)
    assert row.ratio == pytest.approx(math.exp(second.mean() - first.mean()))
    assert row.low < row.ratio < row.high < 1.05 * row.low
    found = differences(opened, home, {other: dense}).iloc[0]
    draws = generator.integers(50, size=(4000, 50))
    spread = (np.exp(second[draws].mean(1)) - np.exp(first[draws].mean(1))).std()
    assert found["paired_stderr"] == pytest.approx(spread, rel=0.1)


def test_many_runs_are_held_against_dense_at_once_as_one_by_one_also_beside_a_damaged_one(
    run: Any, store: Any, home: Path
) -> None:
    def rows(seed: int) -> list[dict[str, Any]]:
        tasks = [sample("piqa", i, right) for i, right in enumerate(answers(seed))]
        return [*tasks, *windows_of("ab/20", 20, 3.0 + seed / 10)]

    dense, first, second = run("dense", rows(1)), run("l1", rows(2)), run("l2", rows(3))
    opened = store()
    columns = ["run_id", "task", "metric"]

    def found(*runs: str) -> Any:
        return differences(opened, home, dict.fromkeys(runs, dense)).sort_values(columns).reset_index(drop=True)

    both = found(first, second)
    assert set(both["run_id"]) == {first, second}
    assert set(both["task"]) == {"piqa", "perplexity/passages"}
    alone = pd.concat([found(first), found(second)]).sort_values(columns).reset_index(drop=True)
    pd.testing.assert_frame_equal(both, alone)
    (home / "runs" / second / "samples.parquet").write_bytes(b"PAR1 damaged PAR1")
    pd.testing.assert_frame_equal(found(first, second), found(first))


def windows_of(text: str, count: int, value: float, corpus: str = "passages") -> list[dict[str, Any]]:
    generator = np.random.default_rng(count)
    return [
        {"task": f"perplexity/{corpus}", "doc": i, "doc_hash": text, "score": value + float(generator.normal(0, 0.1))}
        for i in range(count)
    ]


def test_one_text_in_windows_of_several_lengths_is_paired_length_by_length(run: Any, store: Any, home: Path) -> None:
    dense = run("dense", [*windows_of("ab/20", 20, 3.0), *windows_of("ab/5", 5, 2.0)])
    cut = run("l1", [*windows_of("ab/5", 5, 2.25), *windows_of("ab/20", 20, 3.5)])
    opened = store()
    found = {row.windows: row.ratio for row in pair(opened, home, dense, cut).perplexities}
    assert found == {5: pytest.approx(math.exp(0.25)), 20: pytest.approx(math.exp(0.5))}
    assert set(differences(opened, home, {cut: dense})["text"]) == {"ab/5", "ab/20"}


def test_rows_of_former_versions_meet_new_ones_of_the_same_number_of_windows(run: Any, store: Any, home: Path) -> None:
    former, longer = run("dense", windows_of("ab", 20, 3.0)), run("l1", windows_of("ab", 5, 2.0))
    new = run("l2", [*windows_of("ab/20", 20, 3.5), *windows_of("ab/5", 5, 2.25)])
    opened = store()
    assert [(row.windows, row.ratio) for row in pair(opened, home, former, new).perplexities] == [
        (20, pytest.approx(math.exp(0.5)))
    ]
    assert [row.windows for row in pair(opened, home, longer, new).perplexities] == [5]
    assert pair(opened, home, former, longer).problem  # a window never meets one of another length


def test_rows_of_former_versions_are_left_out_where_one_text_has_windows_of_several_lengths(
    run: Any, store: Any, home: Path
) -> None:
    def rows(shift: float) -> list[dict[str, Any]]:
        both = [*windows_of("ab", 20, 3.0 + shift), *windows_of("ab", 5, 2.0 + shift)]
        return [*both, *windows_of("cd", 20, 3.0 + shift, "c4")]

    dense, cut = run("dense", rows(0.0)), run("l1", rows(0.5))
    opened = store()
    assert [row.corpus for row in pair(opened, home, dense, cut).perplexities] == ["c4"]
    assert set(differences(opened, home, {cut: dense})["task"]) == {"perplexity/c4"}


def test_flipped_documents_come_with_text_choices_and_both_models_log_likelihoods(
    run: Any, store: Any, home: Path
) -> None:
    first, second = answers(1), answers(2)
    dense = run("dense", [sample("piqa", i, first[i]) for i in range(60)])
    other = run("l1", [sample("piqa", i, second[i]) for i in range(60)])
    texts = [
        {"doc_hash": f"piqa{i:012x}", "prompt": f"question {i}?", "choices": ["no", "yes"], "target": "1"}
        for i in range(60)
    ]
    write_documents(home / "documents", HARNESS, "piqa", texts[:30])
    write_documents(home / "documents", HARNESS, "piqa", texts)
    opened = store()
    lost = [
        flip for page in (0, 20) for flip in flips(opened, home, dense, other, "piqa", "acc", lost=True, offset=page)
    ]
    assert [flip.doc for flip in lost] == np.flatnonzero(first & ~second).tolist()
    flip = lost[0]
    assert (flip.prompt, flip.choices, flip.target) == (f"question {flip.doc}?", ("no", "yes"), 1)
    assert (flip.first_choice, flip.second_choice) == (1, 0)
    assert (flip.first_logs, flip.second_logs) == ((-2.0, -1.0), (-1.0, -2.0))
    won = flips(opened, home, dense, other, "piqa", "acc", lost=False)
    assert {flip.doc for flip in won} <= set(np.flatnonzero(~first & second).tolist())


def test_documents_whose_text_was_not_kept_still_show_their_numbers(run: Any, store: Any, home: Path) -> None:
    dense, other = run("dense", [sample("piqa", 0, True)]), run("l1", [sample("piqa", 0, False)])
    (flip,) = flips(store(), home, dense, other, "piqa", "acc", lost=True)
    assert not flip.known
    assert flip.choices == ("choice 1", "choice 2")


def test_of_a_run_that_was_judged_again_after_recovery_the_later_answers_count(
    run: Any, store: Any, home: Path
) -> None:
    first, second, third = answers(1), answers(2), answers(3)
    dense = run("dense", [sample("piqa", i, first[i]) for i in range(60)])
    early = [{**sample("piqa", i, second[i]), "stage": "pruned"} for i in range(60)]
    late = [{**sample("piqa", i, third[i]), "stage": "recovered"} for i in range(60)]
    only_early = [{**sample("boolq", i, second[i]), "stage": "pruned"} for i in range(60)]
    other = run("l1", [*late, *early, *only_early])
    (row,) = pair(store(), home, dense, other).tasks
    assert (row.paired.n, row.paired.lost) == (60, int((first & ~third).sum()))


def test_other_documents_under_the_same_number_are_never_paired(run: Any, store: Any, home: Path) -> None:
    dense = run("dense", [sample("piqa", i, True) for i in range(20)])
    changed = [{**sample("piqa", i, False), "doc_hash": f"other{i}"} for i in range(20)]
    found = pair(store(), home, dense, run("l1", changed))
    assert "share no document" in found.problem
    assert found.tasks == ()


def test_settings_that_differ_are_named(run: Any, store: Any, home: Path) -> None:
    dense = run("dense", [sample("piqa", i, True) for i in range(20)])
    other = run("l1", [sample("piqa", i, False) for i in range(20)], shots=5)
    (row,) = pair(store(), home, dense, other).tasks
    assert row.differing == ("shots",)


def test_runs_without_rows_or_with_damaged_ones_say_so(run: Any, store: Any, home: Path) -> None:
    dense = run("dense", [sample("piqa", i, True) for i in range(20)])
    opened = store()
    assert pair(opened, home, dense, "20261123-201809-00000009-gone").problem
    other = run("l1", [sample("piqa", 0, True)])
    (home / "runs" / other / "samples.parquet").write_bytes(b"PAR1 no parquet PAR1")
    assert "cannot be read" in pair(opened, home, dense, other).problem
    assert flips(opened, home, dense, other, "piqa", "acc", lost=True) == []
    assert differences(opened, home, {other: dense}).empty


def test_differences_are_remembered_until_a_file_changes(run: Any, store: Any, home: Path) -> None:
    dense = run("dense", [sample("piqa", i, True) for i in range(20)])
    other = run("l1", [sample("piqa", i, i > 4) for i in range(20)])
    opened, known = store(), {}
    first = differences(opened, home, {other: dense}, known)
    assert len(known) == 1
    (key,) = known
    known[key] = [(*known[key][0][:-1], 0.123)]
    assert differences(opened, home, {other: dense}, known)["paired_p"].tolist() == [0.123]
    write_samples(home / "runs" / other / "samples.parquet", [sample("piqa", i, i > 9) for i in range(20)])
    again = differences(opened, home, {other: dense}, known)["paired_p"].tolist()
    assert again != [0.123]
    assert again != first["paired_p"].tolist()
