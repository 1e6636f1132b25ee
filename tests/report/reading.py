"""How tests read a report: its tables as rows of texts, its sentences as plain text."""

from typing import Any

from core.report.document import Document, Table, plain, texts
from core.report.material import Material, Numbers
from core.report.names import Names
from core.report.tables import Sheet
from core.report.words import Words
from core.reports import Reports


def report(reports: Any, ids: dict[str, str], language: Any = "en", **options: Any) -> Document:
    room: Reports = reports() if callable(reports) else reports
    return room.of_runs(list(ids.values()), language, **options).document


def sheet_of(material: Material) -> Sheet:
    numbers = Numbers(material)
    return Sheet(numbers, Names(material, numbers.groups, Words("en")), Words("en"))


def table(document: Document, label: str) -> Table:
    return next(each for each in document.tables() if each.label == label)


def rows(found: Table) -> dict[str, dict[str, str]]:
    """Row name → column → text, `*` around what is bold; rows of parts with a title begin with it."""
    said = {}
    for part in found.parts:
        for row in part.rows:
            name = f"{part.title}: {row.cells[0].text}" if part.title else row.cells[0].text
            said[name] = {
                column.head: f"*{cell.text}*" if cell.bold else cell.text
                for column, cell in zip(found.columns[1:], row.cells[1:], strict=True)
            }
    return said


def sentences(document: Document) -> list[str]:
    return [plain(text) for text in texts(document)]


PPL, MEAN = "Perplexity (passages)", "Mean of 7 [%]"
