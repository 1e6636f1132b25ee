"""results.duckdb is a view of the run directories: the same files give the same content, whatever happened to it."""

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from core.errors import StoreError
from core.experiment import Experiment
from core.storage.store import Store, reindex, run_directories


def make_run(home, number=0, state="COMPLETE", value=0.5, name="a run", method="taylor", results=True):
    """A run directory as the worker leaves it."""
    directory = home / "runs" / f"20261123-2018{number % 60:02d}-{number:08x}-x7y9"
    directory.mkdir(parents=True, exist_ok=True)
    pruning = {"method": method, "ratio": 0.3} if method else None
    experiment = Experiment.parse({"name": name, "pruning": pruning})
    directory.joinpath("experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    events = [{"kind": "state", "state": "RUNNING", "time": "2026-11-23T20:19:00.000Z", "pid": 1}]
    if state != "RUNNING":
        events.append({"kind": "state", "state": state, "time": "2026-11-23T20:20:00.000Z"})
    lines = [json.dumps({"v": 1, "seq": i + 1, "attempt": 1, **event}) for i, event in enumerate(events)]
    directory.joinpath("events.jsonl").write_text("\n".join(lines) + "\n")
    if results:
        content = {
            "schema": 1,
            "run_id": directory.name,
            "environment": {"device": "cpu", "dtype": "float32", "hash": f"{number:064x}"},
            "pruning": {
                "params_before": 100,
                "params_after": 80,
                "achieved_model_ratio": 0.2,
                "layers": [{"layer": i, "heads_before": 4, "heads_after": 2, "density": 1.0} for i in (1, 0)],
            },
            "metrics": [
                {
                    "stage": "pruned",
                    "task": "piqa",
                    "metric": m,
                    "value": value,
                    "stderr": 0.1,
                    "n": 20,
                    "protocol": {"shots": 0},
                }
                for m in ("acc", "acc_norm")
            ],
            "timings": {"load": 1.5, "prune": 2.5},
        }
        directory.joinpath("results.json").write_text(json.dumps(content))
    return directory


@pytest.fixture
def store(home):
    with_store = Store.open(home)
    yield with_store
    with_store.close()


def test_ingesting_a_run_twice_changes_nothing(home, store):
    directory = make_run(home)
    store.ingest(directory)
    once = store.dump()
    store.ingest(directory)
    assert store.dump() == once
    assert [len(once[table]) for table in ("runs", "metrics", "layers", "stages")] == [1, 2, 2, 2]


def test_a_run_is_replaced_when_its_files_change(home, store):
    directory = make_run(home, state="RUNNING", results=False)
    assert store.sync(home) == 1
    assert store.runs().state.tolist() == ["INTERRUPTED"]
    make_run(home, state="COMPLETE", value=0.75)
    assert store.sync(home) == 1
    assert store.runs().state.tolist() == ["COMPLETE"]
    assert store.metrics([directory.name]).value.tolist() == [0.75, 0.75]
    assert store.sync(home) == 0


def test_reindex_gives_the_same_content_as_following_the_changes(home, store):
    for number, state in enumerate(["COMPLETE", "FAILED", "CANCELLED", "RUNNING", "COMPLETE"]):
        directory = make_run(home, number, state="RUNNING", results=False)
        store.ingest(directory)
        make_run(home, number, state=state, results=state == "COMPLETE")
        store.ingest(directory)
    store.sync(home)
    followed = store.dump()
    assert len(followed["runs"]) == 5
    assert store.reindex(home) == 5
    assert store.dump() == followed


def test_reindex_makes_a_deleted_database_anew_with_equal_content(home):
    for number in range(3):
        make_run(home, number)
    store = Store.open(home)
    before = store.dump()
    store.close()
    for file in home.glob("results.duckdb*"):
        file.unlink()
    assert reindex(home) == 3
    again = Store.open(home)
    assert again.dump() == before
    again.close()


def test_a_deleted_run_leaves_the_store(home, store):
    first, second = make_run(home, 1), make_run(home, 2)
    store.sync(home)
    shutil.rmtree(first)
    store.sync(home)
    assert store.runs().id.tolist() == [second.name]
    assert store.metrics([first.name]).empty
    assert store.layers([first.name]).empty


def test_changes_made_while_no_app_ran_are_found_when_the_store_opens(home):
    Store.open(home).close()
    make_run(home, 1)
    store = Store.open(home)
    assert len(store.runs()) == 1
    store.close()


def test_committed_rows_survive_a_kill(home):
    make_run(home, 1)
    code = (
        "import os, signal, pathlib\n"
        "from core.storage.store import Store\n"
        f"store = Store.open(pathlib.Path({str(home)!r}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    store = Store.open(home)
    assert store.notice == ""
    assert len(store.runs()) == 1
    store.close()


@pytest.mark.parametrize("damage", ["rubbish", "cut", "empty", "middle"])
def test_a_damaged_database_is_moved_aside_and_made_anew(home, damage):
    for number in range(40):
        make_run(home, number)
    store = Store.open(home)
    before = store.dump()
    store.close()
    file = home / "results.duckdb"
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(
        {
            "rubbish": b"not a database" * 500,
            "cut": content[: half // 4096 * 4096],
            "empty": b"",
            "middle": content[:12288] + bytes(b ^ 0xFF for b in content[12288:]),
        }[damage]
    )
    store = Store.open(home)
    assert store.dump() == before
    assert "made anew" in store.notice
    assert not store.read_only
    assert len(list(home.glob("results.duckdb.damaged-*"))) == 1
    store.close()


def test_while_another_process_has_the_file_the_same_view_is_built_in_memory(home):
    make_run(home, 1)
    code = (
        "import pathlib, sys\n"
        "from core.storage.store import Store\n"
        f"store = Store.open(pathlib.Path({str(home)!r}))\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"open\n"
        store = Store.open(home)
        assert store.read_only
        assert len(store.runs()) == 1
        make_run(home, 2)
        store.sync(home)
        assert len(store.runs()) == 2
        store.close()
        with pytest.raises(StoreError, match="Another process"):
            reindex(home)
    finally:
        other.communicate()


def test_many_threads_read_while_one_writes(home, store):
    for number in range(10):
        make_run(home, number)
    store.sync(home)
    stop = threading.Event()
    ids = store.runs().id.tolist()

    def read(_):
        counts = set()
        while not stop.is_set():
            counts.add((len(store.runs()), len(store.metrics(ids))))
        return counts

    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(read, i) for i in range(8)]
        for round_ in range(20):
            store.ingest(make_run(home, round_ % 10, value=round_ / 20))
        stop.set()
        seen = set().union(*(reader.result(timeout=60) for reader in readers))
    assert seen == {(10, 20)}


def test_folders_that_are_no_run_ids_and_links_are_left_out(home, tmp_path):
    inside = make_run(home, 1)
    outside = make_run(tmp_path / "elsewhere", 2)
    (home / "runs" / "notes").mkdir()
    (home / "runs" / "..hidden").mkdir()
    (home / "runs" / outside.name).symlink_to(outside)
    assert run_directories(home) == [inside]


def test_hostile_text_is_stored_as_text(home, store):
    name = "x'); DROP TABLE runs; -- <b>\u202e 50 %"
    make_run(home, name=name)
    store.sync(home)
    assert store.runs().name.tolist() == [name]
    assert store.runs("name = ?", [name]).name.tolist() == [name]
    assert store.metrics(["' OR '1'='1"]).empty


def test_runs_come_newest_first_with_times_in_utc(home, store):
    for number in range(3):
        make_run(home, number)
    store.sync(home)
    frame = store.runs()
    assert frame.created.is_monotonic_decreasing
    assert str(frame.created.dt.tz) == "UTC"
    assert store.layers(frame.id).groupby("run_id").layer.apply(list).tolist() == [[0, 1]] * 3
    assert store.stages(frame.id[:1]).stage.tolist() == ["load", "prune"]


def test_an_empty_store_answers_with_empty_tables(store):
    assert store.runs().empty
    assert store.metrics([]).empty
    assert "protocol_key" in store.metrics([]).columns


def test_a_store_that_cannot_be_written_stays_behind_says_so_and_catches_up(home, store, monkeypatch):
    def full(*_):
        raise duckdb.IOException("Could not write file: No space left on device")

    make_run(home)
    assert store.sync(home) == 1
    make_run(home, number=1)
    with monkeypatch.context() as patch:
        patch.setattr("core.storage.store._insert", full)
        assert store.sync(home) == 0
    assert "No space left on device" in store.behind
    assert len(store.runs()) == 1
    assert store.sync(home) == 1
    assert store.behind == ""
    assert len(store.runs()) == 2
