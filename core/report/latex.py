"""A document as LaTeX: booktabs tables, figures by pgfplots from CSV files beside it, references.bib. No browser.

Compiles with pdflatex (or lualatex), bibtex, and twice again: `latexmk -pdf report.tex`.
"""

from __future__ import annotations

import math
import re

from core.charts_style import method_colour, palette
from core.report.document import (
    Axis,
    Block,
    Cell,
    Cite,
    Code,
    Column,
    Document,
    Figure,
    Heading,
    Items,
    Paragraph,
    Part,
    Ref,
    Series,
    Table,
    Text,
)
from core.report.latex_text import bibliography, code, escaped
from core.report.numbers import Numbers
from core.report.signs import Sign, sign_of
from core.report.ticks import Scale, scales
from core.report.words import Words

LONGEST = 46
"""Rows of a table on one page; a longer one goes on in another."""
_DASHES = ("solid", "dashed", "dotted", "dashdotted")
_PREAMBLE = r"""\documentclass[11pt,a4paper]{article}
%% latexmk -pdf %(stem)s.tex, or: pdflatex %(stem)s; bibtex %(stem)s; pdflatex %(stem)s; pdflatex %(stem)s
\usepackage{iftex}
\ifPDFTeX
  \usepackage[T1]{fontenc}
  \usepackage[utf8]{inputenc}
  \usepackage{lmodern}
\else
  \usepackage{fontspec}
\fi
\usepackage{textcomp,amssymb}
\usepackage[%(babel)s]{babel}
\usepackage[margin=2.3cm]{geometry}
\usepackage{array,booktabs,longtable,graphicx,xcolor}
\usepackage{pgfplots}
\pgfplotsset{compat=1.16}
\usepackage{url}
\usepackage[hidelinks]{hyperref}
\newsavebox{\espbox}
\newenvironment{fit}{\begin{lrbox}{\espbox}}{\end{lrbox}%%
  \ifdim\wd\espbox>\linewidth\resizebox{\linewidth}{!}{\usebox{\espbox}}\else\usebox{\espbox}\fi}
\setlength{\emergencystretch}{3em}
\setlength{\belowcaptionskip}{5pt}
"""


def files(document: Document, stem: str = "report") -> dict[str, str]:
    """Files by name: `<stem>.tex`, references.bib, and under `figures/` a CSV file for each line of a figure."""
    writer = _Writer(document, stem)
    found = {f"{stem}.tex": writer.whole(), "references.bib": bibliography(document.cited())}
    for figure in document.figures():
        for place, series in enumerate(figure.series, 1):
            found[_csv_name(figure, place)] = _csv(figure, series)
    return found


def _csv_name(figure: Figure, place: int) -> str:
    stem = re.sub(r"[^a-z0-9-]+", "-", figure.label.lower()).removeprefix("fig-")
    return f"figures/{stem}-{place:02d}.csv"


def _csv(figure: Figure, series: Series) -> str:
    """x, y, how far the bar reaches below and above, and the ids of the runs."""
    lines = ["x,y,minus,plus,runs"]
    for point in series.points:
        middle = point.y if figure.bars == "y" else point.x
        below, above = middle - point.low, point.high - middle
        reach = [f"{each:.6g}" if math.isfinite(each) else "0" for each in (below, above)]
        lines.append(f"{point.x:.6g},{point.y:.6g},{','.join(reach)},{' '.join(point.runs)}")
    return "\n".join(lines) + "\n"


