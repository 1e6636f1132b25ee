"""Compare: which runs, against which dense model, which chart; the charts themselves are in tests/test_charts.py."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from streamlit.testing.v1 import AppTest

from core import charts
from core.service import get_service
from pages._parts import chart_box

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


def test_imported_runs_are_compared_first_where_there_is_no_own_pair(service: Any, run_folder: Any) -> None:
    reference = Path(__file__).resolve().parent.parent.parent / "studies" / "smollm2-reference.parquet"
    brought = service.travel.take_in(reference).runs
    first = compared(compare_page())
    assert first <= set(brought)
    assert len(first) > len(brought) / 2  # all that perplexity was measured for, cuts and masks
    pair = {run_folder("taylor", TAYLOR, values=(78.5, 0.57), removed=0.169), run_folder("dense")}
    deadline = time.monotonic() + 60  # the store looks for new folders now and then
    while (found := compared(compare_page())) != pair and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found == pair


def compared(app: AppTest) -> set[str]:
    """Run ids of all charts' marks."""
    return set().union(*map(run_ids, figures(app)))


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
    assert not app.exception
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


def table_of_runs(app: AppTest) -> Any:
    return app.dataframe[0].value


def test_filters_sorting_and_columns_act_on_all_runs_and_come_from_the_url(three: dict[str, str]) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.query_params["compare_method"] = ["Wanda", "Taylor (LLM-Pruner)"]
    app.query_params["compare_sort"] = "perplexity, passages"
    app.query_params["compare_ascending"] = "true"
    app.query_params["compare_columns"] = ["Run", "Ratio", "perplexity, passages"]
    app.switch_page("compare.py").run()
    assert not app.exception
    shown = table_of_runs(app)
    assert shown["name"].tolist() == ["wanda", "taylor"]
    assert shown.shape[1] == 3
    assert shown.iloc[:, 2].tolist() == [40.0, 78.5]
    app.text_input(key="compare_text").set_value("no such run").run()
    assert "No run meets these conditions" in html(app)
    app.button(key="compare_clear").click().run()
    assert not app.exception
    assert len(table_of_runs(app)) == 3


def test_failed_runs_are_listed_only_where_they_are_asked_for(three: dict[str, str], run_folder: Any) -> None:
    run_folder("broken", TAYLOR, state="FAILED", reason="out of memory")
    app = compare_page()
    assert "broken" not in table_of_runs(app)["name"].tolist()
    app.multiselect(key="compare_state").set_value(["failed"]).run()
    assert table_of_runs(app)["name"].tolist() == ["broken"]


def test_buttons_tick_all_runs_of_the_list_and_none(three: dict[str, str]) -> None:
    app = compare_page([three["dense"]])
    app.button(key="compare_tick_all").click().run()
    assert set(app.query_params["runs"]) == set(three.values())
    app.button(key="compare_untick").click().run()
    assert app.query_params["runs"] == "none"
    assert "Tick at least one run" in html(app)


def test_ticked_runs_that_the_filters_hide_stay_compared(three: dict[str, str]) -> None:
    app = compare_page([three["taylor"], three["wanda"]])
    app.text_input(key="compare_text").set_value("wanda").run()
    assert len(table_of_runs(app)) == 1
    cut, mask = figures(app)
    assert run_ids(cut) | run_ids(mask) == set(three.values())
    assert "1 of them not in this list" in html(app)


def test_all_that_match_are_compared_without_ticking(three: dict[str, str]) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.query_params["compare_matching"] = "true"
    app.query_params["compare_text"] = "taylor"
    app.query_params["runs"] = [three["wanda"]]
    app.switch_page("compare.py").run()
    (cut,) = figures(app)
    assert run_ids(cut) == {three["dense"], three["taylor"]}


def test_any_run_can_be_pinned_and_everything_says_so(three: dict[str, str]) -> None:
    app = compare_page(list(three.values()))
    app.selectbox(key="compare_baseline").set_value(three["wanda"]).run()
    assert not app.exception
    numbers = next(frame.value for frame in app.dataframe if "Run" in frame.value.columns).set_index("Run")
    assert numbers["Δ perplexity, passages"].to_dict()["taylor"] == pytest.approx(38.5)
    assert "Δ against wanda" in html(app)
    shared = AppTest.from_file(MAIN, default_timeout=60)
    shared.query_params["runs"] = [three["taylor"]]
    shared.query_params["compare_baseline"] = f"wanda · {three['wanda'][-13:]}"
    shared.switch_page("compare.py").run()
    assert shared.selectbox(key="compare_baseline").value == three["wanda"]


