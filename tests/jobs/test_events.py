"""events.jsonl: what is written, how often, and what a full disk does to it."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from core.jobs import events as module
from core.jobs.events import EventWriter
from core.jobs.states import State


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_has_its_head(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.state(State.RUNNING, pid=7)
        events.metric({"stage": "pruned", "task": "piqa", "metric": "acc", "value": float("nan")})
    first, second = lines(path)
    assert {"v": 1, "seq": 1, "attempt": 1, "kind": "state", "state": "RUNNING", "pid": 7}.items() <= first.items()
    assert first["time"].endswith("Z")
    assert len(first["time"]) == len("2026-11-23T20:18:54.123Z")
    assert (second["seq"], second["value"]) == (2, None)


def test_progress_is_thinned_but_first_and_last_are_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        for done in range(1001):
            events.progress("prune", done, 1000, "layers")
    found = lines(path)
    assert [event["done"] for event in found] == [0, 1000]
    assert found[-1]["eta_s"] == 0


def test_progress_that_ends_early_is_written_before_the_next_stage(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        for done in range(8):
            events.progress("prune", done, 1000, "layers")
        events.stage("prune", "finished", seconds=1.0)
    assert [(event["kind"], event.get("done")) for event in lines(path)] == [
        ("progress", 0),
        ("progress", 7),
        ("stage", None),
    ]


def test_progress_comes_at_least_every_half_second_while_something_moves(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    begun = time.monotonic()
    with EventWriter(path) as events:
        while (spent := time.monotonic() - begun) < 2.0:
            events.progress("evaluate", spent, 4.0, "s", "piqa")
            time.sleep(0.01)
    found = lines(path)
    assert 4 <= len(found) <= 6
    middle = found[2]
    assert middle["task"] == "piqa"
    assert middle["eta_s"] == pytest.approx(4.0 - middle["done"], abs=0.4)


def test_the_time_left_counts_down_between_steps_and_is_not_told_once_overdue() -> None:
    series = module._Series("save", None, 3, "steps", 0)
    begun = series.begun
    series.reach(1, begun + 10)
    assert series.eta(begun + 10) == pytest.approx(20)
    assert series.eta(begun + 15) == pytest.approx(15)
    assert series.eta(begun + 40) is None
    series.reach(3, begun + 50)
    assert series.eta(begun + 50) == 0


def test_a_new_task_is_a_new_series(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        for task in ("piqa", "boolq"):
            for done in range(3):
                events.progress("evaluate", done, 2, "documents", task)
    assert [(event["task"], event["done"]) for event in lines(path)] == [
        ("piqa", 0),
        ("piqa", 2),
        ("boolq", 0),
        ("boolq", 2),
    ]


def test_nothing_follows_a_final_state(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.state(State.RUNNING)
        events.state(State.COMPLETE)
        events.warning("too late")
        events.state(State.CANCELLED)
    assert [event.get("state") for event in lines(path)] == ["RUNNING", "COMPLETE"]


def test_many_threads_write_whole_lines_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        threads = [threading.Thread(target=lambda: [events.warning("x" * 300) for _ in range(40)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [event["seq"] for event in lines(path)] == list(range(1, 321))


def test_the_heartbeat_tells_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_EVERY_S", 0.05)
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.start_heartbeat()
        time.sleep(0.5)
    found = lines(path)
    assert {event["kind"] for event in found} == {"heartbeat"}
    assert all(event["rss_bytes"] > 10_000_000 for event in found)


def test_a_write_cut_short_by_a_full_disk_is_an_error_and_the_next_line_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.warning("before")
        real = os.write
        monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:20]))
        with pytest.raises(OSError, match="disk is full"):
            events.warning("lost")
        monkeypatch.setattr(os, "write", real)
        events.warning("after")
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [(json.loads(line)["seq"], json.loads(line)["text"]) for line in whole] == [(1, "before"), (2, "after")]


def test_a_listener_hears_what_is_written(tmp_path: Path) -> None:
    heard: list[str] = []
    with EventWriter(tmp_path / "events.jsonl", listener=lambda event: heard.append(event["kind"])) as events:
        events.stage("load", "started")
        events.progress("load", 1, 2, "steps")
    assert heard == ["stage", "progress"]
