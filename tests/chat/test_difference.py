"""Words that another answer has not, and the point where two part."""

from core.chat.difference import Parting, first_words, parting, pieces, runs

LEFT = "The capital of France is Paris, a city on the Seine."
RIGHT = "The capital of France is Lyon, a city on the Rhône."


def test_pieces_join_to_the_text_they_were_made_of() -> None:
    for text in (LEFT, "", "  two\n\nlines\t ünïcode <b>&amp;</b>", "1.5 %"):
        assert "".join(pieces(text)) == text


def test_words_that_the_other_has_not_are_told_apart_from_those_it_shares() -> None:
    found = runs(LEFT, RIGHT)
    assert [run.text for run in found if not run.shared] == ["Paris", "Seine"]
    assert "".join(run.text for run in found) == LEFT
    assert [run.text for run in runs(RIGHT, LEFT) if not run.shared] == ["Lyon", "Rhône"]
    assert all(run.shared for run in runs(LEFT, LEFT))
    assert [run.shared for run in runs(LEFT, "")] == [False]
    assert runs("", LEFT) == []


def test_two_answers_part_at_the_first_word_that_differs() -> None:
    found = parting(LEFT, RIGHT)
    assert found.words == 5
    assert found.at == LEFT.index("Paris")
    assert first_words(LEFT, found.at) == "Paris, a city"
    assert parting(LEFT, LEFT) == Parting(11, None)
    assert parting("pruned", "prune") == Parting(0, 0)  # whole words, not letters


def test_an_answer_that_goes_on_parts_where_the_other_ends() -> None:
    assert parting("one two three", "one two") == Parting(2, len("one two"))
    assert parting("one two", "one two three") == Parting(2, len("one two"))
