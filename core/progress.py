"""How long work says where it stands, and how it is stopped.

A `Progress` is called with what is done, what there is in total, and the unit, at least every half second where the
work allows. The call may raise `core.errors.Cancelled`; whoever calls it lets that through.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

Progress = Callable[[float, float, str], None]
_Result = TypeVar("_Result")


def silent(done: float, total: float, unit: str) -> None:
    """A Progress that tells nobody."""


def while_it_lasts(call: Callable[[], _Result], tick: Callable[[], None], every: float = 1.0) -> _Result:
    """The result of a call that tells nothing itself, such as a download; `tick` is called every so many seconds.

    The call runs in a thread of its own. Raises what it raises; what `tick` raises (Cancelled) leaves it to itself,
    and it ends with the process.
    """
    results: list[_Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            errors.append(error)

    thread = threading.Thread(target=work, name="while-it-lasts", daemon=True)
    thread.start()
    thread.join(every)
    while thread.is_alive():
        tick()
        thread.join(every)
    if errors:
        raise errors[0]
    return results[0]
