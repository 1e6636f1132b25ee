"""The report's words in English and German. `{name}` stands for a part that is filled in."""

from __future__ import annotations

import re

from core.report.document import Inline, Language, Text
from core.report.words_de import GERMAN
from core.report.words_en import ENGLISH

_PART = re.compile(r"\{(\w+)\}")
_WORDS = {"en": ENGLISH, "de": GERMAN}


class Words:
    """The words of one language."""

    def __init__(self, language: Language) -> None:
        self.language = language
        self._words = _WORDS[language]

    def has(self, key: str) -> bool:
        return key in self._words

    def say(self, key: str, **parts: object) -> str:
        """A text with its parts filled in, as plain text."""
        return _PART.sub(lambda match: str(parts[match[1]]), self._words[key])

    def fill(self, key: str, **parts: Inline | Text) -> Text:
        """The same as running text: parts may be more than text."""
        found: list[Inline] = []
        text, last = self._words[key], 0
        for match in _PART.finditer(text):
            found.append(text[last : match.start()])
            part = parts[match[1]]
            found += part if isinstance(part, tuple) else [part]
            last = match.end()
        found.append(text[last:])
        return tuple(part for part in found if part != "")

    def listing(self, words: list[str], by: str = "and") -> str:
        """`a, b and c`."""
        if len(words) < 2:
            return "".join(words)
        return f"{', '.join(words[:-1])} {self.say(by)} {words[-1]}"
