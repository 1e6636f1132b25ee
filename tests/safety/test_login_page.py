"""Where ESPALIER_USERS is set, no page is drawn for anybody whom the login does not know or the list does not name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core.service import close_service, get_service

MAIN = str(Path(__file__).resolve().parents[2] / "pages" / "_main.py")


class Person(dict[str, Any]):
    """What st.user is."""

    @property
    def is_logged_in(self) -> bool:
        return bool(self)


@pytest.fixture(autouse=True)
def service() -> Iterator[None]:
    get_service().pause()
    yield
    close_service()


def opened(monkeypatch: pytest.MonkeyPatch, **claims: Any) -> tuple[list[str], str, bool]:
    """Keys of the buttons that such a person sees, the text, and whether it is a page of the workbench."""
    monkeypatch.setattr(st, "user", Person(claims))
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not app.exception
    text = "".join(str(element.proto.body) for element in app.get("html"))
    return [str(button.key) for button in app.button], text, "queue empty" in text


def test_without_a_list_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch)[2]


def test_a_stranger_is_asked_to_log_in_and_sees_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_USERS", "ann@x.org")
    buttons, text, inside = opened(monkeypatch)
    assert (buttons, inside) == (["login"], False)
    assert "GB free" not in text


def test_somebody_who_is_not_on_the_list_is_told_so_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_USERS", "ann@x.org")
    for claims in ({"email": "<b>eve@x.org"}, {"email": "ann@x.org", "email_verified": False}, {"sub": "17"}):
        buttons, text, inside = opened(monkeypatch, **claims)
        assert (buttons, inside) == (["logout"], False)
        assert "<b>eve" not in text


def test_who_is_on_the_list_enters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_USERS", "ann@x.org")
    assert opened(monkeypatch, email="Ann@x.org", email_verified=True)[2]


def test_a_token_that_is_none_closes_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_TOKEN", "short")
    buttons, text, inside = opened(monkeypatch)
    assert (buttons, inside) == ([], False)
    assert "ESPALIER_TOKEN has 5 characters" in text
