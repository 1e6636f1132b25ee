"""Numbers and words in two languages."""

import ast
import math
import re
from pathlib import Path

import pytest

import core.report
from core.charts_frames import Quality
from core.report.document import Cite
from core.report.numbers import Numbers
from core.report.words import Words
from core.report.words_de import GERMAN
from core.report.words_en import ENGLISH


def quality(metric: str, task: str = "piqa") -> Quality:
    return Quality("key", task, metric, "p", "", distinguish=False)


def test_both_languages_have_the_same_words_with_the_same_parts() -> None:
    assert GERMAN.keys() == ENGLISH.keys()
    for key, text in ENGLISH.items():
        assert sorted(re.findall(r"\{(\w+)\}", text)) == sorted(re.findall(r"\{(\w+)\}", GERMAN[key])), key


def test_no_word_is_there_for_nothing() -> None:
    constants: set[str] = set()
    stems: set[str] = set()
    for path in Path(core.report.__file__).parent.glob("[!w]*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                constants.add(node.value)
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                stems.add(str(node.values[0].value))
    told = {
        "s_not_zero",
        "s_not_one",
        "s_holds_zero",
        "s_holds_one",
        "only_mlp",
        "only_attention",
        "and",
        "same_sizes",
        "reconstruct",
    }
    told |= {"perplexity_with_article", "mean_with_article"}
    metrics = {"kl_per_token", "top1_agreement", "lora", "distillation"}
    unused = [
        key
        for key in ENGLISH.keys() - constants - told - metrics
        if not any(stem.endswith("_") and key.startswith(stem) for stem in stems)
    ]
    assert unused == [], unused


@pytest.mark.parametrize(
    ("value", "digits", "english", "german"),
    [
        (1234567.891, 2, "1,234,567.89", "1.234.567,89"),
        (-0.5, 1, "−0.5", "−0,5"),
        (-0.0001, 2, "0.00", "0,00"),
        (math.nan, 2, "–", "–"),
        (math.inf, 0, "–", "–"),
    ],
)
def test_numbers_are_written_as_each_language_writes_them(value: float, digits: int, english: str, german: str) -> None:
    assert Numbers("en").fixed(value, digits) == english
    assert Numbers("de").fixed(value, digits) == german


def test_shares_stand_in_percent_and_their_differences_have_signs() -> None:
    assert Numbers("de").measured(0.5432, 0.0121, quality("acc")) == "54,3 ± 1,2"
    assert Numbers("en").measured(-0.031, 0.048, quality("acc"), sign=True) == "−3.1 ± 4.8"
    assert Numbers("de").percent(0.304) == "30,4\u00a0%"
    assert Numbers("en").plain_percent(0.125) == "12.5\u00a0%"


def test_a_small_error_keeps_the_digits_that_show_it() -> None:
    assert Numbers("en").measured(1.0854, 0.002, quality("kl_per_token")) == "1.085 ± 0.002"


def test_parts_of_a_sentence_may_be_more_than_text() -> None:
    said = Words("en").fill("m_lora", cite=Cite(("hu",)), settings="rank 8")
    assert said == ("Recovery by LoRA", Cite(("hu",)), ": ", "rank 8", ".")
    assert Words("de").listing(["a", "b", "c"]) == "a, b und c"