class _Writer:
    def __init__(self, document: Document, stem: str) -> None:
        self.document, self.stem = document, stem
        self.words, self.numbers = Words(document.language), Numbers(document.language)
        series = [each for figure in document.figures() for each in figure.series]
        methods = dict.fromkeys(each.method for each in series)
        self.colours = {method: f"esp{place}" for place, method in enumerate(methods, 1)}
        self.signs = {sign_of(each).name: sign_of(each) for each in series}

    def whole(self) -> str:
        babel = "ngerman" if self.document.language == "de" else "english"
        parts = [
            _PREAMBLE % {"stem": self.stem, "babel": babel},
            *(f"\\definecolor{{{name}}}{{HTML}}{{{method_colour(method, False).lstrip('#').upper()}}}"
              for method, name in self.colours.items()),
            f"\\definecolor{{espink}}{{HTML}}{{{palette(False).ink.lstrip('#')}}}",
            f"\\definecolor{{espmuted}}{{HTML}}{{{palette(False).muted.lstrip('#')}}}",
            *(_mark(sign) for sign in self.signs.values()),
            f"\\title{{{escaped(self.document.title)}}}\n\\author{{}}\n\\date{{}}",
            "\\begin{document}",
            *(["\\shorthandoff{\"}"] if self.document.language == "de" else []),
            f"\\maketitle\n\\noindent {self.text(self.document.lead)}\n",
            *(self.block(block) for block in self.document.blocks),
            "\\bibliographystyle{plain}\n\\bibliography{references}\n\\end{document}\n",
        ]  # fmt: skip
        return "\n".join(parts)

    def block(self, block: Block) -> str:
        match block:
            case Heading():
                floats = "\\clearpage\n" if block.level == 1 and block.title == self.words.say("appendix") else ""
                return f"{floats}\\{'sub' * (block.level - 1)}section{{{escaped(block.title)}}}\n"
            case Paragraph():
                return f"{self.text(block.text)}\n"
            case Items():
                entries = "\n".join(f"  \\item {self.text(entry)}" for entry in block.entries)
                return f"\\begin{{itemize}}\n{entries}\n\\end{{itemize}}\n"
            case Table():
                return self.long_table(block) if block.of_text else self.tables(block)
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
                    found.append(f"\\ref{{{inline.label}}}")
                case Cite():
                    found.append(f"~\\cite{{{','.join(inline.keys)}}}")
        return "".join(found)

    # --- tables

    def tables(self, table: Table) -> str:
        """A table of numbers, in several where it is longer than a page."""
        found = []
        for place, parts in enumerate(_pages(table.parts)):
            more = "" if not place else f" ({escaped(self.words.say('continued'))})"
            label = f"\\label{{{table.label}}}" if not place else ""
            again = "\\addtocounter{table}{-1}\n" if place else ""
            found.append(
                f"\\begin{{table}}[htbp]\n\\centering\\footnotesize\n{again}"
                f"\\caption{{{self.text(table.caption)}{more}}}{label}\n"
                f"\\begin{{fit}}\\begin{{tabular}}{{{_spec(table)}}}\n\\toprule\n"
                f"{self.heads(table)}\n\\midrule\n{self.rows(table, parts)}\\bottomrule\n"
                "\\end{tabular}\\end{fit}\n" + _notes(table) + "\\end{table}\n"
            )
        return "\n".join(found)

    def heads(self, table: Table) -> str:
        return " & ".join(_head(column, stacked=not table.of_text) for column in table.columns) + r" \\"

    def rows(self, table: Table, parts: list[Part]) -> str:
        lines = []
        for place, part in enumerate(parts):
            if place:
                lines.append("\\addlinespace")
            if part.title:
                lines.append(f"\\multicolumn{{{len(table.columns)}}}{{l}}{{\\emph{{{escaped(part.title)}}}}} \\\\")
            lines += [" & ".join(_cell(cell) for cell in row.cells) + r" \\" for row in part.rows]
        return "\n".join(lines) + "\n"

    def long_table(self, table: Table) -> str:
        """A table of text, over as many pages as it takes."""
        spec = "".join(
            f">{{\\raggedright\\arraybackslash}}p{{\\dimexpr{column.share:.3f}\\linewidth-2\\tabcolsep\\relax}}"
            for column in table.columns
        )
        head = f"\\toprule\n{self.heads(table)}\n\\midrule\n"
        return (
            f"{{\\scriptsize\n\\begin{{longtable}}{{{spec}}}\n"
            f"\\caption{{{self.text(table.caption)}}}\\label{{{table.label}}}\\\\\n{head}\\endfirsthead\n"
            f"{head}\\endhead\n{self.rows(table, list(table.parts))}\\bottomrule\n\\end{{longtable}}\n}}\n"
        )

    # --- figures

    def figure(self, figure: Figure) -> str:
        x, y = scales(figure, self.numbers)
        names = figure.y.kind == "names"
        height = f"{2.4 + 1.0 * len(figure.y.names):.1f}cm" if names else "8.2cm"
        width = "0.62\\linewidth" if names else "0.94\\linewidth"
        columns = 2 if max((len(series.name) for series in figure.series), default=0) > 32 else 3
        options = [
            f"width={width}, height={height}, scale only axis={'true' if names else 'false'}",
            f"xlabel={{{_title(figure.x)}}}, ylabel={{{_title(figure.y)}}}",
            *_ticks("x", x), *_ticks("y", y),
            *(["y dir=reverse"] if names else []),
            "grid=major, grid style={espmuted!25}, tick align=outside, tick pos=left, axis line style={espmuted}",
            "tick label style={font=\\footnotesize}, label style={font=\\small, align=center}",
            "clip=false, legend style={at={(0.5,0)}, yshift=-38pt, anchor=north, draw=none, font=\\footnotesize, "
            f"legend columns={columns}, /tikz/every even column/.append style={{column sep=6pt}}}}, "
            "legend cell align=left",
        ]  # fmt: skip
        body = [*self.levels(figure), *self.connectors(figure)]
        for place, series in enumerate(figure.series, 1):
            body += self.plot(figure, series, _csv_name(figure, place))
        joined = ",\n  ".join(options)
        lines = "\n".join(body)
        return (
            f"\\begin{{figure}}[htbp]\n\\centering\n\\begin{{tikzpicture}}\n\\begin{{axis}}[\n  {joined}]\n{lines}\n"
            f"\\end{{axis}}\n\\end{{tikzpicture}}\n\\caption{{{self.text(figure.caption)}}}\\label{{{figure.label}}}\n"
            "\\end{figure}\n"
        )

    def plot(self, figure: Figure, series: Series, file: str) -> list[str]:
        colour, sign = self.colours[series.method], sign_of(series)
        fill = "white" if sign.hollow else colour
        rim = f"{colour}, line width=1pt" if sign.hollow else "espink, line width=0.4pt"
        way = f"{figure.bars} dir=both, {figure.bars} explicit"
        line = f"line width=0.9pt, {_DASHES[series.variant % 4]}" if series.line else "only marks"
        errors = f"{figure.bars} error minus=minus, {figure.bars} error plus=plus"
        return [
            f"\\addplot[{colour}, {line}, mark=esp-{sign.name}, mark options={{solid, fill={fill}, draw={rim}}},",
            f"  error bars/.cd, {way}, error mark=none, error bar style={{{colour}, solid, line width=0.7pt}}]",
            f"  table[col sep=comma, x=x, y=y, {errors}]{{{file}}};",
            f"\\addlegendentry{{{escaped(series.name)}}}",
        ]

    def levels(self, figure: Figure) -> list[str]:
        found = []
        for level in figure.levels:
            value = f"{level.value:.6g}"
            at = ["{rel axis cs:0,0}|-{axis cs:%s,%s}", "{rel axis cs:1,0}|-{axis cs:%s,%s}"]
            ends = [each % ("1" if figure.x.kind == "log" else "0", value) for each in at]
            where = "above left"
            if figure.bars == "x":
                ends = [f"{{axis cs:{value},0}}|-{{rel axis cs:0,{end}}}" for end in (0, 1)]
                where = "above"
            label = f"node[{where}, font=\\scriptsize, inner sep=1.5pt]{{{escaped(level.text)}}}"
            found.append(f"\\draw[espmuted, dashed] ({ends[0]}) -- ({ends[1]}) {label};")
        return found

    def connectors(self, figure: Figure) -> list[str]:
        if figure.y.kind != "names" or len(figure.series) != 2:
            return []
        both = zip(figure.series[0].points, figure.series[1].points, strict=True)
        return [
            f"\\draw[espmuted] (axis cs:{one.x:.6g},{one.y:.6g}) -- (axis cs:{two.x:.6g},{two.y:.6g});"
            for one, two in both
        ]


