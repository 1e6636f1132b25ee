"""The first journey in a real browser: prune SmolLM2, watch it, stop a run, compare the cut with the dense model."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.jobs.rundir import list_runs

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]

READY = '[data-test-script-state="notRunning"]'


def open_page(page: Any, address: str, path: str = "") -> None:
    page.goto(f"{address}/{path}")
    page.wait_for_selector(READY, timeout=60_000)


def finished(home: Path) -> dict[str, dict[str, Any]]:
    """results.json by the run's name."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in home.glob("runs/*/results.json")]
    return {result["experiment"]["name"]: result for result in found}


def test_the_first_start_prunes_a_model_and_shows_its_numbers(app: tuple[str, Path], browser: Any) -> None:
    address, home = app
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))

    open_page(page, address)
    page.locator(".st-key-launch_quick_look button").click()
    page.wait_for_url("**/runs*", timeout=60_000)
    page.locator('[class*="st-key-runs_running_"]').get_by_text("Quick look: dense").first.wait_for(timeout=60_000)

    names = {"Quick look: dense", "Quick look: Taylor 34 %"}
    for _ in range(1200):
        page.wait_for_timeout(1000)
        results = finished(home)
        if names <= set(results):
            break
    assert names <= set(results), f"finished: {sorted(results)}"

    open_page(page, address, "runs")  # the third has begun: it is stopped, which is what costs this test the least
    last = page.locator('[class*="st-key-runs_running_"]').filter(has_text="Quick look: Wanda 50 %")
    last.get_by_role("button", name="Cancel run").click(timeout=60_000)
    page.get_by_text("cancelled", exact=True).first.wait_for(state="attached", timeout=60_000)
    assert sorted(str(run.status().state) for run in list_runs(home / "runs")) == ["CANCELLED", "COMPLETE", "COMPLETE"]

    taylor = results["Quick look: Taylor 34 %"]
    assert taylor["pruning"]["params_after"] < taylor["pruning"]["params_before"]

    open_page(page, address, "compare")
    page.wait_for_selector(".js-plotly-plot", timeout=60_000)
    shown = page.locator("body").inner_text()
    assert "Taylor" in shown
    perplexity = next(m["value"] for m in taylor["metrics"] if m["metric"] == "perplexity")
    figures = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data.flatMap(t => [...(t.y || [])]))"
    )
    assert any(abs(float(y) - perplexity) < 0.01 * perplexity for y in figures if isinstance(y, (int, float))), figures
    assert problems == []
    page.close()
