"""How many threads an answer computes with, on a CPU that others use too: as many as there are cores left.

Threads of one operation wait for each other at its end. Where a core is taken by another program (a run under way, say)
the whole operation waits for that core's turn: on two busy cores two threads were measured to be slower than one. The
count follows the load of the others, measured between two looks.
"""

import time

import psutil
import torch

INTERVAL = 1.0
"""Seconds between two looks."""


class Threads:
    """Call `adapt` between steps, in the thread that computes."""

    def __init__(self, cores: int | None = None) -> None:
        self._cores = cores or psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
        self._process = psutil.Process()
        self._looked, self._busy, self._own = self._look()
        self.count = self._cores

    def adapt(self) -> None:
        """Set torch's threads to the cores the others leave; does nothing until INTERVAL has passed."""
        if time.monotonic() - self._looked < INTERVAL:
            return
        looked, busy, own = self._look()
        others = max(busy - self._busy - (own - self._own), 0.0) / (looked - self._looked)
        self._looked, self._busy, self._own = looked, busy, own
        wanted = spare(self._cores, others)
        if wanted != self.count:
            self.count = wanted
            torch.set_num_threads(wanted)

    def _look(self) -> tuple[float, float, float]:
        """Now; seconds all cores together were busy; seconds of them that were ours."""
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        mine = self._process.cpu_times()
        return time.monotonic(), busy, mine.user + mine.system


def spare(cores: int, others: float) -> int:
    """Cores left where others keep `others` of them busy on average; at least one."""
    return min(max(cores - round(others), 1), cores)
