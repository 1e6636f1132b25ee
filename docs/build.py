"""Writes docs/experiment.md from the descriptions in core/sections.py, and docs/glossary.md from core/glossary.py."""

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic import BaseModel

from core.experiment import Experiment
from core.glossary import TERMS
from core.validated import section_of

TARGET = Path(__file__).with_name("experiment.md")
GLOSSARY = Path(__file__).with_name("glossary.md")
WORDS = """# Glossary

The same word for the same thing, on pages, in files and in code. Made by `python docs/build.py` from
`core/glossary.py`, where help texts of pages come from; do not edit.

| word | meaning |
|---|---|
"""
INTRO = """# The Experiment file

Made by `python docs/build.py` from the descriptions in `core/sections.py`; do not edit.

One YAML file (1.2: `2:4` is text, `1e-4` a number) is the whole configuration of a run. What is left out takes its
default; an unknown key, or a setting that does not apply to the method, is an error. Run it with
`python -m core run FILE.yaml`, change a value with `--set pruning.ratio=0.4`.

`model.quantised` stands beside what else says in which form the dense model is loaded: nothing is removed, so it is no
method of pruning, and `pruning` must be empty with it (docs/evaluation.md, *Quantised dense baselines*).
"""


def values(annotation: Any) -> str:
    """What a field accepts, in a few words."""
    if get_origin(annotation) is Literal:
        return " · ".join(str(value) for value in get_args(annotation))
    inner = [values(part) for part in get_args(annotation) if part not in (type(None), Ellipsis)]
    if inner:
        words = list(dict.fromkeys(word for word in inner if word))
        return " · ".join(words)
    names = {str: "text", int: "whole number", float: "number", bool: "true · false"}
    return names.get(annotation, "")


def default(section: type[BaseModel], name: str) -> str:
    """The default as YAML would write it."""
    info = section.model_fields[name]
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel):
        return "empty" if value is None else "section"
    if isinstance(value, tuple):
        return ", ".join("see below" if isinstance(item, BaseModel) else str(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if isinstance(value, dict) else str(value) or "empty"


def table(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Rows of one section, then its sections'."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "Top level"
    lines = [
        f"## {title}",
        "",
        (section.__doc__ or "").strip(),
        "",
        "| field | meaning | default | values |",
        "|---|---|---|---|",
    ]
    deeper: list[str] = []
    for name, info in section.model_fields.items():
        inner = section_of(info.annotation)
        accepted = "" if inner else values(info.annotation).replace("|", "\\|")
        lines.append(f"| `{name}` | {info.description} | {default(section, name)} | {accepted} |")
        if inner is not None:
            deeper += ["", *table(inner, f"{prefix}{name}.")]
    return [*lines, *deeper]


def text() -> str:
    """The whole page."""
    return INTRO + "\n" + "\n".join(table(Experiment)) + "\n"


def glossary() -> str:
    """The page of words."""
    return WORDS + "".join(f"| **{term}** | {said.replace('|', chr(92) + '|')} |\n" for term, said in TERMS.items())


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    GLOSSARY.write_text(glossary(), encoding="utf-8")
