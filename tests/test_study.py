"""Studies as files: what they stand for, what they are called, and what is said of mistakes."""

import pytest

from core.errors import ExperimentError
from core.experiment import Experiment
from core.presets import quick_look
from core.study import Study, expand, key_of, shipped
from core.study_shares import shared

BASE = "name: Mine\nbase: {pruning: {ratio: 0.5, layers: [4, 25]}, evaluation: {tasks: []}}\n"
TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"


def study(text):
    return Study.from_yaml(BASE + text)


def names(text):
    return [run.name for run in expand(study(text)).runs]


def problems(text):
    with pytest.raises(ExperimentError) as caught:
        expand(Study.from_yaml(text))
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_a_grid_is_a_product_and_runs_come_after_it():
    found = expand(
        study(
            "grid: {pruning.method: [l1, wanda], pruning.ratio: [0.2, 0.3]}\n"
            "runs: [{pruning.method: taylor, pruning.ratio: 0.4, recovery.kind: lora}]"
        )
    )
    assert [run.name for run in found.runs] == [
        "smollm2-135m-instruct, dense",
        "Mine: L1 norm 20 %",
        "Mine: L1 norm 30 %",
        "Mine: Wanda 20 %",
        "Mine: Wanda 30 %",
        "Mine: Taylor 40 %, LoRA",
    ]
    last = found.runs[-1].experiment
    assert last.pruning is not None
    assert (last.pruning.method, last.pruning.ratio, last.pruning.layers) == ("taylor", 0.4, (4, 25))
    assert last.recovery is not None
    assert last.evaluation.tasks == ()
    assert found.runs[0].experiment.dense
    assert not found.left_out


def test_of_recovery_a_name_says_what_differs_among_those_of_its_kind():
    text = """grid:
  - pruning.method: [taylor]
    pruning.ratio: [0.3, 0.4]
    recovery:
      - {kind: lora}
      - {kind: lora, epochs: 4}
      - {kind: distillation, full_weights: true, epochs: 1, micro_batch: 16}
"""
    assert [name for name in names(text) if "30" in name] == [
        "Mine: 30 %, LoRA",
        "Mine: 30 %, LoRA, epochs 4.0",
        "Mine: 30 %, distillation",
    ]


def test_what_goes_without_saying_is_not_in_a_name():
    text = """grid:
  - {pruning.method: [l1, l2], pruning.target: [model, selected], evaluation.speed: [false]}
  - {pruning.method: [l1], device: [cpu], pruning.reconstruct: [true]}
  - {pruning.method: [taylor], evaluation.limit: [5, 10], evaluation.speed: [false]}
"""
    assert [name for name in names(text) if "dense" not in name] == [
        "Mine: L1 norm 50 %, target model",
        "Mine: L1 norm 50 %",
        "Mine: L2 norm 50 %, target model",
        "Mine: L2 norm 50 %",
        "Mine: L1 norm 50 %, device cpu, speed, reconstruct",
        "Mine: Taylor 50 %, limit 5",
        "Mine: Taylor 50 %, limit 10",
    ]


def test_several_grids_and_settings_of_one_method_alone():
    text = """grid:
  - pruning.method: [l1, taylor]
  - {pruning.method: [taylor], pruning.options.order: [second], pruning.calibration.seed: [1, 2]}
"""
    assert names(text)[1:] == [
        "Mine: L1 norm 50 %",
        "Mine: Taylor 50 %",
        "Mine: Taylor 50 %, calibration seed 1, order second",
        "Mine: Taylor 50 %, calibration seed 2, order second",
    ]


def test_seeds_repeat_only_what_depends_on_them():
    assert names("grid: {pruning.method: [l1, random, wanda]}\nseeds: [0, 1]")[1:] == [
        "Mine: L1 norm 50 %",
        "Mine: Random 50 %",
        "Mine: Random 50 %, seed 1",
        "Mine: Wanda 50 %",
        "Mine: Wanda 50 %, seed 1",
    ]


def test_what_computes_the_same_is_run_once():
    assert len(names("runs: [{pruning.method: l1}, {pruning.method: l1, pruning.ratio: 0.5}]")) == 2
    assert len(names("runs: [{pruning.method: l1}, {pruning: null}]")) == 2  # the dense one was asked for, and is first
    assert names("runs: [{pruning.method: l1}, {pruning: null}]")[0] == "Mine: dense"


