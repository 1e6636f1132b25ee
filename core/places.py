"""Where the queue's runs go, this machine or a cluster: a room of the service (core/service.py)."""

from collections.abc import Callable

from core import settings
from core.errors import QueueError
from core.jobs.cluster import ClusterView, check_address
from core.jobs.supervisor import Supervisor
from core.preferences import Preferences

KEY = "ray_address"


class Places:
    """Safe to call from many threads at once; nothing here waits for the cluster."""

    def __init__(self, preferences: Preferences, owner: Callable[[], Supervisor]) -> None:
        self._preferences = preferences
        self._owner = owner

    @property
    def fixed(self) -> bool:
        """Whether the environment says where runs go, so that a page cannot change it."""
        return bool(settings.ray_address())

    def address(self) -> str:
        """Dashboard of the cluster that new runs go to; '' for this machine."""
        kept = self._preferences.read().get(KEY)
        return settings.ray_address() or (kept if isinstance(kept, str) else "")

    def cluster(self) -> ClusterView | None:
        """The cluster now; None where runs stay on this machine, or where another process owns the queue."""
        try:
            return self._owner().cluster()
        except QueueError:
            return None

    def set_address(self, address: str) -> None:
        """Send new runs there, or with '' to this machine; those that work go on where they are. InputError if it is
        no dashboard's address, QueueError where the environment or another process decides."""
        self._owner()
        if self.fixed:
            raise QueueError("ESPALIER_RAY_ADDRESS says where runs go.", "Start the app without it to choose here.")
        self._preferences.write(**{KEY: check_address(address) if address.strip() else None})
