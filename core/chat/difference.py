"""Two answers side by side: which words the other has not, and where the two part."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_PIECES = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Run:
    """A stretch of an answer. `shared`: the other answer has these words here, too."""

    text: str
    shared: bool


@dataclass(frozen=True)
class Parting:
    """The words in which two answers are alike from the start, and the character at which each goes its own way.

    `at` is None where neither does: the answers are equal.
    """

    words: int
    at: int | None


def pieces(text: str) -> list[str]:
    """Words, single signs and stretches of white space; joined they are the text."""
    return _PIECES.findall(text)


def runs(text: str, other: str) -> list[Run]:
    """`text` in stretches that `other` shares or has not, by the longest common subsequences of words."""
    mine, theirs = pieces(text), pieces(other)
    found: list[Run] = []
    for tag, start, end, _, _ in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        if start < end:
            found.append(Run("".join(mine[start:end]), tag == "equal"))
    return found


def parting(text: str, other: str) -> Parting:
    """Where `text` and `other` part, in whole words."""
    mine, theirs = pieces(text), pieces(other)
    same = 0
    for one, two in zip(mine, theirs, strict=False):
        if one != two:
            break
        same += 1
    words = sum(piece[0].isalnum() or piece[0] == "_" for piece in mine[:same])
    if same == len(mine) == len(theirs):
        return Parting(words, None)
    return Parting(words, len("".join(mine[:same])))


def first_words(text: str, at: int, count: int = 3) -> str:
    """The next few words from a place on, on one line."""
    return " ".join(text[at:].split()[:count])


def partings(texts: Sequence[str]) -> list[Parting | None]:
    """Each answer against the first; None for the first itself."""
    return [None if place == 0 else parting(text, texts[0]) for place, text in enumerate(texts)]
