"""Compare: which runs, against which dense model, which chart; the charts themselves are in tests/test_charts.py."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from streamlit.testing.v1 import AppTest

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
TAYLOR = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}
WANDA = {"method": "wanda", "ratio": 0.5}


@pytest.fixture
def three(run_folder: Any, service: Any) -> dict[str, str]:
    return {
        "dense": run_folder("dense"),
        "taylor": run_folder("taylor", TAYLOR, values=(78.5, 0.57), removed=0.169),
        "wanda": run_folder("wanda", WANDA, values=(40.0, 0.61), removed=0.39),
    }


def compare_page(runs: list[str] | None = None) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60)
    if runs is not None:
        app.query_params["runs"] = runs
    app.switch_page("compare.py").run()
    assert not app.exception
    return app


def html(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def figures(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def run_ids(figure: dict[str, Any]) -> set[str]:
    return {custom[0] for trace in figure["data"] for custom in trace.get("customdata", [])}


def test_an_empty_store_offers_the_quick_look(service: Any) -> None:
    app = compare_page()
    assert {"compare_quick", "compare_to_launch"} <= {str(button.key) for button in app.button}
    app.button(key="compare_quick").click().run()
    assert service.status_line().queue_length == len(service.quick_look())


def test_real_cuts_and_masks_stand_in_charts_of_their_own(three: dict[str, str]) -> None:
    app = compare_page()
    cut, mask = figures(app)
    assert run_ids(cut) == {three["dense"], three["taylor"]}
    assert run_ids(mask) == {three["dense"], three["wanda"]}
    assert mask["layout"]["title"]["text"].startswith("Zeros, not smaller ")


def test_charts_have_a_text_alternative_and_keep_their_own_colours(three: dict[str, str]) -> None:
    for chart in compare_page().get("plotly_chart"):
        assert "perplexity" in chart.proto.alt
        assert chart.proto.theme == ""
        assert json.loads(chart.proto.config)["showSendToCloud"] is False


def test_the_url_says_which_runs_are_compared(three: dict[str, str]) -> None:
    app = compare_page([three["taylor"], "20200101-000000-00000000-gone"])
    (cut,) = figures(app)
    assert run_ids(cut) == {three["dense"], three["taylor"]}  # the baseline comes along


def test_the_table_shows_differences_to_dense_with_95_percent_intervals(three: dict[str, str]) -> None:
    app = compare_page()
    table = next(frame for frame in app.dataframe if "Run" in frame.value.columns)
    assert table.value["Run"].tolist() == ["dense", "wanda", "taylor"]
    assert table.value["Δ perplexity, passages"].tolist()[1:] == pytest.approx([13.5, 52.0])
    texts = pa.ipc.open_stream(table.proto.arrow_data.styler.display_values).read_pandas()
    assert "+52.00 (+50.38 to +53.62) ▼" in texts.to_numpy().ravel().tolist()


def test_the_picker_changes_quality_axis_and_chart(three: dict[str, str]) -> None:
    app = compare_page()
    quality = app.selectbox(key="compare_quality")
    assert quality.options == ["perplexity, passages", "piqa acc"]
    quality.select_index(1).run()
    assert figures(app)[0]["layout"]["yaxis"]["title"]["text"].startswith("piqa acc")
    app.segmented_control(key="compare_chart").set_value("By ratio").run()
    app.segmented_control(key="compare_axis_ratio").set_value("ratio asked for").run()
    assert figures(app)[0]["layout"]["xaxis"]["title"]["text"] == "ratio asked for in the selected layers"
    app.segmented_control(key="compare_chart").set_value("By task").run()
    assert not app.exception
    (dots,) = figures(app)
    assert run_ids(dots) == set(three.values())


def test_runs_without_a_dense_run_say_so_and_queue_it_once(run_folder: Any, service: Any) -> None:
    run_folder("taylor", TAYLOR)
    run_folder("taylor again", {**TAYLOR, "ratio": 0.2})
    app = compare_page()
    assert "No dense run was judged like" in html(app)
    app.button(key="compare_queue_dense").click().run()
    waiting = service.run_list().query("state == 'WAITING'")
    assert len(waiting) == 1
    assert waiting["method"].isna().all()


def test_another_dense_run_can_be_pinned(three: dict[str, str], run_folder: Any) -> None:
    other = run_folder("dense again", values=(20.0, 0.7))
    app = compare_page([three["taylor"]])
    app.selectbox(key="compare_baseline").set_value(other).run()
    assert not app.exception
    table = next(frame.value for frame in app.dataframe if "Run" in frame.value.columns)
    assert table["Δ perplexity, passages"].tolist()[-1] == pytest.approx(58.5)


def test_names_are_shown_as_text(run_folder: Any, service: Any) -> None:
    run_folder("<script>alert(1)</script>", TAYLOR)
    app = compare_page()
    assert "<script>" not in html(app)
    for figure in figures(app):
        figure["layout"].pop("meta")  # the text alternative: an attribute, never read as markup
        assert "<script>" not in json.dumps(figure)