def test_dominated_runs_can_be_hidden_and_the_axis_is_chosen(three: dict[str, str], run_folder: Any) -> None:
    worse = run_folder("worse", {**TAYLOR, "ratio": 0.2}, values=(90.0, 0.5), removed=0.1)
    app = compare_page([*three.values(), worse])
    assert worse in run_ids(figures(app)[0])
    app.toggle(key="compare_hide").set_value(True).run()
    assert worse not in run_ids(figures(app)[0])
    assert "1 dominated run hidden" in html(app)
    app.selectbox(key="compare_cost").set_value("parameters").run()
    assert figures(app)[0]["layout"]["xaxis"]["title"]["text"] == "parameters kept"


@pytest.mark.parametrize(
    ("view", "marks"), [("By task", 3), ("Heatmap", 2), ("Many runs", 3), ("Cost", 3), ("Settings", 0)]
)
def test_every_view_opens_from_the_url(three: dict[str, str], view: str, marks: int) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.query_params["compare_chart"] = view
    app.switch_page("compare.py").run()
    assert not app.exception
    assert app.segmented_control(key="compare_chart").value == view
    ids = [custom for figure in figures(app) for trace in figure["data"] for custom in trace.get("customdata", [])]
    flat = {one[0] if isinstance(one[0], str) else one[0][0] for one in ids}
    assert len(flat & set(three.values())) == marks


def test_settings_show_only_what_differs_until_all_is_asked_for(three: dict[str, str]) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.query_params["compare_chart"] = "Settings"
    app.switch_page("compare.py").run()
    shown = next(frame.value for frame in app.dataframe if "setting" in frame.value.columns)
    assert "pruning.method" in shown["setting"].tolist()
    assert "evaluation.limit" not in shown["setting"].tolist()
    assert list(shown.columns)[:2] == ["setting", three["dense"]]  # the baseline first
    app.toggle(key="compare_only").set_value(False).run()
    everything = next(frame.value for frame in app.dataframe if "setting" in frame.value.columns)
    assert "evaluation.limit" in everything["setting"].tolist()


def test_the_data_of_a_chart_stands_beside_it(three: dict[str, str]) -> None:
    app = compare_page()
    app.toggle(key="compare_plot_cut_data").set_value(True).run()
    rows = next(frame.value for frame in app.dataframe if "on the front" in frame.value.columns)
    assert set(rows["id"]) == {three["dense"], three["taylor"]}
    app.radio(key="compare_plot_cut_image").set_value("PNG").run()
    config = json.loads(app.get("plotly_chart")[0].proto.config)
    assert config["toImageButtonOptions"]["format"] == "png"


def test_charts_and_tables_are_taken_as_files_that_can_be_read_again(three: dict[str, str], tmp_path: Path) -> None:
    service = get_service()
    assert service.compare.offered().runs == len(three)
    ids = list(three.values())
    _, table = service.compare.points(ids, service.compare.baselines(ids))
    file = tmp_path / "points.parquet"
    file.write_bytes(chart_box.parquet(table))
    again = pd.read_parquet(file)
    assert again["value"].tolist() == table["value"].tolist()
    assert again["run_id"].tolist() == table["run_id"].tolist()
    figure = charts.tradeoff(table, charts.qualities(table)[0])
    page = chart_box.html_page(figure, "<script>name</script>").decode()
    assert "<title>&lt;script&gt;name&lt;/script&gt;</title>" in page
    assert "Plotly.newPlot" in page
    assert 'src="http' not in page  # needs no network
    assert three["taylor"] in page


def test_an_address_full_of_nonsense_shows_the_page_as_it_is_without(three: dict[str, str]) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60)
    nonsense: dict[str, Any] = {
        "runs": ["../../etc/passwd", "'; DROP TABLE runs; --"], "compare_chart": "nope", "compare_ratio": ["a", "-5"],
        "compare_page": "99", "compare_layers": "30–4", "compare_sort": "1; DROP TABLE runs", "compare_columns": "",
        "compare_baseline": "x · ' OR 1=1 --", "compare_method": "<script>", "compare_state": "gone",
        "compare_quality": "magic", "compare_cost": "luck", "compare_text": "' OR '1'='1", "compare_matching": "maybe",
    }  # fmt: skip
    for name, value in nonsense.items():
        app.query_params[name] = value
    app.switch_page("compare.py").run()
    assert not app.exception
    assert "No run meets these conditions" in html(app)
    app.text_input(key="compare_text").set_value("").run()
    assert len(table_of_runs(app)) == 3
