"""Who may import whom, and what opening a page may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "peft", "lm_eval", "datasets", "accelerate"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of modules that a file imports, without those under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(nodes: list[ast.stmt], inside: bool) -> None:
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.Import) and not (inside and top_level_only):
                found.update(alias.name for alias in node.names)
            if isinstance(node, ast.ImportFrom) and node.module and not (inside and top_level_only):
                found.add(node.module)
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in ("body", "orelse", "finalbody"):
                visit(getattr(node, field, []), deeper)
            for handler in getattr(node, "handlers", []):
                visit(handler.body, deeper)

    visit(tree.body, False)
    return found


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def users_of(package: str, *folders: str) -> set[str]:
    roots = {path: {name.split(".")[0] for name in imports(path)} for path in files(*folders)}
    return {str(path.relative_to(ROOT)) for path, names in roots.items() if package in names}


def test_streamlit_is_imported_by_pages_and_the_app_alone() -> None:
    assert users_of("streamlit", "core") == set()
    assert users_of("streamlit", "pages") != set()


def test_duckdb_is_imported_by_storage_alone() -> None:
    users = users_of("duckdb", "core", "pages")
    assert users
    assert all(name.startswith("core/storage/") for name in users)


def test_lm_eval_is_imported_by_evaluation_and_its_data_alone() -> None:
    users = users_of("lm_eval", "core", "pages")
    assert users
    assert all(name.startswith(("core/evaluation/",)) for name in users), users


def test_peft_is_imported_by_recovery_alone() -> None:
    assert all(name.startswith("core/recovery/") for name in users_of("peft", "core", "pages"))


def test_pages_import_of_core_only_the_service_and_the_charts() -> None:
    allowed = ("core.service", "core.charts", "core.espalier", "core.views", "core.experiment", "core.errors")
    allowed += ("core.guard", "core.glossary")
    for path in [*files("pages"), ROOT / "app.py"]:
        for name in imports(path):
            if name == "core" or name.startswith("core."):
                assert name == "core" or name.startswith(allowed), f"{path.relative_to(ROOT)} imports {name}"


def test_methods_import_of_core_only_the_registry_and_pruning_helpers() -> None:
    for path in files("core/pruning/methods"):
        for name in imports(path):
            if name.startswith("core."):
                assert name.startswith("core.pruning."), f"{path.name} imports {name}"


def test_method_files_import_no_torch_at_the_top() -> None:
    for path in files("core/pruning/methods"):
        assert "torch" not in imports(path, top_level_only=True), path.name


@pytest.mark.parametrize(
    "module", ["core.service", "core.charts", "core.checks", "core.pruning.registry", "core.chat.client"]
)
def test_what_pages_use_loads_nothing_heavy(module: str) -> None:
    code = f"""
import sys, {module}
from core.pruning.registry import methods
methods()
print(sorted(set(sys.modules) & {HEAVY!r}))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_the_pipeline_works_without_streamlit_duckdb_and_plotly() -> None:
    code = """
import sys
for name in ("streamlit", "duckdb", "plotly"):
    sys.modules[name] = None
import core.__main__, core.jobs.pipeline, core.jobs.worker
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_modules_stay_short_enough_to_read() -> None:
    long = {str(p.relative_to(ROOT)): n for p in files("core", "pages") if (n := len(p.read_text().splitlines())) > 450}
    assert long == {}


def test_other_pages_are_opened_with_the_query_they_get() -> None:
    """Without one Streamlit clears the URL, and refuses to where a widget keeps its value there."""
    calls = [
        f"{path.name}:{node.lineno}"
        for path in files("pages")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "st.switch_page"
        if not any(keyword.arg == "query_params" for keyword in node.keywords)
    ]
    assert calls == []
