"""Trees of sequences that begin alike: every sequence stands in them whole, and what is shared stands there once."""

import random

import numpy as np
import pytest

from core.evaluation.prefixes import Rows, Scored, Tree, grow, total_length


def ancestors(tree: Tree, node: int) -> list[int]:
    """The nodes that a node sees, by the rule that the mask follows."""
    return [k for k in range(node + 1) if node < tree.end[k]]


def read_back(trees: list[Tree], sequences: list[Scored]) -> None:
    """Every score of every sequence is there once, and sees exactly the tokens before it, at their places."""
    found: dict[int, list[tuple[list[int], int]]] = {}
    for tree in trees:
        for source, target, owner in zip(tree.sources, tree.targets, tree.owners, strict=True):
            seen = ancestors(tree, int(source))
            assert tree.positions[seen].tolist() == list(range(len(seen)))
            found.setdefault(int(owner), []).append((tree.tokens[seen].tolist(), int(target)))
    for index, (tokens, last) in enumerate(sequences):
        assert found[index] == [(tokens[:place], tokens[place]) for place in range(len(tokens) - last, len(tokens))]
    assert sorted(found) == list(range(len(sequences)))


def drawn(seed: int, count: int = 60) -> list[Scored]:
    """Documents of a few choices over a small alphabet, so that they share beginnings of all lengths."""
    draw = random.Random(seed)
    sequences = []
    while len(sequences) < count:
        context = [draw.randrange(3) for _ in range(draw.randint(1, 12))]
        for _ in range(draw.randint(1, 4)):
            choice = [draw.randrange(3) for _ in range(draw.randint(1, 5))]
            sequences.append(Scored(context + choice, len(choice)))
    draw.shuffle(sequences)
    return sequences


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [True, False])
def test_each_sequence_reads_its_own_tokens_and_no_others(seed: int, share: bool) -> None:
    sequences = drawn(seed)
    trees = grow(sequences, share=share)
    read_back(trees, sequences)
    assert [tree.length for tree in trees] == sorted((tree.length for tree in trees), reverse=True)


def test_four_choices_of_a_document_compute_its_context_once() -> None:
    context = list(range(10, 60))
    sequences = [Scored([*context, 1, 2, 3], 3), Scored([*context, 1, 2, 4], 3), Scored([*context, 5], 1)]
    (tree,) = grow([*sequences, Scored([*context, 6, 7], 2)])
    assert tree.length == 50 + 2 + 1  # 1 2 of the first two once, 6; last tokens are no inputs
    assert tree.branches
    assert tree.depth == 52


def test_choices_of_one_token_share_a_line_even_without_branches() -> None:
    sequences = [Scored([1, 2, 3, choice], 1) for choice in (9, 4, 7)]
    (tree,) = grow(sequences, share=False)
    assert (tree.length, tree.branches) == (3, False)
    read_back([tree], sequences)


def test_without_sharing_no_tree_has_branches() -> None:
    sequences = drawn(3)
    plain, shared = grow(sequences, share=False), grow(sequences)
    assert not any(tree.branches for tree in plain)
    assert total_length(shared) < total_length(plain)


def test_long_documents_that_share_a_word_or_two_stay_apart() -> None:
    first = Scored([1, 2, *range(100, 1100)], 5)
    second = Scored([1, 2, *range(2000, 3000)], 5)
    assert len(grow([first, second])) == 2
    assert len(grow([Scored([1, 2, 3, 4], 1), Scored([1, 2, 5, 6], 1)])) == 1


def test_sequences_beyond_a_length_never_join_shorter_ones() -> None:
    context = list(range(3, 20))
    sequences = [
        Scored([*context, 50, 51], 2),
        Scored([*context, 50, 51, 52, 53], 4),
        Scored([*context, 50, 51, 52, 54, 55], 5),
    ]
    trees = grow(sequences, apart_from=18)
    read_back(trees, sequences)
    assert sorted(tree.depth > 18 for tree in trees) == [False, True]


def test_rows_pad_on_the_right_and_padding_sees_itself_alone() -> None:
    sequences = [Scored([1, 2, 3, 4, 5], 2), Scored([7, 8, 9], 1)]
    trees = grow(sequences)
    rows = Rows.of(trees, multiple=8)
    assert rows.tokens.shape == (2, 8)
    assert rows.tokens[1].tolist() == [7, 8, 0, 0, 0, 0, 0, 0]
    assert rows.end[1, 2:].tolist() == [3, 4, 5, 6, 7, 8]
    sees = (np.arange(8)[None, :] <= np.arange(8)[:, None]) & (np.arange(8)[:, None] < rows.end[1][None, :])
    assert sees[:2, :2].tolist() == [[True, False], [True, True]]
    assert not sees[2:, :2].any()
    assert (sees[2:, 2:] == np.eye(6, dtype=bool)).all()
    flat = rows.tokens.reshape(-1)
    assert flat[rows.sources].tolist() == [3, 4, 8]
    assert rows.targets.tolist() == [4, 5, 9]