def test_a_dense_model_for_every_way_of_judging():
    found = expand(study("grid: {pruning.method: [l1, l2], evaluation.limit: [10, 20]}")).runs
    dense = [run.experiment for run in found if run.experiment.dense]
    assert [one.evaluation.limit for one in dense] == [10, 20]
    assert found[0].experiment.dense
    assert found[1].experiment.dense
    alone = expand(study("runs: [{pruning.method: l1}]\nbaseline: false")).runs
    assert len(alone) == 1


def test_what_cannot_work_is_left_out_with_its_reason():
    found = expand(study("grid: {pruning.method: [l1, wanda], pruning.pattern: [unstructured, '2:4']}"))
    assert [run.name for run in found.runs][1:] == ["Mine: L1 norm 50 %", "Mine: Wanda 50 %", "Mine: Wanda 50 %, 2:4"]
    (left,) = found.left_out
    assert left.place == "grid"
    assert left.name == "pruning.method=l1, pruning.pattern=2:4"
    assert "does not apply to l1" in left.reason


def test_a_study_of_which_nothing_works_is_an_error():
    assert "less than 1" in problems(BASE + "grid: {pruning.method: [l1], pruning.ratio: [2, 3]}")["grid"]


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("name: x\ngrid: {pruning.ratoi: [1]}", "grid.pruning.ratoi", "Did you mean 'pruning.ratio'?"),
        ("name: x\ngrid: [{seed: [1]}, {sed: [1]}]", "grid.1.sed", "There is no setting 'sed'"),
        ("name: x\ngrid: {pruning.ratio: 0.3}", "grid.0.pruning.ratio", "valid list"),
        ("name: x\ngrid: {pruning.ratio: []}", "grid.pruning.ratio", "no values"),
        ("name: x\nruns: [{modle.name: y}]", "runs.0.modle.name", "Did you mean 'model.name'?"),
        ("name: x\nbase: {modle: {}}", "base.modle", "Did you mean 'model'?"),
        ("name: x\nbase: {pruning: {ratoi: 1}}", "base.pruning.ratoi", "Did you mean 'pruning.ratio'?"),
        ("name: x\nbase: {pruning: {method: l1, ratio: 2}}", "base.pruning.ratio", "less than 1"),
        ("name: x\nruns: [{name: mine}]", "runs.0.name", "named by what differs"),
        ("name: x\nseeds: [1]\nruns: [{seed: 1}]", "runs.0.seed", "for all runs"),
        ("name: x\ngird: {}", "gird", "Did you mean 'grid'?"),
        ("base: {}", "name", "missing"),
        (f"name: x\ngrid: {{seed: {list(range(3000))}}}", "grid", "At most 2,000"),
    ],
)
def test_mistakes_are_said_with_their_place(text, place, said):
    assert said in problems(text)[place]


def test_a_study_goes_through_yaml_unchanged():
    for one in [*shipped(), study("grid: {pruning.method: [l1]}\nruns: [{seed: 1}]\nbaseline: false")]:
        assert Study.from_yaml(one.to_yaml()) == one


def test_weights_are_kept_only_where_the_study_says_so():
    found = expand(study("runs: [{pruning.method: l1}, {pruning.method: l2, save_model: true}]")).runs
    assert [run.experiment.save_model for run in found] == [False, False, True]


def test_a_key_needs_no_model_and_ignores_names():
    one = Experiment.parse({"name": "a", "model": {"name": "nobody/knows-it"}, "pruning": {"method": "l1"}})
    assert key_of(one) == key_of(one.model_copy(update={"name": "b", "save_model": False}))
    assert key_of(one) != key_of(one.with_changes({"pruning.ratio": 0.4}))
    assert key_of(one) != key_of(one.with_changes({"model.revision": "main"}))


# --- the studies that come with Espalier


