"""Who computes next, and whether several answers compute at the same time.

Shares are of device time: between those who ask (browser sessions), then between the answers of each. Equal shares of
time, not of tokens, so that a pruned model beside the dense one shows its speed.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

MOST = 4
"""Answers that compute at the same time."""
TRIAL_S, TRIAL_TOKENS = 0.6, 24
"""A way of decoding is known once it was tried for so long and for so many tokens, behind its first turn."""
TURN_S = 0.15
"""While both ways are tried they take turns of this length: load from elsewhere meets both."""
WORTH = 1.05
"""Together must be this much faster in sum, else answers take turns: then shares are exact."""


class Sharer(Protocol):
    """Whoever wants the device: `owner` asked for it; `used` is its device time so far, in seconds."""

    @property
    def owner(self) -> str: ...

    used: float


T = TypeVar("T", bound=Sharer)


class Shares:
    """Device time of each owner, in seconds. An owner that comes starts level with who had least."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}

    def enter(self, owner: str) -> None:
        """The owner has something to compute."""
        self._used.setdefault(owner, min(self._used.values(), default=0.0))

    def leave(self, owner: str) -> None:
        """The owner has nothing left to compute."""
        self._used.pop(owner, None)

    def charge(self, owner: str, seconds: float) -> None:
        """The owner used the device."""
        if owner in self._used:
            self._used[owner] += seconds

    def choose(self, waiting: Sequence[T], most: int = 1, slice_s: float = 0.0) -> list[T]:
        """The next `most` of `waiting`: of the owner that had least, the one that had least, and so on.

        `slice_s`: what each chosen one is about to use.
        """
        ahead = dict.fromkeys(self._used, 0.0)
        left = list(waiting)
        chosen: list[T] = []
        while left and len(chosen) < most:
            following = min(left, key=lambda each: (self._used[each.owner] + ahead[each.owner], each.used))
            left.remove(following)
            chosen.append(following)
            ahead[following.owner] += slice_s
        return chosen


@dataclass
class Rate:
    """Tokens of all answers together, and the seconds they took, but for the first turn.

    The first steps load kernels and make streams: counted, they would speak against the way that is tried first.
    """

    tokens: int = 0
    seconds: float = 0.0
    warming: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """A round made so many tokens in so many seconds."""
        if self.warming < TURN_S:
            self.warming += seconds
            return
        self.tokens += tokens
        self.seconds += seconds

    @property
    def known(self) -> bool:
        return self.seconds >= TRIAL_S and self.tokens >= TRIAL_TOKENS

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Trial:
    """Both ways, tried in turns on the same models."""

    turns: Rate = field(default_factory=Rate)
    together: Rate = field(default_factory=Rate)
    tried: float = 0.0

    @property
    def decided(self) -> bool:
        return self.turns.known and self.together.known

    @property
    def at_once(self) -> bool:
        """Whether the next round is one of all together."""
        if self.decided:
            return self.together.per_second > WORTH * self.turns.per_second
        return int(self.tried / TURN_S) % 2 == 1


class Ways:
    """In turn or together: on a GPU what was measured to be faster in sum, for each set of models; a CPU takes turns.

    One operation of a model fills all cores of a CPU (docs/chat.md has the figures), so nothing is tried there.
    `wanted`: `auto`, `turns` or `together`.
    """

    def __init__(self, device: str, wanted: str = "auto") -> None:
        self._wanted = "turns" if wanted == "auto" and device == "cpu" else wanted
        self._trials: dict[Hashable, Trial] = {}
        self.together = self._wanted == "together"

    def at_once(self, models: frozenset[str]) -> bool:
        """Whether answers of these models compute together in the next round."""
        if self._wanted == "auto":
            self.together = self._trials.setdefault(models, Trial()).at_once
        return self.together

    def note(self, models: frozenset[str], tokens: int, seconds: float, *, together: bool) -> None:
        """A round in which several answers decoded made `tokens` in `seconds`."""
        trial = self._trials.get(models)
        if trial is None or trial.decided:
            return
        (trial.together if together else trial.turns).add(tokens, seconds)
        trial.tried += seconds

    def trial(self, models: frozenset[str]) -> Trial | None:
        """What was measured for these models, if anything was."""
        return self._trials.get(models)
