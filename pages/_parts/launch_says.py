"""Remarks beside fields: places are reserved while the form is drawn and filled once it is known what is wrong."""

from collections.abc import Iterable
from typing import Any

import streamlit as st

from core.errors import Problem
from pages._parts.theme import note


class Says:
    """Places for remarks, by the dotted field they are about."""

    def __init__(self) -> None:
        self._places: dict[str, Any] = {}

    def place(self, *fields: str) -> None:
        """Reserve a place here for what is to be said about `fields`."""
        place = st.container(key="says_" + fields[0].replace(".", "_"))
        self._places.update(dict.fromkeys(fields, place))

    def fill(self, problems: Iterable[Problem]) -> list[Problem]:
        """Show each problem once, beside its field; return those whose field has no place."""
        homeless = []
        for problem in dict.fromkeys(problems):
            place = self._find(problem.field)
            if place is None:
                homeless.append(problem)
            else:
                place.html(note(str(problem), level=problem.level))
        return homeless

    def _find(self, field: str) -> Any | None:
        parts = [part for part in field.split(".") if not part.isdigit()]
        for end in range(len(parts), 0, -1):
            place = self._places.get(".".join(parts[:end]))
            if place is not None:
                return place
        return None
