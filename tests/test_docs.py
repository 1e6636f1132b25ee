"""The documents say what the code does."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from core import settings
from core.glossary import TERMS
from core.pruning.registry import methods

ROOT = Path(__file__).resolve().parent.parent


def test_every_method_has_a_page_with_its_formula_and_paper() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "methods").glob("*.md")}
    assert set(pages) == set(methods())
    for name, method in methods().items():
        assert method.title in pages[name]
        assert method.url in pages[name]


def test_the_experiment_page_is_what_the_descriptions_say() -> None:
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    assert (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8") == build["text"](), "run: python docs/build.py"


def test_the_glossary_is_made_of_the_words_that_pages_show() -> None:
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    assert (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8") == build["glossary"](), "run: docs/build.py"
    assert list(TERMS) == sorted(TERMS, key=str.casefold)
    assert all(said.strip() == said and said[-1] == "." for said in TERMS.values())


def test_pages_say_meanings_of_words_by_the_glossary_alone() -> None:
    used = set()
    for path in (ROOT / "pages").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [term for term, said in TERMS.items() if said.split(". ")[0] in text], path
        used |= set(re.findall(r'(?:theme\.term|meaning)\("([^"]+)"', text))
    assert used
    assert used <= set(TERMS)


def test_every_command_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = subprocess.run(
        [sys.executable, "-m", "core", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commands = set(re.findall(r"^    (\w+) {2,}", shown.stdout, re.M))
    assert commands >= {"run", "methods", "models", "tasks", "reindex"}
    for command in commands:
        assert f"python -m core {command}" in readme, command


def test_every_environment_variable_stands_in_the_settings_table() -> None:
    used = {
        name
        for path in (ROOT / "core").rglob("*.py")
        for name in re.findall(r'"(ESPALIER_[A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    assert used
    assert all(name in (settings.__doc__ or "") for name in used), used


def test_every_requirement_is_pinned_and_says_what_needs_it() -> None:
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                assert re.match(r"^[\w.\-\[\]]+==[\w.]+\s+# \w", line), f"{path.name}: {line}"


def test_the_readme_begins_with_the_two_commands() -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8")[:900]
    assert "make app" in head
    assert "make test" in head


def test_the_readmes_results_stand_in_the_report_of_the_reference_study() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## What it measured")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][1:]
    told = [re.findall(r"[\d,.]*\d(?: ± [\d.]+)?", cell.replace("†", "")) for _, _, *cells in rows for cell in cells]
    report = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert len(rows) >= 7
    assert all(told)
    assert not [
        value for values in told for value in values if not re.search(rf"(?<![\d.,]){re.escape(value)}(?!\d)", report)
    ]