def _pages(parts: tuple[Part, ...]) -> list[list[Part]]:
    """Parts that fit on a page together; a part that is longer than a page is cut."""
    found: list[list[Part]] = [[]]
    used = 0
    for part in parts:
        rows = list(part.rows)
        while rows:
            room = LONGEST - used - bool(part.title)
            if used and len(rows) > room:
                found.append([])
                used = 0
                continue
            taken, rows = rows[: max(room, 1)], rows[max(room, 1) :]
            found[-1].append(Part(part.title, tuple(taken)))
            used += len(taken) + bool(part.title)
    return [each for each in found if each]


def _spec(table: Table) -> str:
    return "".join("r" if column.numeric else "l" for column in table.columns)


def _notes(table: Table) -> str:
    if not table.notes:
        return ""
    return f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\scriptsize {escaped(' '.join(table.notes))}}}\n"


def _head(column: Column, *, stacked: bool) -> str:
    """Head of a column; stacked: in short lines, so that it is no wider than its numbers."""
    lines = re.split(r" (?=[\[(])|(?<=,) ", column.head) if stacked and column.numeric else [column.head]
    if len(lines) == 1:
        return escaped(lines[0])
    joined = r"\\".join(escaped(line) for line in lines)
    return f"\\shortstack[r]{{{joined}}}"


def _cell(cell: Cell) -> str:
    text = code(cell.text) if cell.code and cell.text else escaped(cell.text)
    return f"\\textbf{{{text}}}" if cell.bold and text else text


def _title(axis: Axis) -> str:
    """Title of an axis, its note in a line of its own."""
    note = f"\\\\{{\\footnotesize {escaped(axis.note)}}}" if axis.note else ""
    return escaped(axis.title) + note


def _ticks(axis: str, scale: Scale) -> list[str]:
    """Bounds, places and texts of ticks: written here, so that they are in the document's language."""
    low, high = sorted((scale.low, scale.high))
    places = ",".join(f"{place:.6g}" for place in scale.ticks)
    texts = ",".join("{" + escaped(text).replace(",", "{,}") + "}" for text in scale.texts)
    mode = [f"{axis}mode=log"] if scale.log else []
    return [*mode, f"{axis}min={low:.6g}, {axis}max={high:.6g}, {axis}tick={{{places}}}, {axis}ticklabels={{{texts}}}"]


def _mark(sign: Sign) -> str:
    """The sign as a plot mark of pgfplots, in points, y upwards; without a dot, which would colour the next mark."""
    places = [f"\\pgfpoint{{{0.42 * x:.2f}pt}}{{{-0.42 * y:.2f}pt}}" for x, y in sign.outline]
    path = f"\\pgfpathmoveto{{{places[0]}}}" + "".join(f"\\pgfpathlineto{{{place}}}" for place in places[1:])
    return f"\\pgfdeclareplotmark{{esp-{sign.name}}}{{{path}\\pgfpathclose\\pgfusepathqfillstroke}}"
