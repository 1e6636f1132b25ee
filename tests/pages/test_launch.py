"""Launch, by its keys: what the form holds is what is previewed and queued, and what cannot work is said before."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.errors import ExperimentError
from core.experiment import Experiment
from core.service import close_service, get_service
from pages._parts import launch_build
from pages._parts.launch_preview import sentence
from pages._parts.launch_state import DEFAULTS, DENSE, DOORS

ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = str(ROOT / "pages" / "_main.py")


@pytest.fixture(autouse=True)
def service() -> Iterator[Any]:
    """The process's service on this test's own home, its queue at rest so that nothing starts."""
    made = get_service()
    made.pause()
    yield made
    close_service()


@pytest.fixture
def launch() -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not app.exception
    return app


def with_model(name: str) -> AppTest:
    """Launch with a model's name typed; AppTest's selectbox can only choose what is listed."""
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.session_state["launch_model"] = name
    return app.run()


def html(app: AppTest) -> str:
    bodies = [str(element.proto.body) for element in app.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style"))


def yaml(app: AppTest, index: int = 0) -> Experiment:
    """The Experiment whose YAML the preview shows."""
    return Experiment.from_yaml(app.code[index].value)


def queued(service: Any) -> list[Experiment]:
    frame = service.run_list()
    return [service.run_detail(run_id).experiment for run_id in frame.id]


def made(**changes: Any) -> list[Experiment]:
    methods = {method.name: method for method in get_service().methods()}
    return launch_build.experiments({**DEFAULTS, **changes}, methods, 30)


# --- first start


def test_an_empty_store_offers_one_button_that_queues_the_quick_look(launch: AppTest, service: Any) -> None:
    assert launch.button(key="launch_quick_look").label == "Prune SmolLM2 to see how it works"
    launch.button(key="launch_quick_look").click().run()
    assert not launch.exception
    assert sorted(e.name for e in queued(service)) == sorted(e.name for e in service.quick_look())


def test_the_first_start_is_gone_once_there_are_runs(service: Any) -> None:
    service.submit(service.quick_look()[:1])
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert "launch_quick_look" not in {button.key for button in app.button}


# --- the preview


def test_the_defaults_can_be_queued_as_they_are_and_nothing_is_wrong_with_them(launch: AppTest, service: Any) -> None:
    assert not launch.button(key="launch_queue").disabled
    assert "esp-error" not in html(launch)
    assert "removes no head" not in html(launch)
    assert service.preview(yaml(launch)).problems == []


def test_moving_the_ratio_moves_the_numbers_and_the_figure(launch: AppTest) -> None:
    before = html(launch)
    launch.slider(key="launch_ratio").set_value(50).run()
    assert yaml(launch).pruning.ratio == 0.5  # type: ignore[union-attr]
    assert "134.5 M" in html(launch)
    assert html(launch) != before
    assert "removes 1 of 3 kv groups (3 heads) and 768 of 1,536 channels" in html(launch).lower()
    figures = [m.value for m in launch.markdown if "espalier-medium" in m.value]
    assert any("1,536 → 768 MLP channels" in figure for figure in figures)


def test_layers_are_inclusive_and_shown_against_the_model(launch: AppTest) -> None:
    slider = launch.slider(key="launch_layers")
    assert (slider.min, slider.max) == (0, 29)
    slider.set_range(10, 12).run()
    assert yaml(launch).pruning.layers == (10, 12)  # type: ignore[union-attr]
    assert "0&#8288;–&#8288;9 and 13&#8288;–&#8288;29 stay as they are" in html(launch)


def test_the_whole_range_is_written_as_no_range(launch: AppTest) -> None:
    launch.slider(key="launch_layers").set_range(0, 29).run()
    assert yaml(launch).pruning.layers is None  # type: ignore[union-attr]


def test_a_mask_is_said_to_be_zeros_and_a_pattern_fixes_the_ratio(launch: AppTest) -> None:
    launch.selectbox(key="launch_method").set_value("wanda").run()
    assert launch.session_state["launch_ratio"] == 50
    assert "zeros" in html(launch)
    assert "no: zeros are stored like other numbers" in html(launch)
    launch.segmented_control(key="launch_pattern").set_value("2:4").run()
    assert not launch.exception
    assert launch.slider(key="launch_ratio_fixed").disabled
    assert yaml(launch).pruning.pattern == "2:4"  # type: ignore[union-attr]


def test_options_of_a_method_are_drawn_from_its_own_type(launch: AppTest) -> None:
    launch.segmented_control(key="launch_option_taylor_order").set_value("second").run()
    assert yaml(launch).pruning.options == {"order": "second"}  # type: ignore[union-attr]
    launch.selectbox(key="launch_method").set_value("l2").run()
    assert yaml(launch).pruning.options == {}  # type: ignore[union-attr]


def test_calibration_is_asked_for_only_where_the_method_reads_text(launch: AppTest) -> None:
    assert "launch_calibration_samples" in {n.key for n in launch.number_input}
    launch.selectbox(key="launch_method").set_value("l1").run()
    assert "launch_calibration_samples" not in {n.key for n in launch.number_input}


def test_the_dense_model_alone_is_a_run_too(launch: AppTest, service: Any) -> None:
    launch.selectbox(key="launch_method").set_value(DENSE).run()
    assert not launch.exception
    assert yaml(launch).pruning is None
    launch.button(key="launch_queue").click().run()
    assert [e.pruning for e in queued(service)] == [None]


def test_what_later_versions_bring_is_switched_off_with_the_reason(launch: AppTest) -> None:
    assert launch.radio(key="launch_target").disabled
    assert launch.radio(key="launch_allocation").disabled
    assert launch.checkbox(key="launch_reconstruct").disabled
    assert launch.segmented_control(key="launch_recovery").disabled
    assert "LoRA and distillation come in a later version" in html(launch)


# --- what cannot work


def test_a_model_that_is_not_there_is_said_beside_the_field_and_blocks_the_button() -> None:
    launch = with_model("no/such-model")
    assert not launch.exception
    assert launch.button(key="launch_queue").disabled
    assert "no/such-model is not on this machine" in html(launch)
    launch.selectbox(key="launch_model").set_value(DEFAULTS["launch_model"]).run()
    assert not launch.button(key="launch_queue").disabled


def test_a_ratio_that_takes_no_head_is_said_beside_the_slider(launch: AppTest) -> None:
    launch.slider(key="launch_ratio").set_value(20).run()
    assert "removes no head at all here" in html(launch)
    assert html(launch).count("removes no head at all here") == 1
    assert not launch.button(key="launch_queue").disabled


def test_windows_longer_than_the_model_are_refused_beside_the_field(launch: AppTest) -> None:
    launch.number_input(key="launch_perplexity_window").set_value(100_000).run()
    assert "Perplexity windows of 100000 tokens are longer" in html(launch)
    assert launch.button(key="launch_queue").disabled


def test_a_task_that_nobody_knows_is_refused_beside_the_field(launch: AppTest) -> None:
    launch.session_state["launch_tasks"] = ["piqa", "<b>nonsense</b>"]
    launch.run()
    assert not launch.exception
    assert "&lt;b&gt;nonsense&lt;/b&gt;" in html(launch)
    assert "<b>nonsense" not in html(launch)
    assert launch.button(key="launch_queue").disabled


def test_no_part_chosen_is_a_remark_and_no_crash(launch: AppTest) -> None:
    launch.session_state["launch_parts"] = []
    launch.run()
    assert not launch.exception
    assert launch.button(key="launch_queue").disabled


# --- several runs


def test_several_ratios_and_methods_make_a_run_each_and_the_button_counts_them(launch: AppTest, service: Any) -> None:
    launch.checkbox(key="launch_several_methods").check().run()
    launch.multiselect(key="launch_methods").set_value(["l1", "random"]).run()
    launch.checkbox(key="launch_several_ratios").check().run()
    launch.multiselect(key="launch_ratios").set_value([35, 60]).run()
    launch.checkbox(key="launch_baseline").uncheck().run()
    assert not launch.exception
    assert launch.button(key="launch_queue").label == "Queue 4 runs"
    launch.checkbox(key="launch_baseline").check().run()
    assert launch.button(key="launch_queue").label == "Queue 5 runs"
    launch.button(key="launch_queue").click().run()
    assert "Queued 5 runs." in html(launch)
    cuts = {(e.pruning.method, e.pruning.ratio) if e.pruning else None for e in queued(service)}
    assert cuts == {None, ("l1", 0.35), ("l1", 0.6), ("random", 0.35), ("random", 0.6)}


def test_a_baseline_that_waits_already_is_not_counted_again(launch: AppTest) -> None:
    assert launch.button(key="launch_queue").label == "Queue 2 runs"
    launch.button(key="launch_queue").click().run()
    launch.slider(key="launch_ratio").set_value(60).run()
    assert launch.button(key="launch_queue").label == "Queue 1 run"


def test_a_pattern_fixes_the_ratio_so_several_ratios_are_one_run() -> None:
    found = made(
        launch_method="wanda", launch_pattern="4:8", launch_several_ratios=True, launch_ratios=[20, 40], launch_name="x"
    )
    assert [e.pruning.ratio for e in found if e.pruning] == [0.5]


def test_settings_that_a_method_ignores_are_left_out_of_its_experiment() -> None:
    changes = {"launch_several_methods": True, "launch_methods": ["wanda", "l1"], "launch_pattern": "4:8"}
    mask, width = made(**changes, launch_heads="query_heads")
    assert mask.pruning is not None
    assert width.pruning is not None
    assert (mask.pruning.pattern, mask.pruning.heads) == ("4:8", "kv_groups")
    assert (width.pruning.pattern, width.pruning.heads) == ("unstructured", "query_heads")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"launch_several_methods": True, "launch_methods": []}, "pruning.method"),
        ({"launch_several_ratios": True, "launch_ratios": []}, "pruning.ratio"),
        ({"launch_calibration_corpus": "file"}, "pruning.calibration.path"),
        ({"launch_perplexity": ["file"]}, "evaluation.perplexity.path"),
    ],
)
def test_what_is_missing_is_named_by_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        made(**changes)
    assert caught.value.field == field


def test_names_say_method_ratio_and_layers_and_keep_what_the_person_wrote() -> None:
    assert [e.name for e in made()] == ["Taylor 35 %, layers 4–25"]
    assert [e.name for e in made(launch_layers=(0, 29), launch_method="wanda", launch_ratio=50)] == ["Wanda 50 %"]
    assert [e.name for e in made(launch_name="mine")] == ["mine"]
    several = made(launch_name="mine", launch_several_ratios=True, launch_ratios=[40, 20])
    assert [e.name for e in several] == ["mine: Taylor 20 %, layers 4–25", "mine: Taylor 40 %, layers 4–25"]


# --- doors, other pages, identical runs


@pytest.mark.parametrize("door", list(DOORS))
def test_a_door_only_fills_the_form_and_what_it_fills_can_be_queued(launch: AppTest, service: Any, door: str) -> None:
    launch.button(key=f"launch_door_{door}").click().run()
    assert not launch.exception
    assert service.run_list().empty
    assert not launch.button(key="launch_queue").disabled
    for key, value in DOORS[door][2].items():
        assert launch.session_state[key] == value


def test_what_was_chosen_is_there_again_after_another_page(launch: AppTest) -> None:
    launch.selectbox(key="launch_method").set_value("wanda").run()
    launch.segmented_control(key="launch_pattern").set_value("4:8").run()
    launch.switch_page("runs.py").run()
    launch.switch_page("launch.py").run()
    assert not launch.exception
    assert launch.selectbox(key="launch_method").value == "wanda"
    assert launch.segmented_control(key="launch_pattern").value == "4:8"


def test_an_identical_run_is_pointed_out(launch: AppTest, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    original = service.preview
    run_id = "20261123-201854-0a1b2c3d-9f8e"
    monkeypatch.setattr(service, "preview", lambda experiment: replace(original(experiment), identical=run_id))
    launch.run()
    assert "the same run is there already" in html(launch)
    assert any(run_id in str(link.proto) for link in launch.get("page_link"))


def test_another_model_has_its_own_layers_and_middle(tiny_folder: Callable[..., Path]) -> None:
    launch = with_model(str(tiny_folder(num_hidden_layers=8)))
    assert not launch.exception
    slider = launch.slider(key="launch_layers")
    assert (slider.max, slider.value) == (7, (1, 6))


def test_a_read_only_home_shows_why_nothing_can_be_queued(launch: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_service()), "read_only", property(lambda _: True))
    launch.run()
    assert launch.button(key="launch_queue").disabled
    assert "Another Espalier works on this folder" in launch.button(key="launch_queue").help


def test_every_widget_of_the_page_has_a_key(launch: AppTest) -> None:
    for kind in ("button", "checkbox", "multiselect", "number_input", "radio", "selectbox", "slider", "text_input"):
        for widget in getattr(launch, kind):
            assert widget.key, (kind, widget.label)


def test_a_plan_is_said_in_one_sentence() -> None:
    service = get_service()
    plan = service.preview(made(launch_layers=(5, 5), launch_heads="query_heads", launch_ratio=40)[0]).plan
    assert sentence(plan) == (
        "Removes 3 of 9 heads and 608 of 1,536 channels in layer 5; 0–4 and 6–29 stay as they are."
    )
