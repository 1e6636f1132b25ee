"""A document as files: which there are in each format, as a folder or as one zip."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Literal

from core.errors import InputError
from core.files import write_atomic
from core.report import html, latex, markdown
from core.report.document import Document

Format = Literal["html", "markdown", "latex"]
FORMATS: tuple[Format, ...] = ("html", "markdown", "latex")
NUMBERS = "numbers.csv"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same document gives the same bytes


def files(document: Document, form: Format, stem: str = "report") -> dict[str, bytes]:
    """Content by name. HTML is one file that needs no other; beside all lies numbers.csv, every number unrounded."""
    match form:
        case "html":
            texts = {f"{stem}.html": html.page(document)}
        case "markdown":
            texts = markdown.pages(document, stem)
        case "latex":
            texts = latex.files(document, stem)
        case _:
            raise InputError(f"There is no format {form!r}.", f"Choose one of {', '.join(FORMATS)}.")
    numbers = NUMBERS if stem == "report" else f"{stem}-{NUMBERS}"
    return {name: text.encode() for name, text in texts.items()} | {numbers: document.data}


def write(document: Document, form: Format, out: Path, stem: str = "report") -> list[Path]:
    """Write the files under a folder, each whole or not at all; returns them, the document first."""
    found = []
    for name, content in files(document, form, stem).items():
        path = out / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content.decode())
        except OSError as error:
            raise InputError(
                f"{path} cannot be written: {error.strerror or error}.", "Choose another --out."
            ) from error
        found.append(path)
    return found


def zipped(document: Document, form: Format, stem: str = "report") -> bytes:
    """The files as one zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files(document, form, stem).items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
