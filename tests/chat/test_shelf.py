"""Who leaves when memory is short. Sizes are numbers here; tests/chat/test_client.py does it with real models."""

import threading
from collections.abc import Callable

import pytest

from core.chat.shelf import Item, Shelf
from core.errors import Cancelled, OutOfMemoryError


class Device:
    """A device of `total` bytes; what is dropped returns to it with `reclaim` only."""

    def __init__(self, total: int) -> None:
        self.total, self.held, self.freed_on_reclaim = total, 0, 0
        self.log: list[str] = []

    def shelf(self, limit: int | None = None) -> Shelf:
        return Shelf(lambda: self.total - self.held, self._reclaim, self._left, limit)

    def _reclaim(self) -> None:
        self.log.append("reclaimed")
        self.held -= self.freed_on_reclaim

    def _left(self, request: str, item: Item, reason: str) -> None:
        self.log.append(f"{item.key} left")

    def load(self, shelf: Shelf, key: str, size: int, wait: Callable[[str], bool] = lambda _: False) -> None:
        self.freed_on_reclaim = size  # the tests use one size per device
        shelf.make_room(size, "r", wait)
        self.log.append(f"{key} loads")
        self.held += size
        shelf.give_back(shelf.put(key, key, size, object()))


def test_the_least_recently_used_model_leaves_before_the_next_one_loads() -> None:
    device = Device(25)
    shelf = device.shelf()
    device.load(shelf, "a", 10)
    device.load(shelf, "b", 10)
    item = shelf.take("a")  # a is now the more recent one
    assert item is not None
    shelf.give_back(item)
    device.load(shelf, "c", 10)
    assert device.log == ["a loads", "b loads", "reclaimed", "b left", "c loads"]
    assert [item.key for item in shelf.items()] == ["a", "c"]


def test_only_as_many_models_leave_as_are_needed() -> None:
    device = Device(40)
    shelf = device.shelf()
    for key in "abc":
        device.load(shelf, key, 10)
    device.freed_on_reclaim = 10
    shelf.make_room(20, "r", lambda _: False)
    assert [item.key for item in shelf.items()] == ["b", "c"]


def test_a_limit_counts_the_sizes_of_what_is_held() -> None:
    device = Device(10**9)
    shelf = device.shelf(limit=25)
    for key in "abc":
        device.load(shelf, key, 10)
    assert [item.key for item in shelf.items()] == ["b", "c"]


def test_a_dropped_model_is_not_referenced_any_more() -> None:
    shelf = Device(10).shelf()
    item = shelf.put("a", "a", 10, object())
    shelf.give_back(item)
    shelf.unload("a", "r")
    assert item.model is None
    assert shelf.take("a") is None


def test_a_model_that_is_answering_stays_until_its_answer_ends_and_the_load_waits() -> None:
    device = Device(10)
    shelf = device.shelf()
    device.freed_on_reclaim = device.held = 10
    busy = shelf.put("a", "Model A", 10, object())
    reasons: list[str] = []
    finished = threading.Event()

    def end_soon(reason: str) -> bool:
        reasons.append(reason)
        if not finished.is_set():
            finished.set()
            threading.Timer(0.05, lambda: shelf.give_back(busy)).start()
        return True

    device.load(shelf, "b", 10, end_soon)
    assert reasons[0] == "waiting for memory: Model A is still answering"
    assert device.log == ["reclaimed", "a left", "b loads"]


def test_waiting_for_memory_can_be_cancelled() -> None:
    shelf = Device(10).shelf(limit=10)
    shelf.put("a", "a", 10, object())
    with pytest.raises(Cancelled):
        shelf.make_room(5, "r", lambda _: False)


def test_a_model_that_cannot_fit_is_refused_with_both_numbers() -> None:
    shelf = Device(2 * 10**9).shelf()
    with pytest.raises(OutOfMemoryError, match=r"needs 3\.00 GB, but 2\.00 GB are free"):
        shelf.make_room(3 * 10**9, "r", lambda _: True)


def test_unloading_a_model_in_use_takes_effect_when_its_last_answer_ends() -> None:
    device = Device(100)
    shelf = device.shelf()
    first = shelf.put("a", "a", 10, object())
    second = shelf.take("a")
    assert second is first
    shelf.unload("a", "r")
    shelf.give_back(first)
    assert [item.key for item in shelf.items()] == ["a"]
    shelf.give_back(first)
    assert shelf.items() == []
