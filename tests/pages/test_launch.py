"""Launch, by its keys: what the form holds is what is previewed and queued, and what cannot work is said before."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.errors import ExperimentError
from core.experiment import Experiment, Recovery, RecoveryData
from core.service import close_service, get_service
from pages._parts import launch_build
from pages._parts.launch_state import DEFAULTS, DOORS, KEEPS, NONE, from_pruning, from_recovery
from pages._parts.launch_words import DOES, KINDS, sentence

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


def several(**names: list[str]) -> dict[str, Any]:
    """Changes of the form that choose these methods of each kind, and no others."""
    chosen = {f"launch_methods_{kind}": names.get(kind, []) for kind in KINDS if kind != NONE}
    return {"launch_several_methods": True, **chosen}


def of_kind(app: AppTest, kind: str) -> None:
    app.segmented_control(key="launch_kind").set_value(kind).run()
    assert not app.exception


def get_service_method(name: str) -> Any:
    return next(method for method in get_service().methods() if method.name == name)


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
    of_kind(launch, "mask")
    assert launch.selectbox(key="launch_method").value == "wanda"
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
    of_kind(launch, NONE)
    assert "launch_method" not in {box.key for box in launch.selectbox}
    assert yaml(launch).pruning is None
    launch.button(key="launch_queue").click().run()
    assert [e.pruning for e in queued(service)] == [None]


# --- recovery


def with_recovery(kind: str, **changes: Any) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.session_state["launch_recovery"] = kind
    for name, value in changes.items():
        app.session_state[f"launch_recovery_{name}"] = value
    app.run()
    assert not app.exception
    return app


def test_recovery_is_off_at_first_and_says_what_is_usual(launch: AppTest) -> None:
    assert launch.segmented_control(key="launch_recovery").value == "none"
    assert "distillation is the usual choice" in html(launch)
    assert yaml(launch).recovery is None
    assert "launch_recovery_learning_rate" not in {number.key for number in launch.number_input}


def test_distillation_with_defaults_is_queued_and_nothing_else_is_set(launch: AppTest, service: Any) -> None:
    launch.segmented_control(key="launch_recovery").set_value("distillation").run()
    assert not launch.exception
    assert yaml(launch).recovery == Recovery(kind="distillation")
    chosen = {**DEFAULTS, "launch_recovery": "distillation"}
    assert launch_build.recovery(chosen) == {"kind": "distillation", "data": {"format": "text"}}
    assert "for recovery; the model is judged before and after" in html(launch)
    launch.button(key="launch_queue").click().run()
    assert [e.recovery.kind for e in queued(service) if e.recovery] == ["distillation"]
    assert [e.recovery for e in queued(service) if e.pruning is None] == [None]


def test_only_the_fields_of_the_kind_are_drawn_and_count() -> None:
    def drawn(app: AppTest) -> set[str]:
        return {str(each.key).removeprefix("launch_recovery_") for each in [*app.number_input, *app.checkbox]}

    lora = drawn(with_recovery("lora"))
    taught = drawn(with_recovery("distillation"))
    whole = drawn(with_recovery("distillation", full_weights=True, rank=64))
    assert {"rank", "alpha", "dropout", "cutoff", "max_samples"} <= lora
    assert {"temperature", "loss_mix", "hidden_mix", "full_weights"} <= taught - lora
    assert not {"rank", "alpha", "dropout"} & whole
    (one,) = made(launch_recovery="distillation", launch_recovery_full_weights=True, launch_recovery_rank=64)
    assert one.recovery.rank == 8
    (other,) = made(launch_recovery="lora", launch_recovery_temperature=4.0, launch_recovery_rank=64)
    assert (other.recovery.rank, other.recovery.temperature) == (64, 2.0)
    assert other.name.endswith(", then LoRA")


def test_every_field_of_the_schema_stands_on_the_form() -> None:
    keys: set[str] = set()
    for data in ("file", "generated"):
        app = with_recovery("distillation", data=data, format="text")
        drawn = [*app.number_input, *app.checkbox, *app.segmented_control, *app.selectbox, *app.text_input]
        keys |= {str(widget.key).removeprefix("launch_recovery_") for widget in drawn}
    assert {*Recovery.model_fields, *RecoveryData.model_fields} - {"kind", "corpus"} <= keys
    assert {"launch_recovery", "data"} <= keys  # the kind, and the corpus or that it is a file


@pytest.mark.parametrize(
    "section",
    [
        None,
        {"kind": "lora", "data": {"path": "/data/rows.jsonl", "format": "chat", "max_samples": 50}, "rank": 4},
        {"kind": "lora", "data": {"corpus": "someone/chats", "format": "chat"}, "micro_batch": 2, "max_minutes": 10},
        {
            "kind": "distillation",
            "data": {"corpus": "generated", "prompt_tokens": 128},
            "temperature": 1.0,
            "epochs": 1,
        },
        {"kind": "distillation", "full_weights": True, "hidden_mix": 0.5, "alpha": 16},
    ],
)
def test_a_recovery_section_fills_the_form_and_comes_back(section: dict[str, Any] | None) -> None:
    wanted = Experiment.parse({"pruning": {"method": "taylor", "ratio": 0.34}, "recovery": section}).recovery
    data = None if wanted is None else wanted.model_dump(mode="json")
    assert [e.recovery for e in made(**from_recovery(data))] == [wanted]


def test_data_that_cannot_be_had_is_said_beside_its_field_before_queueing(tmp_path: Path) -> None:
    missing = with_recovery("lora", data="file", path=str(tmp_path / "no.jsonl"), format="instructions")
    assert "cannot be read" in html(missing)
    assert missing.button(key="launch_queue").disabled
    hub = with_recovery("lora", data="alpaca-cleaned", format="instructions")
    assert "set to work offline" in html(hub)
    nothing = with_recovery("lora", data="file", format="instructions")
    assert "no path is given" in html(nothing)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n')
    other = with_recovery("lora", data="file", path=str(rows), format="instructions")
    assert "no text under `instruction`" in html(other)
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    good = with_recovery("lora", data="file", path=str(rows), format="instructions")
    assert not good.button(key="launch_queue").disabled


def test_named_data_bring_their_format() -> None:
    app = with_recovery("lora")
    app.selectbox(key="launch_recovery_data").set_value("alpaca-cleaned").run()
    assert app.session_state["launch_recovery_format"] == "instructions"
    app.selectbox(key="launch_recovery_data").set_value("generated").run()
    assert yaml(app).recovery.data.corpus == "generated"  # type: ignore[union-attr]
    assert "distillation is the usual choice" in html(app)


def test_where_nothing_is_cut_there_is_nothing_to_recover(launch: AppTest) -> None:
    of_kind(launch, NONE)
    assert "nothing to recover from" in html(launch)
    (dense,) = made(launch_kind=NONE, launch_method="", launch_recovery="lora")
    assert dense.recovery is None


# --- methods of every kind


def test_every_registered_method_can_be_chosen_under_its_kind_and_queued_as_it_is(
    launch: AppTest, service: Any
) -> None:
    found = {}
    for kind in [kind for kind in KINDS if kind != NONE]:
        of_kind(launch, kind)
        assert DOES[kind] in html(launch)
        for name in launch.selectbox(key="launch_method").proto.options:
            found[name] = kind
    titles = {method.title: method.kind for method in service.methods()}
    assert found == titles


@pytest.mark.parametrize("method", ["sparsegpt", "ria", "flap", "hidden", "block_influence", "last"])
def test_each_kind_of_method_makes_an_experiment_without_what_does_not_apply(launch: AppTest, method: str) -> None:
    kind = get_service_method(method).kind
    of_kind(launch, kind)
    launch.selectbox(key="launch_method").set_value(method).run()
    assert not launch.exception
    pruning = yaml(launch).pruning
    assert pruning is not None
    assert pruning.method == method
    assert not launch.button(key="launch_queue").disabled
    assert "esp-error" not in html(launch)


def shown(app: AppTest) -> set[str]:
    """Keys of everything that can be set."""
    kinds = ("checkbox", "multiselect", "number_input", "radio", "selectbox", "slider", "select_slider", "text_input")
    found = {str(widget.key) for kind in kinds for widget in getattr(app, kind)}
    return found | {str(group.key) for kind in ("pills", "segmented_control") for group in app.get(kind)}


WIDTH_ONLY = {
    "launch_heads", "launch_round_to", "launch_same_sizes", "launch_reconstruct", "launch_allocation_width",
}  # fmt: skip


def test_fields_appear_only_where_they_apply(launch: AppTest) -> None:
    assert shown(launch) >= WIDTH_ONLY | {"launch_parts", "launch_layers", "launch_target"}
    assert not shown(launch) & {"launch_pattern", "launch_allocation_mask"}
    of_kind(launch, "mask")
    assert shown(launch) >= {"launch_pattern", "launch_parts", "launch_layers", "launch_allocation_mask"}
    assert not shown(launch) & WIDTH_ONLY
    launch.segmented_control(key="launch_pattern").set_value("2:4").run()
    assert not shown(launch) & {"launch_allocation_mask", "launch_target", "launch_ratio"}
    of_kind(launch, "depth")
    assert "launch_layers" in shown(launch)
    assert not shown(launch) & (WIDTH_ONLY | {"launch_parts", "launch_pattern", "launch_allocation_mask"})
    of_kind(launch, "hidden")
    assert not shown(launch) & (WIDTH_ONLY | {"launch_parts", "launch_pattern", "launch_layers"})
    assert yaml(launch).pruning.layers is None  # type: ignore[union-attr]


def test_settings_of_the_cut_reach_the_experiment(launch: AppTest) -> None:
    launch.radio(key="launch_target").set_value("model").run()
    launch.segmented_control(key="launch_allocation_width").set_value("global").run()
    launch.checkbox(key="launch_reconstruct").check().run()
    launch.slider(key="launch_ratio").set_value(30).run()
    assert not launch.exception
    pruning = yaml(launch).pruning
    assert pruning is not None
    assert (pruning.target, pruning.allocation, pruning.reconstruct) == ("model", "global", True)
    assert "launch_same_sizes" not in shown(launch)
    assert "the scores decide which layers lose how much" in html(launch)
    assert "about 94.2 M" in html(launch)
    assert "refitted on the calibration text" in html(launch)


def test_the_same_sizes_in_all_layers_promise_a_stock_class(launch: AppTest) -> None:
    launch.slider(key="launch_layers").set_range(0, 29).run()
    launch.pills(key="launch_parts").set_value(["mlp"]).run()
    launch.checkbox(key="launch_same_sizes").check().run()
    assert yaml(launch).pruning.same_sizes  # type: ignore[union-attr]
    assert "<b>transformers</b> stock class, no remote code" in html(launch)
    launch.slider(key="launch_layers").set_range(4, 25).run()
    assert "same_sizes is set, but only layers 4–25 are cut" in html(launch)
    assert launch.button(key="launch_queue").disabled


def test_two_in_four_says_which_engines_gain_from_it(launch: AppTest) -> None:
    of_kind(launch, "mask")
    assert "Ampere" not in html(launch)
    launch.segmented_control(key="launch_pattern").set_value("2:4").run()
    assert "NVIDIA GPUs from Ampere on" in html(launch)
    assert "vLLM removed its 2:4 kernels" in html(launch)


def test_layers_that_the_scores_choose_are_said_to_be_an_example(launch: AppTest) -> None:
    of_kind(launch, "depth")
    assert "Removes 4 layers of the 22 from 4 to 25: the scores decide which." in html(launch)
    figures = " ".join(m.value for m in launch.markdown if "espalier-medium" in m.value)
    assert "Layer 25: removed, for example" in figures
    launch.selectbox(key="launch_method").set_value("last").run()
    assert "Removes 4 layers, 22&#8288;–&#8288;25; the other 26 stay as they are." in html(launch)


def test_a_narrower_stream_is_said_in_words(launch: AppTest) -> None:
    of_kind(launch, "hidden")
    assert "Narrows the stream from 576 to 468 channels" in html(launch)
    assert launch.radio(key="launch_target").options[0] == "of the stream's channels"


def test_options_are_bounded_as_their_types_say_and_what_is_wrong_stands_beside_them(launch: AppTest) -> None:
    of_kind(launch, "mask")
    launch.selectbox(key="launch_method").set_value("sparsegpt").run()
    block = launch.number_input(key="launch_option_sparsegpt_block")
    assert (block.value, block.min, block.max, block.step) == (128, 8, 4096, 8)
    launch.number_input(key="launch_option_sparsegpt_damping").set_value(0.05).run()
    assert yaml(launch).pruning.options == {"damping": 0.05}  # type: ignore[union-attr]
    launch.number_input(key="launch_option_sparsegpt_damping").set_value(0.0).run()
    assert not launch.exception
    assert "options of sparsegpt.damping 0.0: should be greater than 0" in html(launch)
    assert launch.button(key="launch_queue").disabled


def test_calibration_is_asked_for_wherever_anything_reads_text(launch: AppTest) -> None:
    launch.selectbox(key="launch_method").set_value("l1").run()
    assert "launch_calibration_samples" not in shown(launch)
    launch.checkbox(key="launch_reconstruct").check().run()
    launch.number_input(key="launch_calibration_samples").set_value(7).run()
    assert yaml(launch).pruning.calibration.samples == 7  # type: ignore[union-attr]
    of_kind(launch, "hidden")
    launch.segmented_control(key="launch_option_hidden_criterion").set_value("l2").run()
    assert "launch_calibration_samples" not in shown(launch)
    launch.segmented_control(key="launch_option_hidden_criterion").set_value("taylor").run()
    assert "launch_calibration_samples" in shown(launch)


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
    launch.pills(key="launch_methods_width").set_value(["l1", "random"]).run()
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
    changes = {**several(width=["l1"], mask=["wanda"], depth=["last"]), "launch_pattern": "4:8"}
    width, depth, mask = made(**changes, launch_heads="query_heads", launch_reconstruct=True)
    assert mask.pruning is not None
    assert width.pruning is not None
    assert depth.pruning is not None
    assert (width.pruning.reconstruct, depth.pruning.reconstruct, mask.pruning.reconstruct) == (True, False, False)
    assert (mask.pruning.pattern, mask.pruning.heads) == ("4:8", "kv_groups")
    assert (width.pruning.pattern, width.pruning.heads) == ("unstructured", "query_heads")


def test_an_allocation_that_one_of_several_methods_cannot_have_is_an_error_and_never_dropped_in_silence() -> None:
    both = several(width=[], mask=["wanda", "magnitude"])
    assert [e.pruning.allocation for e in made(**both) if e.pruning] == ["uniform", "uniform"]
    with pytest.raises(ExperimentError, match="magnitude looks at no text") as caught:
        made(**both, launch_allocation_mask="owl")
    assert [problem.field for problem in caught.value.problems] == ["pruning"]
    alone = made(launch_method="magnitude", launch_allocation_mask="owl")  # left from another method: not on the page
    assert alone[0].pruning is not None
    assert alone[0].pruning.allocation == "uniform"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"launch_several_methods": True, "launch_methods_width": []}, "pruning.method"),
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
    assert [e.name for e in made(launch_target="model", launch_layers=(0, 29))] == ["Taylor 35 % of the model"]
    assert [e.name for e in made(launch_method="hidden", launch_ratio=25)] == ["Hidden channels 25 %"]
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


def test_the_first_door_fills_in_the_recipe_at_the_size_that_stands_on_it(launch: AppTest, service: Any) -> None:
    launch.select_slider(key="launch_keep").set_value(65).run()
    assert not launch.exception
    pruning = yaml(launch).pruning
    assert pruning is not None
    assert pruning == Experiment.parse({"pruning": service.smaller_and_faster(0.65)}).pruning
    plan = service.preview(yaml(launch)).plan
    assert plan.params_after / plan.params_before == pytest.approx(0.65, abs=0.01)
    launch.slider(key="launch_ratio").set_value(10).run()
    launch.button(key="launch_door_smaller").click().run()
    assert launch.session_state["launch_ratio"] == 35
    assert launch.session_state["launch_keep"] == 65
    launch.checkbox(key="launch_stock").check().run()
    assert not launch.exception
    assert yaml(launch).pruning == Experiment.parse({"pruning": service.smaller_and_faster(0.65, True)}).pruning
    assert service.preview(yaml(launch)).plan.after.uniform


def test_every_size_on_the_first_door_can_be_queued(service: Any) -> None:
    for keep, stock in itertools.product(KEEPS, (False, True)):
        values = {**DEFAULTS, **from_pruning(service.smaller_and_faster(keep / 100, stock), 29)}
        experiments = launch_build.experiments(values, {m.name: m for m in service.methods()}, 30)
        assert [service.preview(experiment).problems for experiment in experiments] == [[]]


def test_a_whole_section_finds_its_way_into_the_form_and_out_again() -> None:
    section = {
        "method": "sparsegpt",
        "ratio": 0.4,
        "layers": [3, 20],
        "parts": ["mlp"],
        "allocation": "owl",
        "options": {"block": 64},
        "calibration": {"path": "text.txt", "samples": 9, "length": 64, "seed": 3},
    }
    (found,) = made(**from_pruning(section, 29))
    assert found.pruning == Experiment.parse({"pruning": section}).pruning


def test_a_door_resets_the_options_of_methods(launch: AppTest) -> None:
    launch.segmented_control(key="launch_option_taylor_order").set_value("second").run()
    launch.button(key="launch_door_answer").click().run()
    assert launch.segmented_control(key="launch_option_taylor_order").value == "first"
    assert yaml(launch).pruning.options == {}  # type: ignore[union-attr]


def test_what_was_chosen_is_there_again_after_another_page(launch: AppTest) -> None:
    of_kind(launch, "mask")
    launch.selectbox(key="launch_method").set_value("ria").run()
    launch.segmented_control(key="launch_pattern").set_value("4:8").run()
    launch.switch_page("runs.py").run()
    launch.switch_page("launch.py").run()
    assert not launch.exception
    assert launch.segmented_control(key="launch_kind").value == "mask"
    assert launch.selectbox(key="launch_method").value == "ria"
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


# --- evaluation without a cut


def test_quantised_runs_take_the_dense_model_along(launch: AppTest, service: Any) -> None:
    of_kind(launch, NONE)
    launch.pills(key="launch_quantised").set_value(["q8_0", "q4_0"]).run()
    assert not launch.exception
    assert [yaml(launch, i).model.quantised for i in range(2)] == ["q8_0", "q4_0"]
    assert yaml(launch).evaluation.fidelity
    assert "Queue 3 runs" in launch.button(key="launch_queue").label
    launch.button(key="launch_queue").click().run()
    assert not launch.exception
    assert [e.model.quantised for e in queued(service)] == [None, "q8_0", "q4_0"]
    assert [e.name for e in queued(service)][1:] == ["Q8_0", "Q4_0"]


def test_a_quantised_run_says_what_it_is_and_where_it_is_smaller(launch: AppTest) -> None:
    of_kind(launch, NONE)
    launch.pills(key="launch_quantised").set_value(["q4_0"]).run()
    text = html(launch)
    assert "every weight is rounded to Q4_0" in text
    assert "as a GGUF file" in text
    assert "vLLM" not in text


def test_quantised_models_go_along_with_several_methods() -> None:
    found = made(**several(width=["l1"]), launch_quantised=["q4_0"], launch_ratios=[20, 40], launch_several_ratios=True)
    assert [(e.pruning.method if e.pruning else e.model.quantised) for e in found] == ["l1", "l1", "q4_0"]


def test_a_cut_model_is_not_quantised_by_what_was_ticked_elsewhere() -> None:
    (experiment,) = made(launch_quantised=["q4_0"])
    assert experiment.model.quantised is None


# --- all of the harness's tasks


@pytest.fixture
def task_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of names as the helper keeps it."""
    from core.data import tasks

    monkeypatch.setattr(tasks, "index_file", lambda: tmp_path / "names.json")
    infos = [
        tasks.TaskInfo("mmlu", "group", members=("mmlu_art", "mmlu_law")),
        tasks.TaskInfo("mmlu_art", data_set="org/mmlu"),
        tasks.TaskInfo("mmlu_law", data_set="org/mmlu"),
        tasks.TaskInfo("mbpp", unsafe=True),
    ]
    (tmp_path / "names.json").write_text(tasks.index_text(infos))


def test_tasks_are_found_by_a_part_of_their_name_and_added(task_names: None, launch: AppTest) -> None:
    launch.text_input(key="launch_task_search").set_value("mmlu").run()
    found = launch.pills(key="launch_task_found")
    assert found.options[0].endswith("· 2 tasks")
    found.set_value(["mmlu_law"]).run()
    assert not launch.exception
    assert launch.multiselect(key="launch_tasks").value[-1] == "mmlu_law"
    assert launch.pills(key="launch_task_found").value == []
    assert len(launch.pills(key="launch_task_found").options) == 2  # what is chosen is offered no more
    assert "comes from a data hub" in html(launch)  # and what offline machines lack is said beside the field


def test_tasks_that_run_code_are_named_but_not_offered(task_names: None, launch: AppTest) -> None:
    launch.text_input(key="launch_task_search").set_value("mbpp").run()
    assert "launch_task_found" not in {pills.key for pills in launch.pills}
    assert "only the command line can allow" in html(launch)


def test_a_task_that_runs_code_cannot_be_queued_by_typing_it(task_names: None, service: Any) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.session_state["launch_tasks"] = ["mbpp"]
    app.run()
    assert "runs code that the model writes" in html(app)
    assert app.button(key="launch_queue").disabled
