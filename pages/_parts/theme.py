"""The look that configuration cannot say: one style sheet, and small helpers that show text as text."""

import re
from base64 import b64encode
from html import escape
from pathlib import Path

import streamlit as st

from core.espalier import Branch, espalier_svg
from core.glossary import meaning

STYLES = Path(__file__).with_name("theme.css")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&^=@])")

_LOGO = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 32" width="{width}" height="32">'
    '<g fill="{leaf}"><rect x="3" y="5" width="9" height="5"/><rect x="20" y="5" width="9" height="5"/>'
    '<rect x="3" y="14" width="9" height="5"/><rect x="20" y="14" width="5" height="5"/>'
    '<rect x="6" y="23" width="6" height="5"/><rect x="20" y="23" width="9" height="5"/></g>'
    '<g fill="none" stroke="{cut}" stroke-width="1"><rect x="25.5" y="14.5" width="4" height="4"/>'
    '<rect x="2.5" y="23.5" width="3" height="4"/></g>'
    '<rect x="15" y="2" width="2" height="29" rx="1" fill="{ink}"/>{word}</svg>'
)


def dark() -> bool:
    """Whether this visitor sees the dark page."""
    return st.context.theme.type == "dark"


def icon() -> str:
    """The mark, for the browser's tab; its greens and reds are legible on light and on dark."""
    return _LOGO.format(width=32, leaf="#4C8F76", cut="#D0694F", ink="#6B7280", word="")


def apply() -> None:
    """Style sheet and word mark. Called once a script run, before anything is shown."""
    colours = ("#7FB69A", "#E07A5F", "#E8E6E1") if dark() else ("#2F6B57", "#C8553D", "#1F2933")
    word = (
        f'<text x="40" y="23" font-family="system-ui,sans-serif" font-size="20" font-weight="600" '
        f'letter-spacing="0.2" fill="{colours[2]}">Espalier</text>'
    )
    st.logo(_data(_LOGO.format(width=150, leaf=colours[0], cut=colours[1], ink=colours[2], word=word)), size="medium")
    st.html(STYLES)


def _data(svg: str) -> str:
    return "data:image/svg+xml;base64," + b64encode(svg.encode()).decode()


def plain(text: object) -> str:
    """Text for a Markdown label, shown as it is: no emphasis, links, formulas, emoji codes or colour directives."""
    return _MARKDOWN.sub(r"\\\1", str(text)).replace("\\:", "\\:\u2060").replace("\n", " ")


def html(text: object) -> str:
    """Text for st.html, shown as it is."""
    return escape(str(text), quote=True)


def figure(branches: list[Branch], *, scale: str = "medium", label: str = "") -> None:
    """Show the espalier. st.html takes no SVG; Markdown does."""
    st.markdown(espalier_svg(branches, scale=scale, label=label), unsafe_allow_html=True)  # type: ignore[arg-type]


def term(word: str, shown: str = "") -> str:
    """A word of the glossary as HTML that says its meaning to who points at it; `shown` in its place."""
    return f'<abbr class="esp-term" title="{html(meaning(word))}">{html(shown or word)}</abbr>'


def heading(title: str, line: str = "") -> None:
    """A page's title, and one quiet line beneath it."""
    lead = f'<p class="esp-lead">{html(line)}</p>' if line else ""
    st.html(f'<h1 class="esp-title">{html(title)}</h1>{lead}')


def note(message: str, *, level: str = "warning") -> str:
    """A remark beside a field, as HTML: `error`, `warning` or `info`, told apart by sign and weight."""
    sign = {"error": "×", "warning": "!", "info": "i"}[level]
    role = ' role="alert"' if level == "error" else ""
    return f'<p class="esp-note esp-{level}"{role}><span aria-hidden="true">{sign}</span>{html(message)}</p>'


# --- numbers in words


def count(number: int) -> str:
    """Parameters as people say them: 134.5 M, 1.10 B."""
    if number >= 1_000_000_000:
        return f"{number / 1e9:.2f} B"
    if number >= 1_000_000:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.1f} k" if number >= 10_000 else f"{number:,}"


def size(number: float) -> str:
    """Bytes, in units of 10⁹ or 10⁶."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def percent(share: float) -> str:
    """A share with one decimal: 17.4 %; the space does not break."""
    return f"{100 * share:.1f}\u00a0%"


def duration(seconds: float) -> str:
    """Rough time: 40 s, 9 min, 2 h 10 min."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(round(seconds / 300) * 5, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
