"""Compare beside ten thousand runs. How quick it is, benchmarks/pages.py measures."""

from pathlib import Path

import duckdb
import pytest
from streamlit.testing.v1 import AppTest

from core import settings
from core.service import close_service
from core.storage.store import Store

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
RUNS = 10_000


def fill(home: Path) -> None:
    """Rows as if that many folders had been read; every fiftieth run is dense, each has three numbers."""
    Store.open(home).close()
    connection = duckdb.connect(str(home / settings.database_file().name))
    time_of = "TIMESTAMP '2026-01-01' + INTERVAL (i) MINUTE"
    run = f"strftime({time_of}, '%Y%m%d-%H%M%S') || '-0a1b2c3d-r' || lpad(hex(i), 3, '0')"
    connection.execute(
        f"""INSERT INTO runs (id, name, state, created, finished, model, method, kind, ratio, layer_first, layer_last,
            seed, dtype, device, params_before, params_after, achieved_model_ratio, bytes, experiment, study)
        SELECT {run}, 'run ' || i, 'COMPLETE', {time_of}, {time_of}, 'model ' || (i % 3),
            CASE WHEN i % 50 = 0 THEN NULL ELSE ['taylor', 'wanda', 'l1', 'random'][i % 4 + 1] END,
            CASE WHEN i % 50 = 0 THEN NULL WHEN i % 4 = 1 THEN 'mask' ELSE 'width' END,
            CASE WHEN i % 50 = 0 THEN NULL ELSE (i % 5 + 1) / 10.0 END, 4, 25, i % 7, 'float32', 'cpu', 1000,
            1000 - i % 500, (i % 500) / 1000.0, 4000, 'name: run ' || i || chr(10) || 'seed: ' || i % 7,
            'study ' || (i % 9)
        FROM range({RUNS}) t(i)"""
    )
    for task, metric in (("perplexity/passages", "perplexity"), ("piqa", "acc"), ("arc_easy", "acc")):
        connection.execute(
            f"""INSERT INTO metrics SELECT {run}, 'pruned', ?, ?, 0.3 + (i % 97) / 200.0, 0.01, 100, '{{"limit": 100}}',
                'key', '{{}}' FROM range({RUNS}) t(i)""",
            [task, metric],
        )
    connection.close()


@pytest.fixture
def page(home: Path) -> AppTest:
    fill(home)
    app = AppTest.from_file(MAIN, default_timeout=120)
    app.query_params["compare_columns"] = ["Run", "Method and layers", "piqa acc"]
    app.query_params["compare_sort"] = "piqa acc"
    return app.switch_page("compare.py").run()


def test_ten_thousand_runs_are_filtered_sorted_and_shown_a_page_at_a_time(page: AppTest) -> None:
    assert not page.exception
    assert "10,000 runs, 12 ticked" in "\n".join(str(element.proto.body) for element in page.get("html"))
    assert len(page.dataframe[0].value) == 100
    page.text_input(key="compare_text").set_value("study 8 wanda").run()
    assert not page.exception
    shown = page.dataframe[0].value
    assert len(shown) == 100
    assert set(shown["what"].str.split(" ").str[0]) == {"Wanda"}
    best = shown.iloc[:, 2].tolist()
    assert best == sorted(best, reverse=True)
    close_service()
