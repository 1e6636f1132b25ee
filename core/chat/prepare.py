"""Before people watch: models loaded and warmed one after the other, memory counted first."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from core.chat.protocol import Failed, Piece, Sampling
from core.errors import EspalierError

if TYPE_CHECKING:
    from core.chat.client import ChatClient

WARM = (("user", "Say hello."),)
RESERVE = {"cpu": 256 << 20, "cuda": 512 << 20}
"""Bytes for conversations beside the weights, as the worker keeps them free."""


@dataclass(frozen=True)
class Room:
    """Bytes of weights that are still to be loaded, and what the device has for them.

    `unknown` are names of models whose weights cannot be counted: `need` is without them.
    """

    need: int
    free: int
    unknown: tuple[str, ...] = ()

    @property
    def enough(self) -> bool:
        return self.need <= self.free


@dataclass(frozen=True)
class Prepared:
    """One model: ready after `load_seconds`, its first token after `first_seconds`, or the reason why not."""

    title: str
    memory_bytes: int = 0
    load_seconds: float = 0.0
    first_seconds: float = 0.0
    problem: str = ""


def room(client: "ChatClient", needed: dict[str, int], free: int, device: str, unknown: tuple[str, ...] = ()) -> Room:
    """Whether models of these weight bytes (by key) fit beside each other on a device with `free` bytes.

    Those that are loaded there need nothing more, and what else the worker holds there leaves when room is needed.
    """
    report = client.status().report
    held = {model.key: model.memory_bytes for model in report.models if model.device == device} if report else {}
    others = sum(size for key, size in held.items() if key not in needed)
    need = sum(size for key, size in needed.items() if key not in held)
    return Room(need, free + others - RESERVE["cpu" if device == "cpu" else "cuda"], unknown)


def prepare(
    client: "ChatClient", models: Sequence[tuple[str, str]], said: Callable[[str], None] = lambda _: None
) -> Iterator[Prepared]:
    """Load and warm models given as (key, title), one entry a model as it is ready; `said` hears what is waited for."""
    for key, title in models:
        try:
            info = client.load(key, title, said)
            first = _warm(client, key)
        except EspalierError as error:
            yield Prepared(title, problem=str(error))
        else:
            yield Prepared(title, info.memory_bytes, info.load_seconds, first)


def _warm(client: "ChatClient", key: str) -> float:
    """Seconds to the first token of a short answer."""
    begun = monotonic()
    first = 0.0
    with closing(client.generate(key, WARM, Sampling(max_tokens=4))) as events:
        for event in events:
            if isinstance(event, Piece) and not first:
                first = monotonic() - begun
            if isinstance(event, Failed):
                raise EspalierError(event.message, event.advice)
    return first or monotonic() - begun
