"""Runs are found, sorted and paged in SQL, whatever a person types."""

import json

import pytest

from core.experiment import Experiment
from core.storage import finding
from core.storage.finding import Wanted
from core.storage.store import Store

TEXT = {"corpus": "passages", "window": 512}


def write(home, number, pruning=None, *, value=25.0, state="COMPLETE", study=None, stages=("pruned",), **rest):
    directory = home / "runs" / f"20261123-20{number:02d}00-{number:08x}-x7y9"
    directory.mkdir(parents=True)
    experiment = Experiment.parse({"name": f"run {number}", "pruning": pruning, **rest})
    directory.joinpath("experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    time = f"2026-11-23T20:{number:02d}:0"
    events = [{"kind": "state", "state": "RUNNING", "time": f"{time}0.000Z", "pid": 1}]
    events.append({"kind": "state", "state": state, "time": f"{time}9.000Z"})
    lines = [json.dumps({"v": 1, "seq": i + 1, "attempt": 1, **event}) for i, event in enumerate(events)]
    directory.joinpath("events.jsonl").write_text("\n".join(lines) + "\n")
    metrics = [
        {
            "stage": stage,
            "task": "perplexity/passages",
            "metric": "perplexity",
            "value": value - place,
            "protocol": TEXT,
        }
        for place, stage in enumerate(stages)
    ]
    pruned = {"params_after": 100 - number, "achieved_model_ratio": number / 100, "model_layers": 30}
    directory.joinpath("results.json").write_text(json.dumps({"schema": 1, "pruning": pruned, "metrics": metrics}))
    if study:
        directory.joinpath("study.json").write_text(json.dumps({"study": study}))
    return directory.name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("found")
    taylor = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}
    ids = {
        "dense": write(home, 1),
        "taylor": write(home, 2, taylor, value=40.0, study="first"),
        "wanda": write(home, 3, {"method": "wanda", "ratio": 0.5}, value=30.0, study="second"),
        "tuned": write(home, 4, taylor, value=40.0, stages=("pruned", "recovered"), recovery={"kind": "lora"}),
        "failed": write(home, 5, {**taylor, "ratio": 0.6}, state="FAILED", value=99.0),
        "hub": write(home, 6, {**taylor, "ratio": 0.2}, model={"name": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"}),
    }
    with_store = Store.open(home)
    yield with_store, ids
    with_store.close()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), {"dense", "taylor", "wanda", "tuned", "failed", "hub"}),
        (Wanted(methods=("taylor",)), {"taylor", "tuned", "failed", "hub"}),
        (Wanted(methods=("dense", "wanda")), {"dense", "wanda"}),
        (Wanted(models=("TinyLlama/TinyLlama-1.1B-Chat-v1.0",)), {"hub"}),
        (Wanted(ratio=(0.3, 0.5)), {"taylor", "wanda", "tuned"}),
        (Wanted(layers=((4, 25),)), {"taylor", "tuned", "failed", "hub"}),
        (Wanted(layers=((0, 29), (1, 2))), {"wanda"}),
        (Wanted(studies=("first", "second")), {"taylor", "wanda"}),
        (Wanted(states=("FAILED",)), {"failed"}),
        (Wanted(text="WANDA run"), {"wanda"}),
        (Wanted(text="kind: lora"), {"tuned"}),
        (Wanted(text="taylor", states=("COMPLETE",), ratio=(0.0, 0.25)), {"hub"}),
        (Wanted(text="100%_"), set()),
        (Wanted(text="' OR 1=1 --"), set()),
        (Wanted(methods=("'); DROP TABLE runs; --",)), set()),
    ],
)
def test_every_condition_is_met_at_once(runs, wanted, expected):
    store, ids = runs
    found = finding.find(store, wanted)
    assert set(found["id"]) == {ids[name] for name in expected}
    assert finding.count(store, wanted) == len(expected)
    assert set(finding.ids(store, wanted, limit=10)) == set(found["id"])


def test_runs_are_sorted_by_any_column_and_those_without_a_value_come_last(runs):
    store, ids = runs
    by_ratio = finding.find(store, Wanted(), sort="ratio", descending=False)["id"].tolist()
    assert by_ratio[0] == ids["hub"]
    assert by_ratio[-1] == ids["dense"]
    downward = finding.find(store, Wanted(), sort="ratio")["id"].tolist()
    assert downward[0] == ids["failed"]
    assert downward[-1] == ids["dense"]
    newest = finding.find(store, Wanted(), sort="no such column; DROP TABLE runs")["id"].tolist()
    assert newest[0] == ids["hub"]


def test_a_measure_is_a_column_to_sort_by_and_recovery_counts(runs):
    store, ids = runs
    (measure,) = finding.offered(store).measures
    assert measure.runs == 6
    found = finding.find(store, Wanted(states=("COMPLETE",)), sort=measure.key, descending=False, measures=[measure])
    values = dict(zip(found["id"], found[measure.key], strict=True))
    assert values[ids["tuned"]] == 39.0  # after recovery, not the 40 from before
    assert found[measure.key].tolist() == sorted(values.values())


def test_pages_do_not_overlap_and_hold_all(runs):
    store, ids = runs
    pages = [finding.find(store, Wanted(), limit=4, offset=offset)["id"].tolist() for offset in (0, 4, 8)]
    assert [len(page) for page in pages] == [4, 2, 0]
    assert {run_id for page in pages for run_id in page} == set(ids.values())
    assert finding.find(store, Wanted(), limit=-1, offset=-5).empty


def test_what_there_is_to_filter_by_is_counted(runs):
    store, _ = runs
    there = finding.offered(store)
    assert there.methods == {"taylor": 4, "dense": 1, "wanda": 1}
    assert there.studies == {"first": 1, "second": 1}
    assert there.layers == {(0, 29): 1, (4, 25): 4}
    assert there.states == {"COMPLETE": 5, "FAILED": 1}
    assert there.ratio == (0.2, 0.6)
    assert there.runs == 6


def test_a_scan_of_layers_is_no_run_to_compare(home):
    write(home, 1)
    write(home, 2, {"method": "taylor", "ratio": 0.45, "layers": [3, 9]}, scan={})
    store = Store.open(home)
    assert store.rows("SELECT count(*) FROM runs")[0][0] == 2
    assert finding.count(store, Wanted()) == finding.offered(store).runs == 1
    assert not finding.offered(store).layers
    store.close()
