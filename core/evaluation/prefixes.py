"""Sequences that begin alike, laid into one row as a tree, so that what they share is computed once.

The choices of a document repeat its whole context, and often the first words of each other. Here each token that
several sequences have in common, from the first on, is one node. A row holds the nodes of one tree in depth-first
order: node q sees node k exactly if k ≤ q < `end[k]`, as the nodes behind k up to `end[k]` are its descendants.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# Joining two trees of a and b tokens widens the attention by 2ab pairs. A token that need not be computed again is
# worth at least this many pairs: 6 d by the multiplications, less because attention under a mask is the slower kernel.
_PAIRS_A_TOKEN = 512


class Scored(NamedTuple):
    """One sequence of token ids of which the `last` ones are scored. The very last is never an input."""

    tokens: list[int]
    last: int


@dataclass(frozen=True)
class Tree:
    """Nodes of one row in depth-first order, and where each of its sequences reads its answers."""

    tokens: Ints  # (nodes,)
    positions: Ints  # (nodes,) place in its sequence
    end: Ints  # (nodes,) one behind the node's last descendant
    sources: Ints  # (scores,) node whose logits score `targets`
    targets: Ints  # (scores,) token ids
    owners: Ints  # (scores,) index of the sequence

    @property
    def length(self) -> int:
        """Number of nodes: tokens to compute."""
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Inputs of its longest sequence."""
        return int(self.positions.max()) + 1

    @property
    def branches(self) -> bool:
        """Whether some node has two children."""
        return self.depth < self.length


@dataclass(frozen=True)
class Rows:
    """Trees side by side, padded on the right to one length T. Padding sees itself alone."""

    tokens: Ints  # (B, T)
    positions: Ints  # (B, T)
    end: Ints  # (B, T)
    sources: Ints  # (scores,) in the flattened B · T order
    targets: Ints  # (scores,)
    owners: Ints  # (scores,)
    branches: bool

    @classmethod
    def of(cls, trees: Sequence[Tree], multiple: int = 1) -> "Rows":
        """Lay out trees; T is rounded up to a multiple, as kernels like it."""
        length = -(-max(tree.length for tree in trees) // multiple) * multiple
        tokens = np.zeros((len(trees), length), np.int64)
        positions = np.zeros_like(tokens)
        end = np.tile(np.arange(1, length + 1), (len(trees), 1))
        for row, tree in enumerate(trees):
            tokens[row, : tree.length] = tree.tokens
            positions[row, : tree.length] = tree.positions
            end[row, : tree.length] = tree.end
        sources = np.concatenate([tree.sources + row * length for row, tree in enumerate(trees)])
        targets = np.concatenate([tree.targets for tree in trees])
        owners = np.concatenate([tree.owners for tree in trees])
        return cls(tokens, positions, end, sources, targets, owners, any(tree.branches for tree in trees))


def grow(sequences: Sequence[Scored], *, share: bool = True, apart_from: int | None = None) -> list[Tree]:
    """Trees over all sequences, the longest first; sequences that share little stay apart.

    share: without it a tree is a single line, and sequences share one only where it serves them all as it is (they
    differ in the last token, or one is the beginning of another). apart_from: longer inputs never join shorter ones.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tokens)
    trees: list[Tree] = []
    growing: _Growing | None = None
    for i in order:
        tokens = np.asarray(sequences[i].tokens, np.int64)
        if growing is not None:
            common = growing.common(tokens[:-1])
            if not _worth(growing, common, len(tokens) - 1, share, apart_from):
                trees.append(growing.tree())
                growing = None
        if growing is None:
            growing, common = _Growing(), 0
        growing.add(tokens, sequences[i].last, i, common)
    if growing is not None:
        trees.append(growing.tree())
    return sorted(trees, key=lambda tree: -tree.length)


def _worth(growing: "_Growing", common: int, inputs: int, share: bool, apart_from: int | None) -> bool:
    """Whether a sequence of `inputs` tokens, `common` of them on the path, joins the tree."""
    if apart_from is not None and (inputs > apart_from) != (len(growing.path) > apart_from):
        return False
    if common == inputs or (common == len(growing.path) and growing.is_line):
        return True  # no side branch comes of it
    return share and common * _PAIRS_A_TOKEN >= 2 * growing.size * (inputs - common)


class _Growing:
    """A tree that takes sequences in lexicographic order."""

    def __init__(self) -> None:
        self.size = 0
        self.path = np.empty(0, np.int64)  # nodes of the last sequence's inputs
        self._last = np.empty(0, np.int64)  # its input tokens
        self._tokens: list[Ints] = []
        self._positions: list[Ints] = []
        self._closed: list[tuple[Ints, int]] = []  # (nodes, their end)
        self._sources: list[Ints] = []
        self._targets: list[Ints] = []
        self._owners: list[Ints] = []

    @property
    def is_line(self) -> bool:
        """Whether no node has two children yet."""
        return len(self.path) == self.size

    def common(self, inputs: Ints) -> int:
        """Number of leading tokens that the last sequence has, too."""
        n = min(len(inputs), len(self._last))
        differs = self._last[:n] != inputs[:n]
        return int(differs.argmax()) if differs.any() else n

    def add(self, tokens: Ints, count: int, owner: int, common: int) -> None:
        """Add a sequence whose first `common` inputs are on the path."""
        inputs = tokens[:-1]
        fresh = np.arange(self.size, self.size + len(inputs) - common)
        if common < len(self.path) and len(fresh):
            self._closed.append((self.path[common:], self.size))
        if len(fresh) or not self.size:
            self._tokens.append(inputs[common:])
            self._positions.append(np.arange(common, len(inputs)))
            self.path = np.concatenate([self.path[:common], fresh])
            self._last = inputs
            self.size += len(fresh)
        self._sources.append(self.path[len(inputs) - count : len(inputs)])
        self._targets.append(tokens[len(tokens) - count :])
        self._owners.append(np.full(count, owner))

    def tree(self) -> Tree:
        """What has grown."""
        end = np.full(self.size, self.size)
        for nodes, stop in self._closed:
            end[nodes] = stop
        return Tree(
            np.concatenate(self._tokens),
            np.concatenate(self._positions),
            end,
            np.concatenate(self._sources),
            np.concatenate(self._targets),
            np.concatenate(self._owners),
        )


def total_length(trees: Iterable[Tree]) -> int:
    """Tokens to compute, padding left out."""
    return sum(tree.length for tree in trees)
