"""A document as HTML: one page that needs nothing else, or its body for a page of the app. No script, ever."""

from __future__ import annotations

from base64 import b64encode
from html import escape

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
    Reference,
    Table,
    Text,
    numbers_of,
    plain,
)
from core.report.numbers import Numbers
from core.report.svg import draw
from core.report.words import Words

STYLE = """
:root { --wall: #FAF8F4; --panel: #F1EDE4; --ink: #1F2933; --muted: #6B7280; --line: #DDD6C8; }
body { background: var(--wall); color: var(--ink); margin: 0; line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
"""
ARTICLE = """
.esp-report { font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
.esp-report a { color: inherit; text-underline-offset: 2px; }
.esp-report h1 { font-size: 1.75rem; font-weight: 600; line-height: 1.2; margin: 0 0 0.6rem; padding: 0; }
.esp-report h2 { font-size: 1.3rem; font-weight: 600; margin: 2.2rem 0 0.5rem; padding: 0; }
.esp-report h3 { font-size: 1.05rem; font-weight: 600; margin: 1.6rem 0 0.4rem; padding: 0; }
.esp-report p, .esp-report li { max-width: 78ch; margin: 0 0 0.7rem; }
.esp-report ul, .esp-report ol { padding-left: 1.3rem; margin: 0 0 1rem; }
.esp-report li { margin-bottom: 0.35rem; }
.esp-report .lead, .esp-report .note { color: var(--muted); }
.esp-report figure { margin: 1.2rem 0 1.6rem; padding: 0; }
.esp-report figcaption { font-size: 0.92rem; margin: 0 0 0.45rem; max-width: 78ch; }
.esp-report figcaption b { font-weight: 600; }
.esp-report .scroll { overflow-x: auto; }
.esp-report table { border-collapse: collapse; font-size: 0.86rem; border-top: 1.5px solid var(--ink);
  border-bottom: 1.5px solid var(--ink); margin: 0; }
.esp-report table.text { width: 100%; table-layout: fixed; }
.esp-report th, .esp-report td { border: 0; padding: 0.22rem 0.9rem 0.22rem 0; text-align: right; font-weight: 400;
  vertical-align: top; white-space: nowrap; color: inherit; background: none; }
.esp-report thead th { border-bottom: 1px solid var(--ink); vertical-align: bottom; color: var(--muted);
  white-space: normal; }
.esp-report .left { text-align: left; }
.esp-report td.left { white-space: normal; min-width: 11rem; }
.esp-report table.text td { min-width: 0; overflow-wrap: anywhere; }
.esp-report tr.part th { border-top: 1px solid var(--line); text-align: left; color: var(--muted);
  padding-top: 0.45rem; font-style: italic; }
.esp-report td b { font-weight: 700; }
.esp-report code { font-size: 0.92em; background: none; color: inherit; padding: 0; overflow-wrap: anywhere; }
.esp-report .note { font-size: 0.82rem; margin: 0.35rem 0 0; max-width: none; }
.esp-report svg, .esp-report img { max-width: 100%; min-width: 35rem; height: auto; display: block; }
.esp-report details { font-size: 0.86rem; margin: 0.4rem 0 0; }
.esp-report summary { color: var(--muted); cursor: pointer; }
"""


def page(document: Document) -> str:
    """The whole document as one file; figures are inside, as SVG."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">'
        f"<title>{escape(document.title)}</title><style>{STYLE}{ARTICLE}</style>"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="{document.language}">\n<head>{head}</head>\n<body>\n<main>\n'
        f"{article(document)}\n</main>\n</body>\n</html>\n"
    )


def article(document: Document, *, dark: bool = False, images: bool = False) -> str:
    """The document's body. images: figures as <img>, for pages that allow no SVG within their HTML."""
    return _Writer(document, dark=dark, images=images).article()


