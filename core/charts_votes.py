"""Blind votes as a chart: how often each model was chosen, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go

from core.charts_style import figure, palette, percent, safe, short

if TYPE_CHECKING:
    from core.chat.votes import Duel, Standing


def standings_table(standings: Sequence[Standing]) -> pd.DataFrame:
    """One row a model: what is drawn, and what it was counted from. Shares are fractions."""
    columns = ("title", "votes", "won", "lost", "tied", "bad", "rate", "low", "high", "key")
    return pd.DataFrame([[getattr(one, name) for name in columns] for one in standings], columns=list(columns))


def duels_table(duels: Sequence[Duel]) -> pd.DataFrame:
    """One row a pair of models, in words for a table; `p` of the exact sign test."""
    return pd.DataFrame(
        {
            "Model": [duel.first_title for duel in duels],
            "Against": [duel.second_title for duel in duels],
            "Votes": [duel.votes for duel in duels],
            "Won": [duel.won for duel in duels],
            "Lost": [duel.lost for duel in duels],
            "Even": [duel.even for duel in duels],
            "Win rate": [
                f"{percent(duel.rate, 0)} [{percent(duel.low, 0)}, {percent(duel.high, 0)}]" for duel in duels
            ],
            "p": [duel.p for duel in duels],
        }
    )


def win_rates(standings: Sequence[Standing], *, dark: bool = False) -> go.Figure:
    """One row a model, the most chosen on top: its win rate, and Wilson's 95 % interval; dotted: chosen as often as
    not."""
    colours = palette(dark)
    said = "; ".join(
        f"{one.title}: {percent(one.rate, 0)}, interval {percent(one.low, 0)} to {percent(one.high, 0)}, "
        f"{one.votes} votes" for one in standings
    )  # fmt: skip
    words = f"Win rates in blind votes. {said or 'No votes.'}"
    chart = figure("Win rates in blind votes", words, dark=dark, height=150 + 46 * len(standings))
    chart.add_vline(x=0.5, line={"color": colours.muted, "width": 1, "dash": "dot"})
    chart.add_trace(
        go.Scatter(
            x=[one.rate for one in standings],
            y=list(range(len(standings))),
            mode="markers",
            marker={"color": colours.ink, "size": 11},
            error_x={
                "type": "data", "symmetric": False, "color": colours.ink, "thickness": 1.4, "width": 5,
                "array": [one.high - one.rate for one in standings],
                "arrayminus": [one.rate - one.low for one in standings],
            },
            customdata=[[_hover(one)] for one in standings],
            hovertemplate="%{customdata[0]}<extra></extra>",
            showlegend=False,
        )
    )  # fmt: skip
    chart.update_xaxes(title_text="chosen, ties as halves", tickformat=".0%", range=[-0.02, 1.02])
    chart.update_yaxes(
        tickmode="array", tickvals=list(range(len(standings))),
        ticktext=[safe(short(one.title, 34)) for one in standings],
        range=[len(standings) - 0.4, -0.6], showgrid=False, showline=False, ticks="",
    )  # fmt: skip
    return chart


def _hover(one: Standing) -> str:
    counts = f"{one.won} won, {one.lost} lost, {one.tied} tied, {one.bad} all bad"
    return f"<b>{safe(one.title)}</b><br>{_rate(one, 1)}<br>{one.votes} votes: {counts}"


def _rate(one: Standing | Duel, digits: int) -> str:
    return f"{percent(one.rate, digits)} [{percent(one.low, digits)}, {percent(one.high, digits)}]"
