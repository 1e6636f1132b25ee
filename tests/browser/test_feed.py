"""Runs in Chromium while a real run goes through: bars move without scripts, and an end is drawn by itself."""

import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import queue
from core.jobs.rundir import list_runs
from core.jobs.states import State

BARS = "[...document.querySelectorAll('[data-live^=\"run:\"] .esp-bar i')].map(each => each.style.width)"


def test_bars_move_by_the_feed_and_a_runs_end_is_drawn_with_it_and_without(app: tuple[str, Path], browser: Any) -> None:
    address, home = app
    queue(home, 1, tokens=56_000)  # long enough for pages that open slowly
    (run,) = list_runs(home / "runs")
    end = time.monotonic() + 60
    while run.status().state is not State.RUNNING and time.monotonic() < end:
        time.sleep(0.1)
    pages, frames, errors = [], [[0], [0]], []
    for number in range(2):
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        sent = frames[number]
        page.on("websocket", lambda each, sent=sent: each.on("framesent", lambda _: sent.__setitem__(0, sent[0] + 1)))
        page.on("pageerror", lambda error: errors.append(str(error)))
        pages.append(page)
    pages[1].route("**/live", lambda route: route.abort())
    seen: list[set[str]] = [set(), set()]
    for page in pages:
        page.goto(f"{address}/runs")
    ended = [0.0, 0.0]
    begun = time.monotonic()
    end = begun + 240
    while not all(ended) and time.monotonic() < end:
        for number, page in enumerate(pages):
            if not ended[number]:
                seen[number].update(page.evaluate(BARS))
                ended[number] = time.monotonic() if page.locator("h2", has_text="Finished").count() else 0.0
        time.sleep(0.2)
    assert all(ended), "the run's end was not drawn"
    assert errors == []
    moved, scripts = len(seen[0]), frames[0][0]
    assert moved >= 4, seen[0]
    assert moved > len(seen[1])  # without the feed the page draws itself anew now and then
    assert frames[1][0] >= 2
    assert scripts < 12 + 0.3 * (max(ended) - begun)  # two a second without the feed
    for page in pages:
        page.context.close()


@pytest.mark.parametrize("header", [{"Host": "elsewhere.example"}, {"Origin": "http://elsewhere.example"}])
def test_other_sites_do_not_get_the_feed(app: tuple[str, Path], header: dict[str, str]) -> None:
    request = urllib.request.Request(f"{app[0]}/live", headers=header)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    refused.value.close()
    assert refused.value.code in (403, 421)
    with urllib.request.urlopen(f"{app[0]}/live", timeout=60) as answer:
        assert answer.headers["cache-control"] == "no-store"
        assert b'"slots"' in answer.read()
