"""queue.json."""

from pathlib import Path

import pytest

from core.errors import QueueError
from core.jobs.queue import Queue

A, B, C = (f"20261123-201854-1a2b3c4d-{letter * 4}" for letter in "abc")


def test_a_queue_comes_back_as_it_was_written(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue.json", paused=True, order=[B, A], cancelling=[C])
    queue.write()
    assert Queue.read(tmp_path / "queue.json") == queue
    assert Queue.read(tmp_path / "none.json") == Queue(tmp_path / "none.json")


def test_a_damaged_file_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "queue.json"
    path.write_text('{"v": 1, "order": [')
    assert Queue.read(path).order == []
    assert (tmp_path / "queue.damaged.json").exists()


def test_what_is_no_id_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "queue.json"
    path.write_text(f'{{"order": ["../x", 3, "{A}", "{A}"], "paused": "yes"}}')
    assert Queue.read(path) == Queue(path, order=[A])


def test_runs_move_within_the_queue(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue.json")
    for run in (A, B, C, A):
        queue.add(run)
    queue.move(C, -1)
    assert queue.order == [A, C, B]
    queue.move(A, 99)
    assert queue.order == [C, B, A]
    queue.move(A, -99)
    assert queue.order == [A, C, B]
    assert queue.remove(C)
    assert not queue.remove(C)
    with pytest.raises(QueueError, match="not waiting"):
        queue.move(C, 1)
