"""A document as Markdown for GitHub: pipe tables, figures as SVG files beside it. Every text is escaped."""

from __future__ import annotations

import re

from core.report.document import (
    Block,
    Cell,
    Cite,
    Code,
    Document,
    Figure,
    Heading,
    Items,
    Paragraph,
    Ref,
    Table,
    Text,
    numbers_of,
)
from core.report.html import authors_of
from core.report.numbers import Numbers
from core.report.svg import draw
from core.report.words import Words

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$^])")
_LIST_START = re.compile(r"^(\s*(?=[-+])|\s*\d+(?=[.)]))(?=.(?:\s|$))")
_BREAKS = re.compile(r"[\r\n\t\x00-\x1f\x7f]+")


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no emphasis, link, HTML, table border, formula, mention or emoji code."""
    text = _SPECIAL.sub(r"\\\1", _BREAKS.sub(" ", text))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u2060")
    text = re.sub(r":(?=[a-z_+][a-z0-9_+\\-]*:)", ":\u2060", text)
    text = re.sub(r"(?i)\b(https?|ftp|mailto):(?=/|\w)", "\\1:\u2060", text)
    return _LIST_START.sub(r"\1\\", text)


def code(text: str) -> str:
    """Text in the letters of a machine, in a table too."""
    text = _BREAKS.sub(" ", text).replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def pages(document: Document, stem: str = "report") -> dict[str, str]:
    """Files by name: `<stem>.md`, and its figures under `<stem>-figures/`."""
    folder = f"{stem}-figures"
    numbers = Numbers(document.language)
    drawn = {f"{folder}/{file_name(figure)}.svg": draw(figure, numbers) for figure in document.figures()}
    return {f"{stem}.md": _Writer(document, folder).whole(), **drawn}


def file_name(figure: Figure) -> str:
    """A figure's file without its ending."""
    return re.sub(r"[^a-z0-9-]+", "-", figure.label.lower()).removeprefix("fig-")


class _Writer:
    def __init__(self, document: Document, folder: str) -> None:
        self.document, self.folder = document, folder
        self.words = Words(document.language)
        self.places = numbers_of(document.blocks)
        self.cited = {reference.key: place for place, reference in enumerate(document.cited(), 1)}

    def whole(self) -> str:
        parts = [f"# {escaped(self.document.title)}", self.text(self.document.lead)]
        parts += [self.block(block) for block in self.document.blocks]
        cited = self.document.cited()
        if cited:
            parts.append(f"## {escaped(self.words.say('references'))}")
            entries = []
            for place, each in enumerate(cited, 1):
                said = [escaped(authors_of(each)), f"*{escaped(each.title)}*", escaped(each.where), each.year]
                link = f" <{each.url}>" if each.url.startswith("https://") and " " not in each.url else ""
                entries.append(f"{place}. {', '.join(word for word in said if word)}.{link}")
            parts.append("\n".join(entries))
        return "\n\n".join(part for part in parts if part) + "\n"

    def block(self, block: Block) -> str:
        match block:
            case Heading():
                return f"{'#' * (block.level + 1)} {escaped(block.title)}"
            case Paragraph():
                return self.text(block.text)
            case Items():
                return "\n".join(f"- {self.text(entry)}" for entry in block.entries)
            case Table():
                return self.table(block)
            case Figure():
                return self.figure(block)

    def text(self, text: Text) -> str:
        found = []
        for inline in text:
            match inline:
                case str():
                    found.append(escaped(inline))
                case Code():
                    found.append(code(inline.text))
                case Ref():
                    found.append(self.places.get(inline.label, "?"))
                case Cite():
                    found.append(f" \\[{', '.join(str(self.cited[key]) for key in inline.keys)}\\]")
        return "".join(found)

    def caption(self, block: Table | Figure) -> str:
        kind = self.words.say("table" if isinstance(block, Table) else "figure")
        return f"**{kind} {self.places[block.label]}.** {self.text(block.caption)}"

    def table(self, table: Table) -> str:
        heads = [escaped(column.head) for column in table.columns]
        rules = ["---:" if column.numeric else "---" for column in table.columns]
        lines = [_row(heads), f"|{'|'.join(rules)}|"]
        for part in table.parts:
            if part.title:
                lines.append(_row([f"*{escaped(part.title)}*", *[""] * (len(table.columns) - 1)]))
            lines += [_row([_cell(cell) for cell in row.cells]) for row in part.rows]
        notes = [f"<sub>{escaped(' '.join(table.notes))}</sub>"] if table.notes else []
        return "\n\n".join([self.caption(table), "\n".join(lines), *notes])

    def figure(self, figure: Figure) -> str:
        alt = escaped(figure.alt)
        return f"{self.caption(figure)}\n\n![{alt}]({self.folder}/{file_name(figure)}.svg)"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    if not cell.text:
        return ""
    text = code(cell.text) if cell.code else escaped(cell.text)
    return f"**{text}**" if cell.bold else text
