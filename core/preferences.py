"""What people set for a home, kept in its settings.json: small, read whenever it is asked for. The environment wins."""

import threading
from pathlib import Path
from typing import Any

from core import settings
from core.errors import InputError
from core.jobs.failures import full_disk_told
from core.jobs.rundir import read_json, to_json, write_atomic

FILE = "settings.json"
_lock = threading.Lock()


class Preferences:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    def __init__(self, home: Path) -> None:
        self._file = home / FILE

    def price_per_hour(self) -> float | None:
        """What an hour of this machine costs, in any currency; None where nobody said."""
        price = settings.price_per_hour()
        if price is not None:
            return price
        kept = self.read().get("price_per_hour")
        known = isinstance(kept, int | float) and not isinstance(kept, bool) and 0 <= kept < float("inf")
        return float(kept) if known else None  # type: ignore[arg-type]

    def set_price_per_hour(self, price: float | None) -> None:
        """Keep the price; None forgets it. InputError for what is no price."""
        if price is not None and not 0 <= price < float("inf"):
            raise InputError(f"{price} is no price an hour.", "Give a number that is not negative.")
        self.write(price_per_hour=price)

    def read(self) -> dict[str, Any]:
        """Everything that is set; a file that is missing or damaged sets nothing."""
        return read_json(self._file) or {}

    @full_disk_told()
    def write(self, **changes: Any) -> None:
        """Set some of it; None forgets."""
        with _lock:
            kept = {**self.read(), "v": 1, **changes}
            write_atomic(self._file, to_json({name: value for name, value in kept.items() if value is not None}))
