"""Blind votes counted: how often each model was chosen, and model against model. No torch.

A vote names one answer, a tie, or says that all are bad; the last two count half a win for each side. With p the mean
score of n votes the interval is Wilson's (1927), z = 1.96:

    ( p + z²/2n  ±  z √( p(1 − p)/n + z²/4n² ) ) / ( 1 + z²/n )

Half wins vary less than whole ones, so with ties it is rather too wide. Of two models the exact sign test over the
votes that chose one of them says how surely they differ.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

Z = 1.959963984540054


@dataclass(frozen=True)
class Vote:
    """One vote between `models` (keys, by place); `winner` is one of them, or None for `tie` and `bad`."""

    models: tuple[str, ...]
    titles: tuple[str, ...]
    winner: str | None
    verdict: str


@dataclass(frozen=True)
class Standing:
    """One model over all its votes: `rate` is its mean score, with its 95 % interval."""

    key: str
    title: str
    votes: int
    won: int
    lost: int
    tied: int
    bad: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Duel:
    """Two models over the votes that saw both and decided between them or for neither. `p`: two-sided sign test."""

    first: str
    second: str
    first_title: str
    second_title: str
    won: int
    lost: int
    even: int
    rate: float
    low: float
    high: float
    p: float

    @property
    def votes(self) -> int:
        """How many votes it counts."""
        return self.won + self.lost + self.even


def wilson(score: float, n: int) -> tuple[float, float]:
    """95 % interval of a share from the sum of `n` scores between 0 and 1."""
    if not n:
        return 0.0, 1.0
    p = score / n
    middle = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def sign_test(won: int, lost: int) -> float:
    """Two-sided p-value of `won` against `lost` where each were as likely; 1 without any."""
    n = won + lost
    if not n:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(won, lost) + 1)) / float(2**n)
    return min(1.0, 2 * tail)


def standings(votes: Iterable[Vote]) -> list[Standing]:
    """One entry a model, the most chosen first. Titles are those of the latest vote."""
    counted: dict[str, Counter[str]] = {}
    titles: dict[str, str] = {}
    for vote in votes:
        for key, title in zip(vote.models, vote.titles, strict=True):
            titles[key] = title
            outcome = vote.verdict if vote.winner is None else "won" if vote.winner == key else "lost"
            counted.setdefault(key, Counter())[outcome] += 1
    found = []
    for key, each in counted.items():
        n = each.total()
        score = each["won"] + (each["tie"] + each["bad"]) / 2
        low, high = wilson(score, n)
        found.append(
            Standing(key, titles[key], n, each["won"], each["lost"], each["tie"], each["bad"], score / n, low, high)
        )
    return sorted(found, key=lambda s: (-s.rate, -s.votes, s.title))


def duels(votes: Sequence[Vote]) -> list[Duel]:
    """Model against model, those with most votes first. Of a vote among more than two, the losers tell nothing."""
    counted: dict[tuple[str, str], Counter[str]] = {}
    titles: dict[str, str] = {}
    for vote in votes:
        titles.update(zip(vote.models, vote.titles, strict=True))
        for one, two in combinations(sorted(set(vote.models)), 2):
            if vote.winner is None or vote.winner in (one, two):
                outcome = "even" if vote.winner is None else "won" if vote.winner == one else "lost"
                counted.setdefault((one, two), Counter())[outcome] += 1
    found = []
    for (one, two), each in counted.items():
        won, lost, even = each["won"], each["lost"], each["even"]
        low, high = wilson(won + even / 2, each.total())
        rate = (won + even / 2) / each.total()
        p = sign_test(won, lost)
        found.append(Duel(one, two, titles[one], titles[two], won, lost, even, rate, low, high, p))
    return sorted(found, key=lambda duel: (-duel.votes, duel.first_title, duel.second_title))
