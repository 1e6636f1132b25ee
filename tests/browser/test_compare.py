"""A journey in a real browser: find runs, tick them, pin a baseline, look, take the data away, share the view."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from tests.browser.test_first_light import READY, open_page
from tests.pages.conftest import EVALUATION, results

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

TAYLOR = {"method": "taylor", "layers": [4, 25]}
RUNS: dict[str, tuple[dict[str, Any] | None, tuple[float, float], float]] = {
    "dense": (None, (26.5, 0.65), 0.0),
    "taylor 20 %": ({**TAYLOR, "ratio": 0.2}, (44.0, 0.60), 0.106),
    "taylor 30 %": ({**TAYLOR, "ratio": 0.3}, (78.5, 0.57), 0.169),
    "wanda 50 %": ({"method": "wanda", "ratio": 0.5}, (40.0, 0.61), 0.39),
}


def write_runs(home: Path) -> dict[str, str]:
    """Complete runs as workers leave them; name → id."""
    ids = {}
    for number, (name, (pruning, values, removed)) in enumerate(RUNS.items()):
        run_id = f"20261123-2{number:03d}00-0a1b2c3d-b{number:03d}"
        folder = RunDirectory(home / "runs" / run_id)
        experiment = Experiment.parse({"name": name, "pruning": pruning, "evaluation": EVALUATION, "device": "cpu"})
        folder.write_experiment(experiment)
        event = {"v": 1, "seq": 1, "attempt": 1, "time": f"2026-11-23T21:0{number}:00.000Z", "kind": "state"}
        folder.events_file.write_text(json.dumps({**event, "state": "COMPLETE"}) + "\n")
        folder.write_results(results(run_id, experiment, values, removed))
        ids[name] = run_id
    return ids


def settled(page: Any) -> None:
    page.wait_for_timeout(300)
    page.wait_for_selector(READY, timeout=60_000)


def drawn(page: Any) -> set[str]:
    """Ids of the runs that the page's charts hold."""
    page.wait_for_selector(".js-plotly-plot .plot-container", timeout=60_000)
    return set(
        page.evaluate(
            "() => [...document.querySelectorAll('.js-plotly-plot')]"
            ".flatMap(p => p.data.flatMap(t => (t.customdata || []).map(c => Array.isArray(c[0]) ? c[0][0] : c[0])))"
        )
    )


def test_runs_are_found_compared_taken_away_and_shared(app: tuple[str, Path], browser: Any, tmp_path: Path) -> None:
    address, home = app
    ids = write_runs(home)
    page = browser.new_page(viewport={"width": 1440, "height": 1400})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    open_page(page, address, "compare")
    assert drawn(page) == set(ids.values())

    # A click on a row's box takes the run out, and the address says so.
    box = page.locator('[class*="st-key-compare_runs_"] canvas').first.bounding_box()
    page.mouse.click(box["x"] + 20, box["y"] + 35 + 17)
    settled(page)
    page.wait_for_function("() => location.search.includes('runs=')", timeout=120_000)
    assert ids["wanda 50 %"] not in page.url
    assert drawn(page) == set(ids.values()) - {ids["wanda 50 %"]}

    # One run for all as the baseline; the heatmap holds the difference of the others.
    page.locator(".st-key-compare_baseline input").fill("taylor 20")
    page.keyboard.press("Enter")
    settled(page)
    page.locator(".st-key-compare_chart").get_by_text("Heatmap").click()
    settled(page)
    page.wait_for_function("() => document.querySelector('.js-plotly-plot')?.data?.[0]?.type === 'heatmap'")
    assert drawn(page) == {ids["dense"], ids["taylor 30 %"]}
    cells = page.evaluate("() => [...document.querySelector('.js-plotly-plot').data[0].text].map(row => [...row])")
    assert sorted(cells) == [["+5.0"], ["−3.0"]]
    chart = page.locator(".st-key-compare_plot_heatmap")
    assert "Difference of accuracy to the baseline" in (
        chart.locator("[aria-label]").first.get_attribute("aria-label") or ""
    )

    # What is drawn can be taken as a file.
    page.locator(".st-key-compare_plot_heatmap_export button").first.click()
    with page.expect_download(timeout=60_000) as taken:
        page.locator(".st-key-compare_plot_heatmap_csv button").click()
    file = tmp_path / "cells.csv"
    taken.value.save_as(file)
    assert sorted(pd.read_csv(file)["delta"].round(4)) == [-0.03, 0.05]
    with page.expect_download(timeout=60_000) as taken:
        page.locator(".st-key-compare_plot_heatmap_html button").click()
    alone = tmp_path / "chart.html"
    taken.value.save_as(alone)

    # Whoever opens the address sees the same view; the saved chart opens without the app, and without a network.
    other = browser.new_page(viewport={"width": 390, "height": 900})
    open_page(other, address, page.url.split("/", 3)[3])
    other.wait_for_function("() => document.querySelector('.js-plotly-plot')?.data?.[0]?.type === 'heatmap'")
    assert drawn(other) == {ids["dense"], ids["taylor 30 %"]}
    assert other.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    other.goto(alone.as_uri())
    assert drawn(other) == {ids["dense"], ids["taylor 30 %"]}

    # Other pages are opened from a view whose settings stand in the address.
    assert "compare_baseline=" in page.url
    page.locator(".st-key-guide_words button").click()
    page.locator(".st-key-tour_again button").click()
    page.locator(".st-key-tour_next").wait_for(timeout=60_000)
    settled(page)
    assert page.locator('[data-testid="stException"]').count() == 0
    assert "compare_baseline=" not in page.url
    assert problems == []
    other.close()
    page.close()
