"""A report as data: headings, paragraphs, tables and figures, before it is HTML, Markdown or LaTeX.

Every text here is plain: whoever writes it out escapes it. What is more than text is a value of its own (`Cite`, `Ref`,
`Code`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Language = Literal["en", "de"]
LANGUAGES: tuple[Language, ...] = ("en", "de")


@dataclass(frozen=True)
class Cite:
    """Cited works, by the keys of `Reference`."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Ref:
    """The number of a table or figure, by its label."""

    label: str


@dataclass(frozen=True)
class Code:
    """Text in the letters of a machine: ids, settings."""

    text: str


Inline = str | Cite | Ref | Code
Text = tuple[Inline, ...]


@dataclass(frozen=True)
class Reference:
    """A cited work. `authors` as a bibliography wants them: names joined by ' and ', 'others' for et al."""

    key: str
    authors: str
    title: str
    year: str
    url: str = ""
    where: str = ""


@dataclass(frozen=True)
class Heading:
    """Title of a section (level 1) or of a part of one (level 2)."""

    title: str
    level: int = 1


@dataclass(frozen=True)
class Paragraph:
    text: Text


@dataclass(frozen=True)
class Items:
    """A list without order."""

    entries: tuple[Text, ...]


@dataclass(frozen=True)
class Column:
    """Head of a column; numbers stand to the right. `share`: of a text table's width."""

    title: str
    unit: str = ""
    numeric: bool = True
    share: float = 0.0

    @property
    def head(self) -> str:
        return f"{self.title} [{self.unit}]" if self.unit else self.title


@dataclass(frozen=True)
class Cell:
    text: str
    bold: bool = False
    code: bool = False


@dataclass(frozen=True)
class Row:
    """Cells of a row, and the runs whose values they are."""

    cells: tuple[Cell, ...]
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Rows under a heading of their own; '' for none."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table of numbers; with shares in its columns, one of text that may go over pages."""

    label: str
    caption: Text
    columns: tuple[Column, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()

    @property
    def of_text(self) -> bool:
        """Whether cells hold running text, and columns have widths."""
        return any(column.share for column in self.columns)

    @property
    def rows(self) -> list[Row]:
        return [row for part in self.parts for row in part.rows]


@dataclass(frozen=True)
class Axis:
    """`kind` log: ticks at 1, 2, 5 of a decade; names: ticks at 0, 1, … with `names`, the first on top."""

    title: str
    kind: Literal["linear", "log", "names"] = "linear"
    names: tuple[str, ...] = ()
    note: str = ""
    """What stands smaller beside the title: which way is better, and how the axis is scaled."""
    from_zero: bool = True
    """Whether a linear x axis begins at zero where nothing is below it: sizes do, multiples of something need not."""


@dataclass(frozen=True)
class Point:
    """One mark; low to high is its bar on the value axis (nan: none)."""

    x: float
    y: float
    low: float
    high: float
    label: str
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Marks of one kind. `method` and `variant` decide colour and sign; `line` joins them."""

    name: str
    method: str
    points: tuple[Point, ...]
    variant: int = 0
    line: bool = True
    hollow: bool = False


@dataclass(frozen=True)
class Level:
    """A dashed line across the figure, at a value of the value axis."""

    value: float
    text: str


@dataclass(frozen=True)
class Figure:
    """A chart. Bars lie along `bars`; levels stand at values of that axis."""

    label: str
    caption: Text
    alt: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    levels: tuple[Level, ...] = ()
    bars: Literal["x", "y"] = "y"


Block = Heading | Paragraph | Items | Table | Figure


@dataclass(frozen=True)
class Document:
    title: str
    language: Language
    lead: Text
    blocks: tuple[Block, ...]
    references: tuple[Reference, ...] = ()
    data: bytes = field(default=b"", repr=False)
    """Every number behind it, unrounded, as CSV."""

    def tables(self) -> list[Table]:
        return [block for block in self.blocks if isinstance(block, Table)]

    def figures(self) -> list[Figure]:
        return [block for block in self.blocks if isinstance(block, Figure)]

    def cited(self) -> list[Reference]:
        """The references that are cited, in the order of their first mention."""
        order: dict[str, None] = {}
        for text in texts(self):
            for inline in text:
                if isinstance(inline, Cite):
                    order.update(dict.fromkeys(inline.keys))
        known = {reference.key: reference for reference in self.references}
        return [known[key] for key in order]


def texts(document: Document) -> list[Text]:
    """All running text, in order."""
    found: list[Text] = [document.lead]
    for block in document.blocks:
        match block:
            case Paragraph():
                found.append(block.text)
            case Items():
                found += block.entries
            case Table() | Figure():
                found.append(block.caption)
            case Heading():
                pass
    return found


def plain(text: Text, numbers: dict[str, str] | None = None) -> str:
    """Running text without what is more than text."""
    said = []
    for inline in text:
        match inline:
            case str():
                said.append(inline)
            case Code():
                said.append(inline.text)
            case Ref():
                said.append((numbers or {}).get(inline.label, "?"))
            case Cite():
                pass
    return "".join(said)


def numbers_of(blocks: Sequence[Block]) -> dict[str, str]:
    """Numbers of tables and figures by label, each kind counted on its own."""
    found: dict[str, str] = {}
    counts = {Table: 0, Figure: 0}
    for block in blocks:
        if isinstance(block, Table | Figure):
            counts[type(block)] += 1
            found[block.label] = str(counts[type(block)])
    return found
