"""The token lens on a telephone: what a token says is reached by a tap, and lies where it can be read."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from core.models.builtin import builtin_directory
from tests.browser.test_chat import ask, open_chat, ready

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

SEEN = """() => {
  const tips = [...document.querySelectorAll('.esp-said .esp-tip')].filter(tip => tip.checkVisibility());
  const bar = document.querySelector('[data-testid="stBottom"]').firstElementChild.getBoundingClientRect();
  const head = document.querySelector('header').getBoundingClientRect();
  return tips.map(tip => {
    const box = tip.getBoundingClientRect();
    return {inside: box.left >= 0 && box.right <= innerWidth && box.top >= head.bottom && box.bottom <= bar.top,
            width: box.width, text: tip.innerText};
  });
}"""


def test_a_tap_on_a_token_shows_what_dense_would_say_inside_the_screen(app: tuple[str, Path], browser: Any) -> None:
    address, _ = app
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    open_chat(page, address, f"?model={quote(str(builtin_directory()))}")  # the dense model's folder, beside itself
    ask(page, "Name three trees.")
    page.wait_for_selector(".st-key-chat_again", timeout=300_000)
    ready(page)
    page.locator(".st-key-chat_read").get_by_text("Token lens").tap()
    page.wait_for_selector(".esp-said .esp-tok", timeout=300_000)
    ready(page)
    assert page.evaluate(SEEN) == []
    assert page.locator("article.esp-answer").count() == 2
    tokens = page.locator(".esp-said .esp-tok")
    count = tokens.count()
    for place in (0, count // 2 - 2, count // 2, count - 2):  # of the first answer, then of the second
        tokens.nth(place).tap(position={"x": 2, "y": 6})
        (tip,) = page.evaluate(SEEN)
        assert tip["inside"], tip
        assert tip["width"] > 300
        assert "dense would say" in tip["text"]
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    page.locator(".esp-prompt").first.tap()
    assert page.evaluate(SEEN) == []
    context.close()
