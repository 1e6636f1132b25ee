"""HTML and Markdown: well formed, whole in themselves, and no name ever becomes markup. Figures are drawn as SVG."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.report import html, markdown, writing
from core.report.document import Axis, Document, Figure, Point, Series
from core.report.numbers import Numbers
from core.report.svg import draw
from core.report.ticks import scale_of
from core.reports import Reports
from tests.report.test_latex import hostile_document

VOID = {"meta", "img", "br", "link", "hr", "input"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "article", "h1", "h2", "h3", "p", "ul", "ol", "li", "b",
    "i", "code", "a", "figure", "figcaption", "div", "table", "thead", "tbody", "tr", "th", "td", "img", "svg", "g",
    "path", "line", "rect", "text", "polyline", "circle",
}  # fmt: skip


class Checker(HTMLParser):
    """Tags close in order; only known tags; no attribute that runs anything; links lead to https or into the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.seen: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        self.seen.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("href", "src"):
                assert str(value).startswith(("https://", "#", "data:image/svg+xml;base64,")), value
            if name == "id":
                self.ids.append(str(value))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(re.sub(r"^<!DOCTYPE html>\n", "", text))
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    return checker


@pytest.fixture
def document(everything: dict[str, str], reported: Reports) -> Document:
    return reported.of_runs(list(everything.values())).document


def test_the_page_is_one_file_without_scripts_that_asks_nothing_of_the_net(document: Document) -> None:
    text = html.page(document)
    seen = checked(text)
    assert "svg" in seen.seen
    assert "script" not in text.lower()
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|url\()\s*=?\s*[\"']?https?:", text)
    links = set(re.findall(r'href="#([^"]*)"', text))
    assert links <= set(seen.ids)


def test_the_body_for_the_app_has_its_figures_as_images_with_words(document: Document) -> None:
    body = html.article(document, dark=True, images=True)
    seen = checked(body)
    assert "svg" not in seen.seen
    images = re.findall(r'<img alt="([^"]*)"', body)
    assert len(images) == len(document.figures())
    assert all("perplexity" in each.lower() or "mean" in each.lower() for each in images)


def test_hostile_names_are_text_in_html() -> None:
    text = html.page(hostile_document())
    seen = checked(text)
    assert "script" not in seen.seen
    assert "".join(seen.text).count("<script>alert(1)</script>") >= 7


def test_hostile_names_are_text_in_markdown() -> None:
    from markdown_it import MarkdownIt

    pages = markdown.pages(hostile_document())
    assert list(pages) == ["report.md"]
    shown = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(pages["report.md"])
    assert "<script" not in shown
    assert "<input" not in shown
    assert shown.count("&lt;script&gt;") >= 7
    assert shown.count("<table>") == 2
    for row in re.findall(r"<tr>(.*?)</tr>", shown, re.S):
        assert len(re.findall(r"<t[hd]", row)) == 3


@settings(max_examples=50)
@given(st.text(max_size=60))
@example("0) ")
@example("12. a list?")
@example("- a list?")
@example("+")
def test_escaped_markdown_shows_the_text_itself(text: str) -> None:
    from html import unescape

    from markdown_it import MarkdownIt

    shown = MarkdownIt("gfm-like", {"linkify": False, "html": True}).renderInline(markdown.escaped(text))
    assert "<" not in shown
    plain = " ".join(re.sub(r"[\r\n\t\x00-\x1f\x7f]+", " ", text).replace("\ufffd", "").split())
    assert " ".join(unescape(shown).replace("\u2060", "").replace("\ufffd", "").split()) == plain.replace("\u2060", "")


def test_only_what_begins_a_list_is_escaped_as_such() -> None:
    plain = [".", ") and", "1.5 times", "-1", "a - b", "twice 2. more"]
    assert [markdown.escaped(text) for text in plain] == plain
    assert [markdown.escaped(text) for text in ("0) ", "12. a", "- a", "+")] == ["0\\) ", "12\\. a", "\\- a", "\\+"]


def test_every_markdown_table_has_as_many_cells_in_each_row(document: Document) -> None:
    text = markdown.pages(document)["report.md"]
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, re.M)
    assert len(tables) == len(document.tables())
    for found, table in zip(tables, document.tables(), strict=True):
        lines = found.strip().splitlines()
        assert len(lines) == 2 + len(table.rows) + sum(bool(part.title) for part in table.parts)
        assert {len(re.split(r"(?<!\\)\|", line)) - 2 for line in lines} == {len(table.columns)}


def test_markdown_names_each_of_its_figures_and_there_are_no_others(document: Document) -> None:
    pages = markdown.pages(document, "results")
    asked = re.findall(r"!\[.*?\]\(([^)]*)\)", pages["results.md"])
    assert sorted(asked) == sorted(set(pages) - {"results.md"})
    assert all(name.startswith("results-figures/") for name in asked)


def test_every_drawing_is_xml_with_all_its_marks_inside(document: Document) -> None:
    for figure in document.figures():
        for dark in (False, True):
            root = ET.fromstring(draw(figure, Numbers("en"), dark=dark))
            width, height = float(root.get("width", 0)), float(root.get("height", 0))
            marks = [each for each in root.iter("{http://www.w3.org/2000/svg}g") if each.find("{*}title") is not None]
            assert len(marks) == sum(len(series.points) for series in figure.series)
            for mark in marks:
                x, y = map(float, re.findall(r"[\d.-]+", str(mark.get("transform"))))
                assert 0 < x < width
                assert 0 < y < height


def test_marks_stand_where_their_values_are() -> None:
    points = tuple(Point(x, y, y - 1, y + 1, f"{x}") for x, y in ((0.0, 10.0), (10.0, 20.0), (20.0, 30.0)))
    figure = Figure("fig:x", ("",), "<b>alt</b>", Axis("x"), Axis("y"), (Series("<i>", "taylor", points),))
    text = draw(figure, Numbers("en"))
    places = [tuple(map(float, each)) for each in re.findall(r'translate\(([\d.]+) ([\d.]+)\)"><title>', text)]
    (x1, y1), (x2, y2), (x3, y3) = places
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.1)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.1)
    assert x1 < x2
    assert y1 > y2
    assert "&lt;b&gt;alt" in text
    assert "<i>" not in text


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (26.5, 183.0), (-3.0, 4.0), (0.001, 0.0013), (1e6, 5e6)])
def test_ticks_are_few_round_and_written_without_rounding(low: float, high: float) -> None:
    scale = scale_of(Axis("x"), [low, high], Numbers("en"))
    assert 3 <= len(scale.ticks) <= 9
    written = [float(text.replace(",", "").replace("−", "-")) for text in scale.texts]
    assert written == [pytest.approx(place, rel=1e-9, abs=1e-12) for place in scale.ticks]
    assert scale.low <= low < high <= scale.high


def test_a_logarithmic_axis_gives_equal_factors_equal_lengths() -> None:
    scale = scale_of(Axis("x", "log"), [20.0, 800.0], Numbers("de"))
    assert scale.at(200) - scale.at(20) == pytest.approx(scale.at(400) - scale.at(40))
    assert set(scale.texts) >= {"20", "50", "100", "200", "500"}


def test_files_are_the_same_each_time_and_the_zip_holds_them(document: Document, tmp_path: Path) -> None:
    import io
    import zipfile

    for form in writing.FORMATS:
        written = writing.write(document, form, tmp_path / form)
        assert all(path.is_file() for path in written)
        content = writing.zipped(document, form)
        assert content == writing.zipped(document, form)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = {str(path.relative_to(tmp_path / form)) for path in written}
            assert set(archive.namelist()) == names
            assert "numbers.csv" in names
