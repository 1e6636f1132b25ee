"""queue.json: what waits, in which order, and what is being cancelled. Only the supervisor writes it.

`{"v": 1, "paused": false, "order": [ids], "cancelling": [ids], "waits": {id: why}}`. Losing it loses
nothing but the order: each run's own files say that it waits.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import QueueError
from core.jobs.rundir import is_run_id, to_json, write_atomic

_log = logging.getLogger(__name__)


@dataclass
class Queue:
    """The queue in memory. `cancelling` are runs whose worker was asked to stop and has not ended yet.

    `waits` says why a run waits although its turn has come: for memory, for the disk.
    """

    path: Path
    paused: bool = False
    order: list[str] = field(default_factory=list)
    cancelling: list[str] = field(default_factory=list)
    waits: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Queue":
        """Read the file; a missing one is an empty queue, a damaged one is moved aside and said in the log."""
        try:
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict):
                raise ValueError("not an object")
        except FileNotFoundError:
            return cls(path)
        except ValueError as error:
            aside = path.with_suffix(".damaged.json")
            path.replace(aside)
            _log.warning(
                "queue.json was damaged (%s): kept as %s; the order is rebuilt from the runs.", error, aside.name
            )
            return cls(path)
        return cls(path, content.get("paused") is True, _ids(content.get("order")), _ids(content.get("cancelling")))

    def write(self) -> None:
        """Write the file, atomically."""
        content = {
            "v": 1,
            "paused": self.paused,
            "order": self.order,
            "cancelling": self.cancelling,
            "waits": self.waits,
        }
        write_atomic(self.path, to_json(content))

    def add(self, run_id: str, *, first: bool = False) -> None:
        """Put a run at the end, or at the head; a run that is in the queue stays where it is."""
        if run_id not in self.order:
            self.order.insert(0 if first else len(self.order), run_id)

    def remove(self, run_id: str) -> bool:
        """Take a run out of the queue and off the list of those being cancelled; whether it was in the queue."""
        waited = run_id in self.order
        self.order = [other for other in self.order if other != run_id]
        self.cancelling = [other for other in self.cancelling if other != run_id]
        self.waits.pop(run_id, None)
        return waited

    def move(self, run_id: str, by: int) -> None:
        """Move a waiting run by that many places, towards the head if negative. QueueError if it does not wait."""
        if run_id not in self.order:
            raise QueueError(f"Run {run_id} is not waiting.", "Only waiting runs can be moved.")
        place = self.order.index(run_id)
        self.order.pop(place)
        self.order.insert(min(max(place + by, 0), len(self.order)), run_id)


def _ids(value: object) -> list[str]:
    items = value if isinstance(value, list) else []
    return list(dict.fromkeys(item for item in items if isinstance(item, str) and is_run_id(item)))