def test_the_shipped_studies_work_as_they_are():
    known = {one.id: expand(one) for one in shipped()}
    assert {name: len(found.runs) for name, found in known.items()} == {
        "quick-look": 3,
        "the-study": 42,
        "the-study-layers-4-17": 42,
        "the-study-at-equal-parameters": 42,
        "the-study-on-smollm2": 42,
    }
    for found in known.values():
        assert not found.left_out
        assert found.runs[0].experiment.dense
        assert len({run.name for run in found.runs}) == len(found.runs)


def test_the_study_is_the_one_that_was_asked_for():
    runs = [run.experiment for run in expand(next(one for one in shipped() if one.id == "the-study")).runs]
    cut = [run for run in runs if run.pruning is not None]
    assert {run.model.name for run in runs} == {TINYLLAMA}
    assert {run.pruning.layers for run in cut} == {(4, 18)}
    assert [[text.window for text in run.evaluation.perplexity] for run in runs] == [[2048, 128]] * len(runs)
    assert {len(run.evaluation.tasks) for run in runs} == {7}
    for method in ("random", "l1", "l2", "taylor", "wanda"):
        assert {run.pruning.ratio for run in cut if run.pruning.method == method} == {0.1, 0.2, 0.3, 0.4, 0.5}
    for ratio in (0.1, 0.2, 0.3, 0.4, 0.5):
        assert [run.seed for run in cut if (run.pruning.method, run.pruning.ratio) == ("random", ratio)] == [0, 1, 2]
    for method in ("taylor", "wanda"):
        plain = [run for run in cut if run.pruning.method == method and run.recovery is None]
        assert [run.calibration_seed for run in plain if run.pruning.ratio == 0.3] == [0, 1, 2]
    assert (
        len({run.pruning.calibration.model_copy(update={"seed": None}) for run in cut if run.pruning.reads_text}) == 1
    )
    assert [(run.pruning.method, run.pruning.ratio) for run in cut if run.recovery] == [
        ("taylor", 0.3),
        ("taylor", 0.4),
    ]


@pytest.mark.parametrize(
    ("name", "model", "target", "layers", "ratios"),
    [
        ("the-study-layers-4-17", TINYLLAMA, "selected", (4, 17), (0.1, 0.2, 0.3, 0.4, 0.5)),
        ("the-study-at-equal-parameters", TINYLLAMA, "model", (4, 18), (0.05, 0.1, 0.15, 0.2, 0.25)),
        ("the-study-on-smollm2", "builtin:smollm2-135m-instruct", "selected", (4, 25), (0.1, 0.2, 0.3, 0.4, 0.5)),
    ],
)
def test_the_other_studies_differ_from_it_as_they_say(name, model, target, layers, ratios):
    runs = [run.experiment for run in expand(next(one for one in shipped() if one.id == name)).runs]
    cut = [run for run in runs if run.pruning is not None]
    assert {run.model.name for run in runs} == {model}
    assert {(run.pruning.target, run.pruning.layers) for run in cut} == {(target, layers)}
    for method in ("random", "l1", "l2", "taylor", "wanda"):
        assert {run.pruning.ratio for run in cut if run.pruning.method == method} == set(ratios)
    for ratio in ratios:
        assert [run.seed for run in cut if (run.pruning.method, run.pruning.ratio) == ("random", ratio)] == [0, 1, 2]
    assert [(run.pruning.method, run.pruning.ratio) for run in cut if run.recovery] == [
        ("taylor", ratios[2]),
        ("taylor", ratios[3]),
    ]


def test_the_quick_look_is_the_same_from_a_file():
    quick = next(one for one in shipped() if one.id == "quick-look")
    assert {run.key for run in expand(quick).runs} == {key_of(one) for one in quick_look()}


def test_what_several_runs_share_is_said():
    runs = [run.experiment for run in expand(next(one for one in shipped() if one.id == "the-study")).runs]
    said = shared(runs)
    assert said == [
        "The dense model is judged once, for all 41 runs that are compared with it.",
        "Scores of Taylor (LLM-Pruner) are computed once, for 7 runs that differ in how much they remove.",
        "The evaluation of 2 pruned models before recovery is taken from the run without recovery.",
    ]
    assert shared(runs[:2]) == []
    masks = [run for run in runs if run.pruning is not None and run.pruning.method == "wanda"]
    assert not any("Wanda" in sentence for sentence in shared(masks))
