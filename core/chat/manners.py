"""The worker's manners: while a run measures speed, on whatever device of this machine, no step begins.

An answer on the CPU takes from a GPU's measurement the cores that feed it, and one on a GPU takes a core from the
CPU's: so every device is looked at, not only the worker's own.
"""

import time
from collections.abc import Callable, Sequence

from core import device as hardware
from core.device_use import POLL_S, Use


class Manners:
    """Not for several threads at once."""

    def __init__(self, uses: Sequence[Use]) -> None:
        self._uses = list(uses)

    @classmethod
    def of_machine(cls, device: str) -> "Manners":
        """For a worker on `device`, beside all others."""
        others = [info.key for info in hardware.devices() if info.key != device]
        return cls([Use(name) for name in (device, *others)])

    def enter(self) -> bool:
        """Begin a step; False, and nothing is taken, while somebody measures."""
        for entered, use in enumerate(self._uses):
            if not use.enter():
                for earlier in self._uses[:entered]:
                    earlier.leave()
                return False
        return True

    def pass_by(self, tick: Callable[[], None]) -> None:
        """Between two steps: go on at once, or leave and wait until nobody measures.

        `tick` is called while it waits and may raise; nothing is taken then.
        """
        if any(use.closed() for use in self._uses):
            self.leave()
        while not self.enter():
            tick()
            time.sleep(POLL_S)

    def leave(self) -> None:
        """A pause: others may measure."""
        for use in self._uses:
            use.leave()
