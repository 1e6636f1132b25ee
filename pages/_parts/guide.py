"""What helps on every page: the words, and a tour of less than a minute, offered once."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import streamlit as st

from core import glossary
from core.errors import DiskFullError
from core.service import Service, get_service
from pages._parts import theme

SEEN = "tour"  # in the home's preferences
STEP = "tour_step"


class Step(NamedTuple):
    """One stop of the tour."""

    page: str
    title: str
    words: str


TOUR = (
    Step("launch.py", "Launch", "Say what goes: a method, how much, in which layers. The right side shows the result "
         "before anything runs: what is left, what it costs, who can load it."),
    Step("runs.py", "Runs", "What you queue waits here, runs in a process of its own and goes on when you close this "
         "page. Open a run to see its numbers beside the dense model’s."),
    Step("compare.py", "Compare", "Tick runs, pick a chart. Differences stand with 95 % intervals, and the address bar "
         "holds the view: send it to somebody."),
    Step("anatomy.py", "Anatomy", "Where it was cut, what decided, and which layers hurt. A scan tries each layer by "
         "itself and proposes a range."),
    Step("chat.py", "Chat", "The pruned model and the original answer the same prompt, side by side. That is all: "
         "begin with the quick look on Launch."),
)  # fmt: skip


def show(page: str) -> None:
    """The button with the words, and the tour where it is wanted. `page`: title of the page beneath."""
    service = get_service()
    with (
        st.container(key="guide", horizontal=True, horizontal_alignment="right"),
        st.popover("Words", key="guide_words", type="tertiary", icon=":material/help:"),
    ):
        _words()
    if STEP in st.session_state:
        _step(service)
    elif page == "Launch" and not service.read_only and not service.preferences.read().get(SEEN):
        _offer(service)


def _words() -> None:
    if st.button("Take the tour", key="tour_again", icon=":material/signpost:", type="tertiary"):
        _go(0)
    asked = st.text_input("Find a word", key="guide_search", placeholder="KL, recovery, mask …") or ""
    found = glossary.search(asked)
    if not found:
        st.html(f'<p class="esp-fact">No word has {theme.html(asked)} in it.</p>')
        return
    items = "".join(f"<dt>{theme.html(term)}</dt><dd>{theme.html(said)}</dd>" for term, said in found.items())
    st.html(f'<dl class="esp-words">{items}</dl>')


def _offer(service: Service) -> None:
    with st.container(key="tour_offer", horizontal=True, vertical_alignment="center"):
        st.html(f"<p>New here? {len(TOUR)} stops, under a minute.</p>", width="content")
        if st.button("Take the tour", key="tour_start", icon=":material/signpost:"):
            _go(0)
        st.button("No, thanks", key="tour_no", type="tertiary", on_click=_end, args=(service,))


def _step(service: Service) -> None:
    place = int(st.session_state[STEP])
    step = TOUR[place]
    with st.container(key="tour", horizontal=True, vertical_alignment="center"):
        where = f"{place + 1} of {len(TOUR)} · {step.title}"
        st.html(f'<p role="status"><b>{theme.html(where)}</b> {theme.html(step.words)}</p>')
        if place + 1 < len(TOUR):
            if st.button("Next", key="tour_next", type="primary", icon=":material/arrow_forward:"):
                _go(place + 1)
            st.button("End tour", key="tour_end", type="tertiary", on_click=_end, args=(service,))
        else:
            st.button("Done", key="tour_end", type="primary", on_click=_end, args=(service,))


def _go(place: int) -> None:
    st.session_state[STEP] = place
    st.switch_page(TOUR[place].page, query_params={})


def _end(service: Service) -> None:
    """The tour is not offered again in this home."""
    st.session_state.pop(STEP, None)
    if not service.read_only:
        with suppress(DiskFullError):  # then it is offered again
            service.preferences.write(**{SEEN: "seen"})
