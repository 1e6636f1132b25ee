"""First-time guidance: the words on every page, the tour, and empty states that lead on."""

from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.errors import UnknownNameError
from core.glossary import TERMS, meaning, search
from core.service import Service
from pages._parts.guide import TOUR

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
PAGES = sorted(path.name for path in Path(MAIN).parent.glob("*.py") if path.name != "_main.py")
LEADS_ON = {
    "launch.py": "launch_quick_look",
    "runs.py": "runs_quick",
    "compare.py": "compare_quick",
    "anatomy.py": "anatomy_quick",
}
"""Buttons that an empty page offers; the others are found by looking."""


def open_page(page: str = "launch.py") -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.switch_page(page).run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def keys(app: AppTest) -> set[str]:
    return {str(button.key) for button in app.button}


def test_a_word_is_found_by_its_name_or_its_meaning_and_is_the_same_everywhere() -> None:
    assert next(iter(search("perplexity"))) == "perplexity"
    assert "fidelity" in search("kl divergence mean")
    assert search("") == dict(TERMS)
    assert search("<b>") == {}
    with pytest.raises(UnknownNameError, match="perplexity"):
        meaning("perplexty")


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_the_words_and_an_empty_one_leads_on(page: str, service: Service) -> None:
    app = open_page(page)
    assert app.text_input(key="guide_search") is not None
    assert TERMS["KV group"] in html(app)
    own = keys(app) - {"tour_again", "tour_start", "tour_no"}
    assert own, page
    assert LEADS_ON.get(page, next(iter(own))) in own


def test_words_that_are_not_there_are_said_as_text(service: Service) -> None:
    app = open_page("runs.py")
    app.text_input(key="guide_search").set_value("<i>x").run()
    assert "No word has &lt;i&gt;x in it." in html(app)


def test_the_tour_is_read_in_less_than_a_minute() -> None:
    words = " ".join(f"{step.title} {step.words}" for step in TOUR).split()
    assert len(words) < 180  # at three words a second
    assert {step.page for step in TOUR} <= set(PAGES)


def test_the_tour_goes_from_page_to_page_and_is_not_offered_again(
    service: Service, run_folder: Any, home: Path
) -> None:
    run_folder("dense")
    run_folder("taylor", {"method": "taylor", "ratio": 0.3, "layers": [4, 25]})
    app = open_page()
    app.button(key="tour_start").click().run()
    seen = []
    for _ in TOUR:
        assert not app.exception
        seen.append(next(step.title for step in TOUR if step.words.split(".")[0] in html(app)))
        titles = [element for element in html(app).splitlines() if "esp-title" in element]
        assert any(f">{seen[-1]}<" in title for title in titles), seen[-1]
        if "tour_next" in keys(app):
            app.button(key="tour_next").click().run()
    assert seen == [step.title for step in TOUR]
    app.button(key="tour_end").click().run()
    assert not {"tour_end", "tour_next", "tour_start"} & keys(app)
    assert service.preferences.read()["tour"] == "seen"
    assert "tour_start" not in keys(open_page())


def test_the_tour_can_be_declined_once_for_all_and_taken_all_the_same(service: Service) -> None:
    app = open_page()
    app.button(key="tour_no").click().run()
    assert "tour_start" not in keys(app)
    assert "tour_start" not in keys(open_page())
    app.button(key="tour_again").click().run()
    assert "tour_next" in keys(app)
    app.button(key="tour_end").click().run()
    assert "tour_next" not in keys(app)
