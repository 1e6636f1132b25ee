"""The models in memory, and who leaves when memory is short: the least recently used one, before the next is loaded.

A model that is answering never leaves; a load that needs its room waits for it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.errors import Cancelled, OutOfMemoryError


@dataclass
class Item:
    """A loaded model. `users` answers are being made with it now; `leaving`: it goes as soon as there are none."""

    key: str
    title: str
    size: int
    model: Any
    users: int = 0
    leaving: bool = False


class Shelf:
    """Thread-safe. Sizes in bytes.

    `free()` is the room on the device now; `reclaim()` gives the room of dropped models back to it; `limit`, if any,
    bounds the sum of the models' sizes; `left(item, reason)` hears of each model that went.
    """

    def __init__(
        self,
        free: Callable[[], int],
        reclaim: Callable[[], None],
        left: Callable[[str, Item, str], None],
        limit: int | None = None,
    ) -> None:
        self._free, self._reclaim, self._left, self._limit = free, reclaim, left, limit
        self._items: OrderedDict[str, Item] = OrderedDict()  # least recently used first
        self._changed = threading.Condition(threading.RLock())

    def items(self) -> list[Item]:
        """What is held, least recently used first."""
        with self._changed:
            return list(self._items.values())

    def room(self) -> int:
        """Bytes that a further model may take."""
        with self._changed:
            free = self._free()
            if self._limit is None:
                return free
            return min(free, self._limit - sum(item.size for item in self._items.values()))

    def take(self, key: str) -> Item | None:
        """The model, now in use until `give_back`; None if it is not held."""
        with self._changed:
            item = self._items.get(key)
            if item is None:
                return None
            item.users += 1
            item.leaving = False
            self._items.move_to_end(key)
            return item

    def give_back(self, item: Item) -> None:
        """One user less."""
        with self._changed:
            item.users -= 1
            if item.users == 0 and item.leaving:
                self._drop(item, "", "it was unloaded")
            self._changed.notify_all()

    def put(self, key: str, title: str, size: int, model: Any) -> Item:
        """Hold a model that was just loaded, in use until `give_back`."""
        with self._changed:
            item = self._items[key] = Item(key, title, size, model, users=1)
            return item

    def unload(self, key: str, request: str) -> None:
        """Let a model go: now, or when its last answer ends."""
        with self._changed:
            item = self._items.get(key)
            if item is None:
                return
            if item.users:
                item.leaving = True
            else:
                self._drop(item, request, "it was unloaded")

    def make_room(
        self, need: int, request: str, wait: Callable[[str], bool], mine: frozenset[str] = frozenset()
    ) -> None:
        """Return once `need` bytes are free; models leave for it, least recently used first.

        `wait(reason)` is called while busy models are waited for; it answers whether to go on. `mine` are keys that the
        request itself holds: they are not waited for. Raises Cancelled if `wait` says so, and OutOfMemoryError where
        the room would not do even if every other model left.
        """
        with self._changed:
            while (room := self.room()) < need:
                idle = next((item for item in self._items.values() if not item.users), None)
                if idle is not None:
                    self._drop(idle, request, "its room is needed")
                elif self._items.keys() - mine:
                    names = ", ".join(item.title for item in self._items.values())
                    if not wait(f"waiting for memory: {names} is still answering"):
                        raise Cancelled
                    self._changed.wait(timeout=0.2)
                else:
                    raise OutOfMemoryError(
                        f"The model needs {need / 1e9:.2f} GB, but {max(room, 0) / 1e9:.2f} GB are free.",
                        "End other programs, choose a smaller model, or one in bfloat16.",
                    )

    def _drop(self, item: Item, request: str, reason: str) -> None:
        del self._items[item.key]
        item.model = None
        self._reclaim()
        self._left(request, item, reason)
        self._changed.notify_all()
