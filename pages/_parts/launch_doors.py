"""What Launch opens with: on a first start one button, then three doors. Doors only fill the form."""

import streamlit as st

from core.espalier import Branch
from core.service import Service
from pages._parts import first_step
from pages._parts.launch_state import DOORS, KEEPS, SMALLER, open_door, open_smaller
from pages._parts.theme import figure

_SEEN = "launch_store_has_runs"


def first_start(service: Service) -> bool:
    """Whether the store holds no run of this machine, as long as this visitor has seen none."""
    if not st.session_state.get(_SEEN):
        st.session_state[_SEEN] = not (service.live.now().empty or service.travel.nothing_of_this_machine())
    return not st.session_state[_SEEN]


def first(service: Service) -> None:
    """The first start: what this is, and one button that shows it."""
    with st.container(key="first"):
        words, picture = st.columns([1.15, 1], gap="large", vertical_alignment="center")
        with words:
            st.html("<h2>Every cut shows.</h2>")
            st.html(
                '<p class="esp-lead">Espalier removes what a language model needs least, measures what that costs, and '
                "lets you talk to the result. Begin with a small model that is already on this machine.</p>"
            )
            first_step.quick(service, "Prune SmolLM2 to see how it works", "launch_quick_look")
            st.html(
                f'<p class="esp-fact">{len(service.quick_look())} short runs, under five minutes on two CPU cores. '
                "No network, no account.</p>"
            )
        with picture:
            figure(_emblem(), label="An espalier: a trunk with a branch for each layer, some of them cut")


def _emblem() -> list[Branch]:
    """A small tree that was pruned with care: a picture, not a plan."""
    kept = [(9, 3, 1.0), (9, 3, 0.94), (6, 2, 0.8), (6, 2, 0.66), (3, 1, 0.52), (6, 2, 0.6), (6, 2, 0.74), (9, 3, 1.0)]
    return [
        Branch(i, i not in (0, 7), (9, heads), (3, groups), (1536, round(1536 * share)))
        for i, (heads, groups, share) in enumerate(kept)
    ]


def doors(service: Service, last_layer: int) -> None:
    """Three ways in; on the first stands the size of what it makes."""
    with st.container(key="doors"):
        for column, (name, (title, text, _)) in zip(st.columns(3, gap="small"), DOORS.items(), strict=True):
            with column, st.container(key=f"door_{name}", gap=None):
                smaller = name == SMALLER
                st.button(
                    f"**{title}** {text}",
                    key=f"launch_door_{name}",
                    width="stretch",
                    wrap=True,
                    on_click=open_smaller if smaller else open_door,
                    args=(service, last_layer) if smaller else (name, last_layer),
                )
                if smaller:
                    _size(service, last_layer)


def _size(service: Service, last_layer: int) -> None:
    """How much of the model the first door keeps, and whether all layers end alike; changing either opens the door."""
    st.select_slider(
        "Share of the model that is kept",
        KEEPS,
        format_func=lambda share: f"keep {share} %",
        key="launch_keep",
        persist_state="session",
        label_visibility="collapsed",
        on_change=open_smaller,
        args=(service, last_layer),
    )
    st.checkbox(
        "All layers alike, for vLLM",
        key="launch_stock",
        persist_state="session",
        help="Engines that know stock classes only want the same sizes in every layer. That costs quality: perplexity "
        "36.2 instead of 33.6 for SmolLM2 at 78 % of its parameters.",
        on_change=open_smaller,
        args=(service, last_layer),
    )
