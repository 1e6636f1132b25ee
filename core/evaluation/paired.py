"""Two models on the same documents: what differs, and how surely. Nothing here loads torch or the harness.

Accuracy on shared documents is compared by the documents on which the two disagree. With b documents that only the
first model got right, c that only the second did, n in all:

    difference (second − first)      d = (c − b) / n
    standard error                   √( (b + c) / n − d² ) / √(n − 1)         (sample variance of ±1 and 0, over n)
    exact McNemar test               p = P( |X − m/2| ≥ |c − m/2| ),  X ~ Binomial(m = b + c, 1/2)
    95 % interval                    2.5 % and 97.5 % quantile of d over bootstrap samples of the documents

(McNemar 1947; Efron & Tibshirani 1993, chapter 13.) Several p-values at once are corrected by Holm (1979).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
"""Bootstrap samples of an interval."""
SEED = 0


@dataclass(frozen=True)
class Paired:
    """How the second model's answers compare with the first's, on the same n documents. Shares are fractions.

    `lost`: right before, wrong now. `won`: wrong before, right now. `low`, `high`: 95 % interval of `difference`.
    `p`: two-sided; 1.0 where the models never disagree.
    """

    n: int
    both: int
    lost: int
    won: int
    low: float
    high: float
    p: float

    @property
    def first(self) -> float:
        """Accuracy of the first model."""
        return (self.both + self.lost) / self.n

    @property
    def second(self) -> float:
        """Accuracy of the second model."""
        return (self.both + self.won) / self.n

    @property
    def difference(self) -> float:
        """Second less first."""
        return (self.won - self.lost) / self.n

    @property
    def stderr(self) -> float | None:
        """Standard error of `difference`; None for a single document."""
        return difference_stderr(self.n, self.lost, self.won)


@dataclass(frozen=True)
class PairedMean:
    """The difference of two models' means over several tasks, each task counting alike."""

    tasks: int
    first: float
    second: float
    stderr: float | None
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        """Second less first."""
        return self.second - self.first


def difference_stderr(n: int, lost: int, won: int) -> float | None:
    """Standard error of (won − lost) / n over n documents; None for fewer than two."""
    if n < 2:
        return None
    mean = (won - lost) / n
    return math.sqrt(max((won + lost) / n - mean**2, 0.0) / (n - 1))


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p of the exact McNemar test: that the documents on which two models disagree fall so unevenly by luck.

    1.0 where they never disagree.
    """
    if lost + won == 0:
        return 1.0
    from scipy.special import bdtr  # slow to import, and wanted only here

    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))  # both tails of a fair coin are alike


def compare(n: int, both: int, lost: int, won: int, *, draws: int = DRAWS, seed: int = SEED) -> Paired:
    """Compare two models by the counts of documents that both, only the first, only the second got right.

    Drawing n documents with replacement and counting is the same as drawing (lost, won, rest) from a multinomial
    distribution, which is what is done here. ValueError for counts that do not fit.
    """
    if n < 1 or min(both, lost, won) < 0 or both + lost + won > n:
        raise ValueError(f"of {n} documents, {both} right for both, {lost} lost and {won} won do not fit")
    low, high = _quantiles(_differences(n, lost, won, draws, np.random.default_rng(seed)))
    return Paired(n, both, lost, won, low, high, mcnemar(lost, won))


def mean_of(pairs: Sequence[Paired], *, draws: int = DRAWS, seed: int = SEED) -> PairedMean:
    """Mean difference over tasks: each task's documents are drawn on their own, and the mean taken over tasks.

    `stderr` = √(Σ se²) / tasks; p is that of difference / stderr under a normal distribution. ValueError for no task.
    """
    if not pairs:
        raise ValueError("there is no task to take the mean over")
    generator = np.random.default_rng(seed)
    drawn = np.mean([_differences(pair.n, pair.lost, pair.won, draws, generator) for pair in pairs], axis=0)
    low, high = _quantiles(drawn)
    count = len(pairs)
    first = math.fsum(pair.first for pair in pairs) / count
    second = math.fsum(pair.second for pair in pairs) / count
    errors = [pair.stderr for pair in pairs]
    stderr = None if None in errors else math.sqrt(math.fsum((error or 0.0) ** 2 for error in errors)) / count
    return PairedMean(count, first, second, stderr, low, high, normal_p(second - first, stderr))


def compare_perplexity(
    first: Sequence[float], second: Sequence[float], *, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float]:
    """95 % interval of the ratio second / first of two perplexities, from their windows' mean NLL in nats.

    ratio = exp( mean(second − first) ); the same windows are drawn for both. ValueError for unequal or no windows.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} windows do not pair")
    low, high = bootstrap_mean([b - a for a, b in zip(first, second, strict=True)], draws=draws, seed=seed)
    return math.exp(low), math.exp(high)


def bootstrap_mean(values: Sequence[float], *, draws: int = DRAWS, seed: int = SEED) -> tuple[float, float]:
    """95 % percentile interval of the mean, from `draws` samples with replacement, as many as there are values."""
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(data))  # samples made at once: 16 MB
    means = [
        data[generator.integers(len(data), size=(min(rows, draws - begun), len(data)))].mean(axis=1)
        for begun in range(0, draws, rows)
    ]
    return _quantiles(np.concatenate(means))


def normal_p(difference: float, stderr: float | None) -> float:
    """Two-sided p of a difference under a normal distribution: erfc(|d| / (√2 · stderr)).

    Without a spread, 1.0 for no difference and 0.0 for one; nan where the standard error is not known.
    """
    if stderr is None or not math.isfinite(stderr) or not math.isfinite(difference):
        return math.nan
    if stderr == 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / stderr / math.sqrt(2))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of several p-values at once, by name: as p-values to hold against the same level.

    The i-th smallest of m becomes max over j ≤ i of min(1, (m − j + 1) · p_(j)). Those that are nan stay so and do not
    count.
    """
    known = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    corrected = dict.fromkeys(p_values, math.nan)
    worst = 0.0
    for place, (p, name) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - place) * p))
        corrected[name] = worst
    return corrected


def _differences(n: int, lost: int, won: int, draws: int, generator: np.random.Generator) -> "np.ndarray":
    shares = [lost / n, won / n, max(n - lost - won, 0) / n]
    counts = generator.multinomial(n, shares, size=draws)
    return np.asarray((counts[:, 1] - counts[:, 0]) / n)


def _quantiles(values: "np.ndarray") -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
