"""The run directory: ids, atomic files, torn lines, and who wins where two writers disagree."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError, QueueError
from core.experiment import Experiment
from core.jobs.events import EventWriter
from core.jobs.rundir import RunDirectory, is_run_id, list_runs, new_run_id, to_json, write_atomic
from core.jobs.states import State
from core.storage.store import Store


@pytest.fixture
def directory(home: Path) -> RunDirectory:
    run = RunDirectory(home / "runs" / "20261123-201854-1a2b3c4d-x7y9")
    run.write_experiment(Experiment.parse({"name": "α", "pruning": None}))
    return run


def test_ids_tell_time_and_hash_and_are_safe_as_names() -> None:
    now = datetime(2026, 11, 23, 20, 18, 54, tzinfo=UTC)
    one, two = new_run_id("ABCDEF0123456789", now), new_run_id("ABCDEF0123456789", now)
    assert one.startswith("20261123-201854-abcdef01-")
    assert is_run_id(one)
    assert one != two


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/b", "", "20261123-201854-1a2b3c4d-x7y9/..", "20261123-201854-1a2b3c4d-X7Y9"]
)
def test_what_is_no_id_never_becomes_a_path(home: Path, name: str) -> None:
    with pytest.raises(InputError, match="not the id of a run"):
        RunDirectory.of(home / "runs", name)


def test_the_experiment_survives_the_directory(directory: RunDirectory) -> None:
    assert directory.experiment().name == "α"
    with pytest.raises(InputError, match=r"no experiment\.yaml"):
        RunDirectory(directory.path.parent).experiment()


def test_an_atomic_write_that_fails_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / "state.json"
    write_atomic(path, "old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    )
)
def test_json_files_read_back_to_the_same_values(value: object) -> None:
    def plain(item: object) -> object:
        if isinstance(item, float) and not -1e400 < item < 1e400:
            return None
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        return [plain(inner) for inner in item] if isinstance(item, list) else item

    assert json.loads(to_json({"v": value})) == {"v": plain(value)}


def test_stages_come_back_in_the_order_in_which_they_finished(directory: RunDirectory) -> None:
    names = ["load", "evaluate.task.a/b", "evaluate.task.ü ..", "save"]
    for name in names:
        assert directory.stage(name) is None
        directory.write_stage(name, {"seconds": 1.5})
    assert sorted(directory.stages()) == sorted(names)
    assert directory.stages()["evaluate.task.a/b"]["seconds"] == 1.5
    assert all(path.parent == directory.stages_dir for path in directory.path.rglob("*evaluate*"))
    with pytest.raises(InputError, match="name of a stage"):
        directory.write_stage("x" * 300, {})


def test_a_torn_last_line_is_skipped_and_does_not_hide_what_follows(directory: RunDirectory) -> None:
    with EventWriter(directory.events_file) as events:
        events.state(State.RUNNING)
    with directory.events_file.open("ab") as file:
        file.write(b'{"v": 1, "seq": 2, "attempt": 1, "kind": "state", "state": "FAI')
    assert [event["seq"] for event in directory.events()] == [1]
    assert directory.recorded().state is State.RUNNING
    with EventWriter(directory.events_file) as events:
        events.state(State.RUNNING)
    assert [(event["seq"], event["attempt"]) for event in directory.events()] == [(1, 1), (2, 2)]
    assert directory.events(after=1)[0]["seq"] == 2


def test_status_reads_only_what_was_added(directory: RunDirectory) -> None:
    with EventWriter(directory.events_file) as events:
        events.state(State.RUNNING)
        for i in range(50):
            events.warning(str(i))
        assert directory.recorded().attempt == 1
        before = directory.events_file.read_bytes()
        directory.events_file.write_bytes(b" " * (len(before) - 1) + b"\n")  # what was read is not read again
        events.stage("load", "started")
        assert directory.recorded().stage == "load"
        assert directory.recorded().state is State.RUNNING


def test_a_file_that_was_replaced_is_read_anew(directory: RunDirectory) -> None:
    with EventWriter(directory.events_file) as events:
        events.state(State.RUNNING)
        events.state(State.COMPLETE)
    assert directory.recorded().state is State.COMPLETE
    directory.events_file.unlink()
    assert directory.recorded().state is State.WAITING
    with EventWriter(directory.events_file) as events:
        events.state(State.RUNNING)
    assert directory.recorded().state is State.RUNNING


def test_running_is_said_only_while_the_worker_holds_its_lock(directory: RunDirectory) -> None:
    lock = directory.lock()
    with EventWriter(directory.events_file) as events:
        events.state(State.RUNNING, pid=1)
        assert directory.worker_lives()
        assert directory.status().state is State.RUNNING
        with pytest.raises(QueueError, match=r"already has a worker \(process 1\)"):
            RunDirectory(directory.path).lock()
        lock.release()
        assert not directory.worker_lives()
        assert directory.status().state is State.INTERRUPTED


def test_the_worker_wins_over_the_supervisor_within_an_attempt(directory: RunDirectory) -> None:
    directory.write_state(State.WAITING, hash="ab")
    with EventWriter(directory.events_file) as events:
        events.state(State.RUNNING)
    directory.write_state(State.INTERRUPTED, attempt=1, reason="gone")
    assert (directory.status().state, directory.status().reason) == (State.INTERRUPTED, "gone")
    directory.write_state(State.WAITING, attempt=2)
    assert (directory.status().state, directory.status().attempt) == (State.WAITING, 2)
    with EventWriter(directory.events_file, attempt=2) as events:
        events.state(State.RUNNING)
        events.state(State.COMPLETE)
    assert directory.status().state is State.COMPLETE
    assert directory.status().hash == "ab"
    with pytest.raises(QueueError, match="never changes"):
        directory.write_state(State.CANCELLED, attempt=2)


def test_state_json_keeps_what_it_knew(directory: RunDirectory) -> None:
    directory.write_state(State.WAITING, hash="ab", resolved={"device": "cpu"})
    created = directory.status().created
    directory.write_state(State.CANCELLED, reason="Cancelled.")
    state = directory.read_state()
    assert state is not None
    assert (state["hash"], state["resolved"], state["created"]) == ("ab", {"device": "cpu"}, created)


def test_ended_runs_are_told_from_the_ends_of_their_files(directory: RunDirectory) -> None:
    assert not directory.ended()
    with EventWriter(directory.events_file) as events:
        events.state(State.RUNNING)
        for i in range(200):
            events.warning("x" * 100 + str(i))
        assert not directory.ended()
        events.state(State.FAILED)
    assert directory.ended()


def test_the_log_tail_shows_what_a_terminal_would(directory: RunDirectory) -> None:
    assert directory.log_tail() == ""
    directory.log_file.write_bytes(b"one\n" * 100 + b"10%\r50%\r100%\n\x1b[31mred\x1b[0m \xff\n")
    assert directory.log_tail(3).splitlines() == ["one", "100%", "red �"]


def test_runs_are_listed_newest_first_and_strangers_left_out(directory: RunDirectory) -> None:
    later = RunDirectory(directory.path.parent / "20261124-000000-1a2b3c4d-aaaa")
    later.write_experiment(directory.experiment())
    (directory.path.parent / "20261125-000000-1a2b3c4d-bbbb").mkdir()
    (directory.path.parent / "notes").mkdir()
    assert [run.id for run in list_runs(directory.path.parent)] == [later.id, directory.id]
    assert list(list_runs(directory.path / "nothing")) == []


def test_a_folder_whose_name_is_no_time_is_a_run_all_the_same(home: Path) -> None:
    """One such folder must not keep the whole store from being opened."""
    directory = RunDirectory(home / "runs" / "20261399-999999-0a1b2c3d-aaaa")
    directory.write_experiment(Experiment())
    assert directory.status().created is None
    store = Store.open(home)
    assert list(store.runs()["id"]) == [directory.id]
    store.close()
