"""LaTeX: nothing that a name holds is a command, what opens is closed, figures have their files; and it compiles."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.report import latex, writing
from core.report.document import Cell, Code, Column, Document, Paragraph, Part, Reference, Row, Table
from core.report.latex_text import bibliography, code, escaped
from core.reports import Reports
from tests.report.conftest import HOSTILE

_COMMAND = re.compile(
    r"\\(?:textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textquotedbl|textquotesingle|"
    r"textasciigrave|[A-Za-z]+)\{[^{}]*\}|\\[{}$&#%_,]|\\ensuremath\{\\?[A-Za-z-]+\}|\{[\[\]*]\}"
)


@given(st.text(max_size=60))
def test_escaped_text_holds_no_sign_that_latex_would_read(text: str) -> None:
    shown = escaped(text)
    assert shown.isascii()
    rest = _COMMAND.sub("", re.sub(r"\\texttt\{\{\[\}U\+[0-9A-F]+\{\]\}\}", "", _accents(shown)))
    assert not set(rest) & set("[]*")
    assert not set(rest) & set("\\{}$&#%_^~\"`'") - {"~", "{", "}"}, rest
    assert rest.replace("{}", "").count("{") == 0
    assert shown.count("{") - shown.count(r"\{") == shown.count("}") - shown.count(r"\}")
    assert "\n" not in shown


def _accents(text: str) -> str:
    return re.sub(r"\\[`'^~\"=.uvHckr]\{(?:\\[ij]\{\}|[A-Za-z])\}", "", text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("50 % & #1 $x^2$ a_b ~", r"50 \% \& \#1 \$x\textasciicircum{}2\$ a\_b \textasciitilde{}"),
        ("Kurtić, Boža, München", r"Kurti\'{c}, Bo\v{z}a, M\"{u}nchen"),
        ("−1,5 ± 2\u00a0%", r"\ensuremath{-}1,5 \ensuremath{\pm} 2~\%"),
        ("a--b ---, ,,", "a-{}-b -{}-{}-, ,{},"),
        ("漢 ▲ Σ α", r"\texttt{{[}U+6F22{]}} \ensuremath{\blacktriangle} \ensuremath{\Sigma} \ensuremath{\alpha}"),
        ("[x] *", "{[}x{]} {*}"),
        ("\x00\u202e\n\tx", "  x"),
    ],
)
def test_known_signs_are_set_as_they_are(text: str, shown: str) -> None:
    assert escaped(text) == shown


def _structure(text: str) -> None:
    """Every environment that begins ends, in order; braces balance; no row has more cells than its table columns."""
    open_: list[str] = []
    for what, name in re.findall(r"(?<!\\)\\(begin|end)\{([a-z]+)\}", text[text.index("\\begin{document}") :]):
        if what == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert open_ == []
    bare = re.sub(r"\\[\\{}]", "", text)
    assert bare.count("{") == bare.count("}")
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(labels) == len(set(labels))
    assert set(re.findall(r"\\ref\{([^}]*)\}", text)) <= set(labels)


def _cells(text: str) -> None:
    for spec, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.S):
        for line in body.splitlines():
            if line.endswith(r" \\") and "multicolumn" not in line:
                assert len(re.split(r"(?<!\\)&", line)) == len(spec), line


@pytest.mark.parametrize("language", ["en", "de"])
def test_the_document_is_well_formed_and_its_files_are_beside_it(
    everything: dict[str, str], reported: Reports, language: str
) -> None:
    document = reported.of_runs(list(everything.values()), language).document  # type: ignore[arg-type]
    files = latex.files(document)
    text = files["report.tex"]
    _structure(text)
    _cells(text)
    assert ("\\usepackage[ngerman]{babel}" in text) is (language == "de")
    assert set(re.findall(r"\{(figures/[^}]*\.csv)\}", text)) == {name for name in files if name.endswith(".csv")}
    cited = {key for keys in re.findall(r"\\cite\{([^}]*)\}", text) for key in keys.split(",")}
    assert cited == set(re.findall(r"^@misc\{([^,]*),", files["references.bib"], re.M))
    assert "\\toprule" in text
    assert "\\hline" not in text


def test_a_figures_file_holds_values_bars_and_runs(everything: dict[str, str], reported: Reports) -> None:
    document = reported.of_runs(list(everything.values())).document
    figure = next(each for each in document.figures() if each.label == "fig:cuts-1")
    files = latex.files(document)
    for place, series in enumerate(figure.series, 1):
        rows = list(csv.DictReader(io.StringIO(files[f"figures/cuts-1-{place:02d}.csv"])))
        assert [float(row["y"]) for row in rows] == [pytest.approx(point.y, rel=1e-5) for point in series.points]
        assert [row["runs"].split() for row in rows] == [list(point.runs) for point in series.points]
        assert all(float(row["plus"]) >= 0 <= float(row["minus"]) for row in rows)


def hostile_document() -> Document:
    cells = (Cell(HOSTILE, bold=True), Cell(HOSTILE), Cell("a_b/c-d", code=True))
    columns = (Column(HOSTILE, numeric=False), Column("x"), Column("y"))
    wide = tuple(Column(HOSTILE, numeric=False, share=1 / 3) for _ in range(3))
    body = (Part(HOSTILE, (Row(cells),)),)
    blocks = (
        Paragraph((HOSTILE, " ", Code(HOSTILE))),
        Table("tab:a", (HOSTILE,), columns, body, (HOSTILE,)),
        Table("tab:b", (HOSTILE,), wide, body),
    )
    return Document(HOSTILE, "de", (HOSTILE,), blocks)


def test_hostile_names_stay_text_everywhere() -> None:
    text = latex.files(hostile_document())["report.tex"]
    _structure(text)
    _cells(text)
    body = text[text.index("\\begin{document}") :]
    assert r"\input{" not in body
    assert body.count(r"\textbackslash{}input\{/") >= 7


def test_a_bibliography_keeps_capitals_and_lets_no_url_out_of_its_braces() -> None:
    odd = Reference("a2020x", "Boža, V. and others", "SparseGPT & 50 %", "2020", "https://x.org/}\\input{y}")
    entry = bibliography([odd])
    assert r"title = {{SparseGPT \& 50 \%}}" in entry
    assert r"author = {Bo\v{z}a, V. and others}" in entry
    assert "input" not in entry


def test_code_may_break_after_its_signs() -> None:
    assert code("a-b_c") == r"\texttt{a-\allowbreak{}b\_\allowbreak{}c}"


def test_a_table_longer_than_a_page_goes_on_in_another(everything: dict[str, str], reported: Reports) -> None:
    rows = tuple(Row((Cell(str(place)),)) for place in range(100))
    parts = (Part("first", rows[:30]), Part("second", rows[:30]), Part("third", rows))
    document = Document("x", "en", (), (Table("tab:long", ("Long.",), (Column("n"),), parts),))
    text = latex.files(document)["report.tex"]
    pages = re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.S)
    numbers = [int(line.split()[0]) for page in pages for line in page.splitlines() if re.match(r"\d+ \\\\", line)]
    assert numbers == [*range(30), *range(30), *range(100)]
    assert all(page.count(r" \\") <= latex.LONGEST + 3 for page in pages)
    assert text.count("(continued)") == len(pages) - 1
    assert text.count("\\label{tab:long}") == 1


def compiled(folder: Path) -> str:
    """What pdflatex says of report.tex; bibtex in between."""
    for program in ("pdflatex", "bibtex", "pdflatex", "pdflatex"):
        target = ["report"] if program == "bibtex" else ["-interaction=nonstopmode", "-halt-on-error", "report.tex"]
        done = subprocess.run([program, *target], cwd=folder, capture_output=True, text=True, errors="replace",
                              check=False, timeout=240)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX on this machine")
@pytest.mark.parametrize("language", ["en", "de", "hostile"])
def test_it_compiles_without_errors_and_without_undefined_references(
    everything: dict[str, str], reported: Reports, language: str, tmp_path: Path
) -> None:
    if language == "hostile":
        document = hostile_document()
        document = Document(document.title, "de", document.lead, document.blocks,
                            (Reference("a2020x", HOSTILE, HOSTILE, "2020"),))  # fmt: skip
        from core.report.document import Cite

        cited = (*document.blocks, Paragraph((Cite(("a2020x",)),)))
        document = Document(document.title, "de", document.lead, cited, document.references)
    else:
        document = reported.of_runs(list(everything.values()), language).document  # type: ignore[arg-type]
    writing.write(document, "latex", tmp_path)
    said = compiled(tmp_path)
    assert "undefined" not in said
    assert "Output written on report.pdf" in said
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
