"""One process owns a store: the second is told who, sees everything, and takes over when the first is gone."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from core.errors import QueueError
from core.jobs import ownership
from core.jobs.ownership import Owner, owner_of
from core.jobs.supervisor import Supervisor
from core.service import Service
from core.storage.store import Store

OWNER = """
import sys, time
from core.service import Service
service = Service()
print("read only" if service.read_only else "owns", flush=True)
time.sleep(600)
"""


def test_nobody_owns_an_empty_home(home: Path) -> None:
    assert owner_of(home) is None


def test_the_second_is_told_the_firsts_pid_and_takes_over_when_it_is_killed(home: Path, start: Any, until: Any) -> None:
    first = start("-c", OWNER)
    assert first.stdout.readline() == "owns\n"
    second = Service()
    try:
        assert second.read_only
        assert second.status_line().owner == Owner(first.pid)
        assert f"process {first.pid}" in second.status_line().notice
        with pytest.raises(QueueError, match=f"process {first.pid}"):
            second.pause()
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert second.status_line().owner is None
    finally:
        second.close()
    third = Service()
    try:
        assert not third.read_only
        assert not third._store.read_only  # the database is the owner's too
    finally:
        third.close()


def test_of_many_that_begin_at_once_one_owns_the_queue_and_the_database(start: Any) -> None:
    said = OWNER.replace('"owns"', '"owns" if not service._store.read_only else "owns half"')
    begun = [start("-c", said) for _ in range(4)]
    words = sorted(process.stdout.readline().strip() for process in begun)
    assert words == ["owns", "read only", "read only", "read only"]


def test_a_store_that_is_anothers_is_not_opened_even_before_its_owner_opened_it(home: Path) -> None:
    store = Store.open(home, owned=False)
    try:
        assert store.read_only
        assert not (home / "results.duckdb").exists()
    finally:
        store.close()


def test_the_lock_goes_last_so_that_the_next_one_finds_the_database_free(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service()
    at_close: list[Owner | None] = []
    close = service._store.close
    monkeypatch.setattr(service._store, "close", lambda: (at_close.append(owner_of(home)), close()))
    service.close()
    assert at_close == [Owner(os.getpid())]
    assert owner_of(home) is None


def test_a_store_that_does_not_open_leaves_the_home_to_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", broken)
        with pytest.raises(OSError, match="no"):
            Service()
    assert owner_of(home) is None


@pytest.mark.parametrize(
    ("word", "owner"),
    [
        (None, Owner()),
        ("{", Owner()),
        ({"pid": "<b>", "pid_created": 1.0}, Owner()),
        ({"pid": os.getpid(), "pid_created": 1.0}, Owner()),  # a later process with the pid of one that is gone
        ({"pid": 17, "pid_created": 1.0, "host": "elsewhere"}, Owner(17, "elsewhere")),
    ],
)
def test_what_the_owner_left_is_believed_only_while_it_can_be_true(home: Path, word: Any, owner: Owner) -> None:
    boss = Supervisor()
    boss.claim()
    try:
        file = home / "runs" / ".supervisor.json"
        file.unlink()
        if word is not None:
            file.write_text(word if isinstance(word, str) else json.dumps(word))
        assert owner_of(home) == owner
        with pytest.raises(QueueError, match=str(owner)):
            Supervisor().claim()
    finally:
        boss.stop()


def test_looking_at_the_lock_does_not_keep_others_from_it(home: Path) -> None:
    import threading

    (home / "runs").mkdir()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            owner_of(home)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(20):
            lock = ownership.lock_of(home)
            ownership.take(lock, home)
            lock.release()
    finally:
        over.set()
        for looker in lookers:
            looker.join()
