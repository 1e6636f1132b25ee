"""The worker's manners: while a run measures speed, on whatever device of this machine, no step begins.

An answer on the CPU takes from a GPU's measurement the cores that feed it, and one on a GPU takes a core from the
CPU's: so every device is looked at, not only the worker's own.
"""

from collections.abc import Sequence

from core import device as hardware
from core.device_use import Use


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

    def leave(self) -> None:
        """A pause: others may measure."""
        for use in self._uses:
            use.leave()
