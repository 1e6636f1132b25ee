"""How long work says where it stands, and how it is stopped.

A `Progress` is called with what is done, what there is in total, and the unit, at least every half second where the
work allows. The call may raise `core.errors.Cancelled`; whoever calls it lets that through.
"""

from collections.abc import Callable

Progress = Callable[[float, float, str], None]


def silent(done: float, total: float, unit: str) -> None:
    """A Progress that tells nobody."""
