"""Compare's view of blind votes: how often each model was chosen on Chat, and model against model."""

from __future__ import annotations

import streamlit as st

from core import charts_votes
from core.service import Service
from pages._parts import chart_box, theme
from pages._parts.compare_views import Shown


def has_votes(service: Service) -> bool:
    """Whether anybody voted yet."""
    return bool(service.talks.votes())


def view(shown: Shown) -> None:
    """The chart of all models that were voted on, and the pairs beneath it."""
    talks = shown.service.talks
    standings = talks.standings()
    chart = charts_votes.win_rates(standings, dark=theme.dark())
    chart_box.show(chart, "win rates", "compare_votes", lambda: charts_votes.standings_table(standings))
    st.html(
        '<p class="esp-fact">Every blind vote on Chat, whichever runs are ticked above. Bars are Wilson’s 95 % '
        "intervals; a tie, or all bad, counts half for each side. Dotted: chosen as often as not.</p>"
    )
    pairs = charts_votes.duels_table(talks.duels())
    st.html('<h2 class="esp-section">Model against model<span>votes that saw both</span></h2>')
    st.dataframe(
        pairs,
        key="compare_duels",
        hide_index=True,
        height="content" if len(pairs) <= 15 else 560,
        column_config={
            "Even": st.column_config.NumberColumn(help="Tied, or all bad"),
            "Win rate": st.column_config.TextColumn(help="Of the first model, ties as halves, with its 95 % interval"),
            "p": st.column_config.NumberColumn(format="%.3f", help="Exact sign test over the votes that chose one"),
        },
        alt="Blind votes, model against model",
    )
