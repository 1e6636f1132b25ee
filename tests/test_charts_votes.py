"""The chart and the table of blind votes: numbers as counted, names as text."""

import json

import pytest

from core import charts
from core.charts_votes import duels_table, standings_table, win_rates
from core.chat.votes import Vote, duels, standings

HOSTILE = "<img src=x onerror=alert(1)> $x$"
VOTES = [
    Vote(("dense", "cut"), ("SmolLM2, dense", HOSTILE), "dense", "A"),
    Vote(("cut", "dense"), (HOSTILE, "SmolLM2, dense"), "dense", "B"),
    Vote(("cut", "dense"), (HOSTILE, "SmolLM2, dense"), None, "tie"),
]


def test_the_chart_shows_each_model_s_rate_and_interval_and_says_them_in_words() -> None:
    counted = standings(VOTES)
    chart = win_rates(counted)
    (trace,) = chart.data
    assert list(trace.x) == [one.rate for one in counted]
    for place, one in enumerate(counted):
        assert trace.x[place] + trace.error_x.array[place] == pytest.approx(one.high)
        assert trace.x[place] - trace.error_x.arrayminus[place] == pytest.approx(one.low)
    assert "SmolLM2, dense: 83 %, interval" in charts.alt(chart)


def test_names_of_models_are_text_in_the_chart() -> None:
    chart = win_rates(standings(VOTES), dark=True)
    shown = json.dumps([chart.layout.yaxis.ticktext, [list(row) for row in chart.data[0].customdata]])
    assert "<img" not in shown
    assert "&lt;img" in shown


def test_the_tables_hold_what_was_counted() -> None:
    table = standings_table(standings(VOTES))
    assert table["won"].tolist() == [2, 0]
    assert table["tied"].tolist() == [1, 1]
    pairs = duels_table(duels(VOTES))
    assert pairs.iloc[0][["Votes", "Won", "Lost", "Even"]].tolist() == [3, 0, 2, 1]
    assert pairs.iloc[0]["Win rate"].startswith("17 % [")
    assert win_rates([]).data[0].x == ()
