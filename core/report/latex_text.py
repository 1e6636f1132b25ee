"""Text for LaTeX: whatever it holds, it is shown and never read as a command. Works with pdfLaTeX and LuaLaTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from core.report.document import Reference

_SIGNS = {  # brackets and stars may follow a command, such as the end of a row, that would take them for its own
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "*": "{*}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "\u00a0": "~", "\u202f": r"\,", "\u2060": "", "\u200b": "", "\u00ad": "",
    "−": r"\ensuremath{-}", "±": r"\ensuremath{\pm}", "×": r"\ensuremath{\times}", "·": r"\ensuremath{\cdot}",
    "÷": r"\ensuremath{\div}", "√": r"\ensuremath{\surd}", "≤": r"\ensuremath{\leq}", "≥": r"\ensuremath{\geq}",
    "≈": r"\ensuremath{\approx}", "≠": r"\ensuremath{\neq}", "→": r"\ensuremath{\rightarrow}",
    "←": r"\ensuremath{\leftarrow}", "∞": r"\ensuremath{\infty}", "‖": r"\ensuremath{\Vert}",
    "▲": r"\ensuremath{\blacktriangle}", "▼": r"\ensuremath{\blacktriangledown}",
    "²": r"\textsuperscript{2}", "³": r"\textsuperscript{3}", "¹": r"\textsuperscript{1}",
    "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "°": r"\textdegree{}", "µ": r"\ensuremath{\mu}",
    "§": r"\S{}", "€": r"\texteuro{}", "…": r"\ldots{}", "–": "--", "—": "---", "‑": "-", "•": r"\textbullet{}",
    "“": r"\textquotedblleft{}", "”": r"\textquotedblright{}", "„": r"\quotedblbase{}", "‚": r"\quotesinglbase{}",
    "‘": r"\textquoteleft{}", "’": r"\textquoteright{}", "«": r"\guillemotleft{}", "»": r"\guillemotright{}",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}",
    "ł": r"\l{}", "Ł": r"\L{}", "å": r"\aa{}", "Å": r"\AA{}", "¿": r"\textquestiondown{}",
    "¡": r"\textexclamdown{}", "©": r"\textcopyright{}", "®": r"\textregistered{}", "™": r"\texttrademark{}",
}  # fmt: skip
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "mu", "nu", "xi",
    "pi", "rho", "sigma", "tau", "phi", "chi", "psi", "omega",
}  # fmt: skip
_CAPITALS = {"Gamma", "Delta", "Theta", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u0304": "=", "\u0307": ".",
    "\u0306": "u", "\u030c": "v", "\u030b": "H", "\u0327": "c", "\u0328": "k", "\u030a": "r",
}  # fmt: skip
_LIGATURES = re.compile(r"-(?=-)|,(?=,)")


def escaped(text: str) -> str:
    """The text, to be set as it is. Letters that no common font has are shown as `[U+4E2D]`; line ends are spaces."""
    text = _LIGATURES.sub(lambda match: f"{match[0]}\u200c", text)
    return "".join(_letter(letter) for letter in text)


def _letter(letter: str) -> str:
    if letter in _SIGNS:
        return _SIGNS[letter]
    if letter == "\u200c":
        return "{}"
    if " " <= letter <= "~":
        return letter
    if letter.isspace():
        return " "
    if unicodedata.category(letter) in ("Cc", "Cf", "Mn", "Me"):
        return ""
    split = unicodedata.normalize("NFD", letter)
    base, mark = split[0], split[1:]
    if base.isascii() and base.isalpha() and mark in _ACCENTS:
        accent = _ACCENTS[mark]
        dotless = {"i": r"\i{}", "j": r"\j{}"}.get(base, base) if accent not in "ckH" else base
        return f"\\{accent}{{{dotless}}}"
    return _greek(letter) or f"\\texttt{{{{[}}U+{ord(letter):04X}{{]}}}}"


def _greek(letter: str) -> str:
    words = unicodedata.name(letter, "").split()
    if len(words) != 4 or words[0] != "GREEK" or words[2] != "LETTER":
        return ""
    name = words[3].lower() if words[1] == "SMALL" else words[3].capitalize()
    return f"\\ensuremath{{\\{name}}}" if name in _GREEK | _CAPITALS else ""


def code(text: str) -> str:
    """Text in the letters of a machine; it may break after signs."""
    parts = re.split(r"(?<=[-,=/_:. ])", text)
    return "\\texttt{" + "\\allowbreak{}".join(escaped(part) for part in parts if part) + "}"


def bibliography(references: Iterable[Reference]) -> str:
    """references.bib: an entry for each work, its title in braces so that capitals stay."""
    return "\n".join(_entry(each) for each in references)


def _entry(reference: Reference) -> str:
    fields = {
        "author": escaped(reference.authors),
        "title": f"{{{escaped(reference.title)}}}",
        "year": escaped(reference.year),
        "howpublished": escaped(reference.where).replace("-", "--") if reference.where else "",
        "note": f"\\url{{{reference.url}}}" if re.fullmatch(r"https://[\w./:-]+", reference.url) else "",
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{{reference.key},", *lines, "}", ""])