class _Writer:
    def __init__(self, document: Document, *, dark: bool, images: bool) -> None:
        self.document, self.dark, self.images = document, dark, images
        self.words = Words(document.language)
        self.numbers = Numbers(document.language)
        self.places = numbers_of(document.blocks)
        self.cited = {reference.key: place for place, reference in enumerate(document.cited(), 1)}

    def article(self) -> str:
        parts = [
            '<article class="esp-report">',
            f"<h1>{escape(self.document.title)}</h1>",
            f'<p class="lead">{self.text(self.document.lead)}</p>',
            *(self.block(block) for block in self.document.blocks),
            self.references(self.document.cited()),
            "</article>",
        ]
        return "\n".join(part for part in parts if part)

    def block(self, block: Block) -> str:
        match block:
            case Heading():
                return f"<h{block.level + 1}>{escape(block.title)}</h{block.level + 1}>"
            case Paragraph():
                return f"<p>{self.text(block.text)}</p>"
            case Items():
                entries = "".join(f"<li>{self.text(entry)}</li>\n" for entry in block.entries)
                return f"<ul>\n{entries}</ul>"
            case Table():
                return self.table(block)
            case Figure():
                return self.figure(block)

    def text(self, text: Text) -> str:
        found = []
        for inline in text:
            match inline:
                case str():
                    found.append(escape(inline))
                case Code():
                    found.append(f"<code>{escape(inline.text)}</code>")
                case Ref():
                    target = escape(inline.label.replace(":", "-"), quote=True)
                    found.append(f'<a href="#{target}">{self.places.get(inline.label, "?")}</a>')
                case Cite():
                    places = ", ".join(str(self.cited[key]) for key in inline.keys)
                    found.append(f" [{places}]")
        return "".join(found)

    def caption(self, block: Table | Figure) -> str:
        kind = self.words.say("table" if isinstance(block, Table) else "figure")
        place = self.places[block.label]
        return f"<figcaption><b>{escape(kind)} {place}.</b> {self.text(block.caption)}</figcaption>"

    def table(self, table: Table) -> str:
        label = escape(table.label.replace(":", "-"), quote=True)
        heads = "".join(
            f'<th scope="col"{_left(not column.numeric)}{_width(column.share)}>{escape(column.head)}</th>'
            for column in table.columns
        )
        rows = []
        for part in table.parts:
            if part.title:
                span = len(table.columns)
                rows.append(f'<tr class="part"><th scope="rowgroup" colspan="{span}">{escape(part.title)}</th></tr>')
            for row in part.rows:
                title = f' title="{escape(" ".join(row.runs), quote=True)}"' if row.runs and not table.of_text else ""
                cells = "".join(_cell(cell, not column.numeric)
                                for cell, column in zip(row.cells, table.columns, strict=True))  # fmt: skip
                rows.append(f"<tr{title}>{cells}</tr>")
        kind = ' class="text"' if table.of_text else ""
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
        return (
            f'<figure id="{label}">{self.caption(table)}<div class="scroll"><table{kind}>'
            f"<thead><tr>{heads}</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table></div>{notes}</figure>"
        )

    def figure(self, figure: Figure) -> str:
        label = escape(figure.label.replace(":", "-"), quote=True)
        drawn = draw(figure, self.numbers, dark=self.dark, standalone=False)
        if self.images:
            source = b64encode(drawn.encode()).decode()
            drawn = f'<img alt="{escape(figure.alt, quote=True)}" src="data:image/svg+xml;base64,{source}">'
        return f'<figure id="{label}">{self.caption(figure)}<div class="scroll">{drawn}</div></figure>'

    def references(self, cited: list[Reference]) -> str:
        if not cited:
            return ""
        entries = "".join(f"<li>{_reference(each)}</li>\n" for each in cited)
        return f"<h2>{escape(self.words.say('references'))}</h2>\n<ol>\n{entries}</ol>"


def _left(left: bool) -> str:
    return ' class="left"' if left else ""


def _width(share: float) -> str:
    return f' style="width:{100 * share:.0f}%"' if share else ""


def _cell(cell: Cell, left: bool) -> str:
    text = escape(cell.text)
    text = f"<code>{text}</code>" if cell.code and text else text
    return f"<td{_left(left)}>{f'<b>{text}</b>' if cell.bold else text}</td>"


def authors_of(reference: Reference) -> str:
    """Names as people read them: `Frantar and Alistarh`, `Ma et al.`."""
    names = [name.partition(",")[0] for name in reference.authors.split(" and ") if name]
    if names[-1:] == ["others"]:
        return f"{', '.join(names[:-1])} et al."
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _reference(reference: Reference) -> str:
    said = [authors_of(reference), f"<i>{escape(reference.title)}</i>", reference.where, reference.year]
    text = ", ".join(word if word.startswith("<i>") else escape(word) for word in said if word)
    url = reference.url
    link = f' <a href="{escape(url, quote=True)}">{escape(url)}</a>' if url.startswith("https://") else ""
    return f"{text}.{link}"


__all__ = ["ARTICLE", "article", "authors_of", "page", "plain"]
