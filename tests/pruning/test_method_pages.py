"""How every registered method is described: its options, its docstring, its page. Nothing here names one."""

import inspect
import re
from pathlib import Path

import pytest

from core.experiment import Pruning
from core.pruning.registry import Method, methods

DOCS = Path(__file__).resolve().parents[2] / "docs" / "methods"
every_method = pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.name)


@every_method
def test_unknown_options_are_refused_with_the_name_of_the_option(method: Method) -> None:
    with pytest.raises(ValueError, match="no_such_option"):
        Pruning(method=method.name, options={"no_such_option": 1})


@every_method
def test_every_option_is_described(method: Method) -> None:
    for name, info in method.options.model_fields.items():
        assert info.description, name


@every_method
def test_the_docs_page_exists_and_names_title_paper_and_every_option(method: Method) -> None:
    page = (DOCS / f"{method.name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {method.title}\n")
    assert method.url in page
    for name in method.options.model_fields:
        assert f"`{name}`" in page


def test_no_docs_page_is_left_over_from_a_method_that_is_gone() -> None:
    assert {page.stem for page in DOCS.glob("*.md")} - {"README"} == set(methods())


@every_method
def test_the_docstring_gives_the_formula_first_then_the_symbols_and_the_paper(method: Method) -> None:
    formula, *rest = inspect.cleandoc(method.function.__doc__ or "").splitlines()
    assert "=" in formula or "~" in formula
    assert any(re.match(r"S: .*higher stays", line) for line in rest)
    assert method.url in method.function.__doc__
    assert inspect.getmodule(method.function).__name__ == f"core.pruning.methods.{method.name}"
