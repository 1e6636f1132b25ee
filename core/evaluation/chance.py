"""What a score is worth: what guessing would give, what one constant answer would give, how certain a score can be.

Shares are fractions (0.25 = 25 %). Nothing here loads torch or the harness.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.959964
"""Half width of a 95 % interval in standard errors, by the normal approximation."""


@dataclass(frozen=True)
class Rates:
    """Accuracy without knowledge, on the very documents that were scored.

    `chance`: of drawing a choice at random, mean of 1 / number of choices. `majority`: of always giving the answer
    that is right most often, largest share of one gold index.
    """

    chance: float
    majority: float


def rates(choices: Sequence[int], gold: Sequence[int]) -> Rates | None:
    """Rates of documents with these numbers of choices and these right answers (0-based); None without documents.

    chance = mean_d 1 / choices_d;  majority = max_i #{d : gold_d = i} / #{d}. ValueError where the two do not fit.
    """
    if len(choices) != len(gold):
        raise ValueError(f"{len(choices)} numbers of choices, but {len(gold)} right answers")
    if not choices:
        return None
    if any(not 0 <= answer < count for count, answer in zip(choices, gold, strict=True)):
        raise ValueError("a right answer is none of its document's choices")
    n = len(choices)
    return Rates(math.fsum(1 / count for count in choices) / n, max(Counter(gold).values()) / n)


def rates_of_samples(samples: Sequence[Mapping[str, Any]]) -> Rates | None:
    """Rates of the rows of one task (core.evaluation.tasks.TaskResult); None where a row is no multiple choice."""
    choices, gold = [], []
    for row in samples:
        logs, target = row.get("loglikelihoods"), str(row.get("target"))
        if not logs or not target.isdecimal() or int(target) >= len(logs):
            return None
        choices.append(len(logs))
        gold.append(int(target))
    return rates(choices, gold)


def certainty(documents: int, share: float = 0.5) -> float:
    """Half width of the 95 % interval of an accuracy on so many documents, as a fraction: 1.96 · √(p (1 − p) / n).

    At the default share, one half, it is the widest. ValueError for no documents.
    """
    if documents < 1:
        raise ValueError(f"{documents} documents have no certainty")
    return Z95 * math.sqrt(share * (1 - share) / documents)
