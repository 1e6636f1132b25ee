"""Works that a report cites: the registry's papers, and those of the statistics, the harness and recovery."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from core.pruning.registry import Method
from core.report.document import Reference

_PAPER = re.compile(r"^(?P<authors>.+?) (?P<year>\d{4}), (?P<title>.+)$")
_SMALL = {"a", "an", "the", "on", "of", "for", "and", "to", "are", "is"}

KNOWN = {
    "harness": Reference(
        "gao2024harness", "Gao, Leo and others", "The Language Model Evaluation Harness", "2024",
        "https://doi.org/10.5281/zenodo.12608602",
    ),
    "mcnemar": Reference(
        "mcnemar1947", "McNemar, Quinn",
        "Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages", "1947",
        "https://doi.org/10.1007/BF02295996", "Psychometrika 12, 153-157",
    ),
    "holm": Reference(
        "holm1979", "Holm, Sture", "A Simple Sequentially Rejective Multiple Test Procedure", "1979",
        "https://www.jstor.org/stable/4615733", "Scandinavian Journal of Statistics 6, 65-70",
    ),
    "lora": Reference(
        "hu2021lora", "Hu, Edward J. and others", "LoRA: Low-Rank Adaptation of Large Language Models", "2021",
        "https://arxiv.org/abs/2106.09685",
    ),
    "distillation": Reference(
        "hinton2015distilling", "Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
        "Distilling the Knowledge in a Neural Network", "2015", "https://arxiv.org/abs/1503.02531",
    ),
    "owl": Reference(
        "yin2023owl", "Yin, Lu and others",
        "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity", "2023",
        "https://arxiv.org/abs/2310.05175",
    ),
}  # fmt: skip
"""Works besides the methods' own, by what they are cited for."""


def reference_of(method: Method) -> Reference:
    """A method's paper as an entry of a bibliography. Methods of one paper share it."""
    found = _PAPER.match(method.paper)
    if found is None:
        return Reference(_key(method.name, "", method.paper), "", method.paper, "", method.url)
    authors = found["authors"].replace(" et al.", " and others")
    key = _key(found["authors"], found["year"], found["title"])
    return Reference(key, authors, found["title"], found["year"], method.url)


def references_of(methods: Iterable[Method]) -> dict[str, Reference]:
    """Papers by method name."""
    return {method.name: reference_of(method) for method in methods}


def _key(authors: str, year: str, title: str) -> str:
    """`ma2023llmpruner`: first author, year, first telling word of the title; letters and digits only."""
    words = [word for word in title.split() if word.lower().strip(":,") not in _SMALL]
    return f"{_ascii(authors.split()[0])}{year}{_ascii(words[0]) if words else ''}"


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain.lower())
