import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import experiment as module
from core import validated, yaml_text
from core.errors import ExperimentError
from core.experiment import Experiment, Recovery, Resolved, canonical, describe, experiment_hash, schema

RESOLVED = Resolved(model="abc", dtype="float32", device_type="cpu", n_layers=30)


def make(**changes: object) -> Experiment:
    data = {"pruning": {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}}
    return Experiment.parse(data).with_changes(changes)


# --- YAML


def test_yaml_reads_back_to_an_equal_experiment() -> None:
    experiment = make(
        **{"name": "taylor 30 %", "pruning.options": {"order": "second"}, "evaluation.perplexity": ["wikitext2"]}
    )
    assert Experiment.from_yaml(experiment.to_yaml()) == experiment


def test_the_design_document_example_loads() -> None:
    text = """
name: taylor 30 %
model: {name: builtin:smollm2-135m-instruct, revision: null, dtype: auto, trust_remote_code: false}
pruning:
  method: taylor
  ratio: 0.3
  target: selected
  layers: null
  parts: [attention, mlp]
  heads: kv_groups
  round_to: 32
  pattern: unstructured
  allocation: uniform
  same_sizes: false
  reconstruct: false
  options: {order: first}
  calibration: {corpus: passages, path: null, split: train, samples: 32, length: 512, batch_size: auto, seed: null}
recovery: null
evaluation:
  perplexity: [{corpus: passages, path: null, split: heldout, window: 512, max_tokens: null, bos: false}]
  tasks: [boolq, piqa, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa]
  limit: null
  shots: 0
  chat_template: false
  fidelity: true
  speed: true
  batch_size: auto
save_model: true
seed: 0
device: auto
"""
    assert Experiment.from_yaml(text) == Experiment.parse({"name": "taylor 30 %", "pruning": {"method": "taylor"}})


def test_patterns_stay_text_and_exponents_are_numbers() -> None:
    assert yaml_text.load_mapping("a: 2:4\nb: 1e-4\nc: on") == {"a": "2:4", "b": 1e-4, "c": "on"}


def test_aliases_and_large_files_are_refused() -> None:
    with pytest.raises(ExperimentError, match="alias"):
        Experiment.from_yaml("a: &x [1]\nb: [*x, *x]")
    with pytest.raises(ExperimentError, match="bytes"):
        Experiment.from_yaml("name: " + "x" * 70_000)


def test_python_tags_are_refused() -> None:
    with pytest.raises(ExperimentError, match="not YAML"):
        Experiment.from_yaml("name: !!python/object/apply:os.system ['true']")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just text", "a: 1\na: 2", "\x00"])
def test_text_that_is_no_mapping_is_a_clear_error(text: str) -> None:
    with pytest.raises(ExperimentError):
        Experiment.from_yaml(text)


# --- errors


def test_unknown_keys_suggest_the_nearest() -> None:
    with pytest.raises(ExperimentError, match=r"There is no setting 'pruning.ration'. Did you mean 'ratio'\?"):
        Experiment.parse({"pruning": {"method": "wanda", "ration": 0.3}})


def test_an_unknown_method_lists_what_there_is() -> None:
    with pytest.raises(ExperimentError, match=r"no pruning method 'wandas'.*Did you mean 'wanda'\?.*taylor"):
        Experiment.parse({"pruning": {"method": "wandas"}})


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, "a", float("nan")])
def test_a_ratio_outside_its_range_names_the_value(ratio: object) -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment.parse({"pruning": {"method": "wanda", "ratio": ratio}})
    assert caught.value.problems[0].field == "pruning.ratio"
    assert repr(ratio) in caught.value.message


def test_every_problem_is_listed() -> None:
    with pytest.raises(ExperimentError) as caught:
        Experiment.parse({"seed": -1, "device": "tpu", "evaluation": {"limit": 0}})
    assert {problem.field for problem in caught.value.problems} == {"seed", "device", "evaluation.limit"}


def test_settings_of_another_kind_of_method_are_refused() -> None:
    with pytest.raises(ExperimentError, match="pattern='2:4' does not apply to taylor"):
        make(**{"pruning.pattern": "2:4"})
    with pytest.raises(ExperimentError, match="heads='query_heads' does not apply to wanda"):
        Experiment.parse({"pruning": {"method": "wanda", "heads": "query_heads"}})


def test_options_are_checked_by_the_method() -> None:
    with pytest.raises(ExperimentError, match="order"):
        make(**{"pruning.options": {"order": "third"}})
    with pytest.raises(ExperimentError, match="Did you mean 'order'"):
        make(**{"pruning.options": {"ordr": "first"}})


def test_a_pattern_fixes_the_ratio() -> None:
    assert Experiment.parse({"pruning": {"method": "wanda", "pattern": "2:4"}}).pruning.ratio == 0.5
    with pytest.raises(ExperimentError, match=r"always removes 0\.5"):
        Experiment.parse({"pruning": {"method": "wanda", "pattern": "2:4", "ratio": 0.3}})


def test_corpus_and_path_exclude_each_other() -> None:
    entry = Experiment.parse({"evaluation": {"perplexity": [{"path": "a.txt"}]}}).evaluation.perplexity[0]
    assert (entry.corpus, entry.path) == (None, "a.txt")
    with pytest.raises(ExperimentError, match="either corpus or path"):
        Experiment.parse({"evaluation": {"perplexity": [{"path": "a.txt", "corpus": "wikitext2"}]}})


@pytest.mark.parametrize(
    ("recovery", "kind"),
    [
        ({}, "distillation"),
        ({"data": {"corpus": "generated"}}, "distillation"),
        ({"data": {"path": "rows.jsonl", "format": "chat"}}, "lora"),
        ({"data": {"corpus": "alpaca-cleaned", "format": "instructions"}, "rank": 4}, "lora"),
        ({"kind": "lora"}, "lora"),
        ({"kind": "distillation", "data": {"path": "rows.jsonl", "format": "chat"}}, "distillation"),
    ],
)
def test_recovery_is_distillation_where_no_answers_are_given(recovery: dict[str, object], kind: str) -> None:
    experiment = Experiment.parse({"pruning": {"method": "l2"}, "recovery": recovery})
    assert experiment.recovery is not None
    assert experiment.recovery.kind == kind
    assert Experiment.from_yaml(experiment.to_yaml()) == experiment


def test_recovery_is_llm_pruners_published_recipe() -> None:
    """What post_training.py of LLM-Pruner does, as its README calls it (https://github.com/horseee/LLM-Pruner)."""
    recovery = Recovery(kind="lora")
    assert (recovery.rank, recovery.alpha, recovery.dropout) == (8, 16, 0.05)
    assert (recovery.learning_rate, recovery.batch_size, recovery.epochs) == (1e-4, 64, 2)
    assert (recovery.cutoff, recovery.warmup_steps, recovery.target_modules) == (256, 100, "all-linear")


def test_recovery_of_a_dense_model_is_refused() -> None:
    with pytest.raises(ExperimentError, match="nothing to recover from"):
        Experiment.parse({"recovery": {"kind": "lora"}})


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=8)
        | st.sampled_from(["wanda", "taylor"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["pruning", "method", "ratio", "layers", "model", "name", "evaluation", "tasks", "path", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    )
)
def test_any_input_gives_an_experiment_or_a_clear_error(data: object) -> None:
    try:
        experiment = Experiment.parse(data)
    except ExperimentError as error:
        experiment = Experiment()
        message = error.message
    else:
        message = "none"
    assert message
    assert Experiment.parse(experiment.to_dict()) == experiment


# --- hash


def test_name_keeping_and_device_index_do_not_change_the_hash() -> None:
    changed = make(name="other", save_model=False, device="cpu")
    assert experiment_hash(changed, RESOLVED) == experiment_hash(make(), RESOLVED)


def test_what_is_computed_changes_the_hash() -> None:
    base = experiment_hash(make(), RESOLVED)
    assert experiment_hash(make(**{"pruning.ratio": 0.4}), RESOLVED) != base
    assert experiment_hash(make(**{"pruning.options": {"order": "second"}}), RESOLVED) != base
    assert experiment_hash(make(seed=1), RESOLVED) != base
    assert experiment_hash(make(**{"evaluation.limit": 20}), RESOLVED) != base
    for other in ({"model": "abd"}, {"dtype": "bfloat16"}, {"device_type": "cuda"}):
        assert experiment_hash(make(), Resolved(**{**vars(RESOLVED), **other})) != base


def test_defaults_written_out_and_full_ranges_hash_like_those_left_out() -> None:
    short = Experiment.parse({"pruning": {"method": "taylor"}})
    long = short.with_changes(
        {"pruning.layers": [0, 29], "pruning.options": {"order": "first"}, "pruning.calibration.seed": 0}
    )
    assert experiment_hash(long, RESOLVED) == experiment_hash(short, RESOLVED)


def test_settings_that_the_method_ignores_do_not_change_the_hash() -> None:
    magnitude = Experiment.parse({"pruning": {"method": "magnitude"}})
    assert experiment_hash(magnitude.with_changes({"seed": 7}), RESOLVED) == experiment_hash(magnitude, RESOLVED)
    with_text = Experiment.parse({"pruning": {"method": "magnitude", "calibration": {"samples": 8}}})
    assert experiment_hash(with_text, RESOLVED) == experiment_hash(magnitude, RESOLVED)


def test_how_much_of_a_passage_generated_text_begins_with_is_in_the_hash_also_where_nobody_says_it() -> None:
    def of(corpus: str | None, cutoff: int = 512, **data: int) -> Experiment:
        recovery = {"kind": "distillation", "cutoff": cutoff, "data": {"corpus": corpus, **data}}
        return Experiment.parse({"pruning": {"method": "taylor"}, "recovery": recovery})

    empty, said, former = of("generated"), of("generated", prompt_tokens=128), of("generated", prompt_tokens=16)
    assert module.canonical(empty, RESOLVED)["recovery"]["data"] == {"corpus": "generated", "prompt_tokens": 128}
    assert experiment_hash(empty, RESOLVED) == experiment_hash(said, RESOLVED) != experiment_hash(former, RESOLVED)
    short = of("generated", 24, prompt_tokens=500)  # at most half of a document
    assert experiment_hash(short, RESOLVED) == experiment_hash(of("generated", 24), RESOLVED)
    assert "data" not in module.canonical(of(None), RESOLVED)["recovery"]


@pytest.mark.parametrize(("criterion", "matters"), [("l2", False), ("random", True)])
def test_the_seed_of_a_method_counts_where_its_options_draw(criterion: str, matters: bool) -> None:
    one = Experiment.parse(
        {"pruning": {"method": "hidden", "ratio": 0.2, "options": {"criterion": criterion}, "calibration": {"seed": 3}}}
    )
    other = one.with_changes({"seed": 7})
    assert (experiment_hash(one, RESOLVED) != experiment_hash(other, RESOLVED)) is matters


def test_the_hash_of_a_known_experiment_never_changes() -> None:
    """Stored runs are recognised by it: if this fails, a default or a canonical form was changed."""
    assert module.canonical(make(), RESOLVED) == {
        "model": {"fingerprint": "abc", "dtype": "float32", "device_type": "cpu"},
        "pruning": {"method": "taylor", "layers": [4, 25]},
    }
    assert experiment_hash(make(), RESOLVED) == "928a1eaa91fee44e81439260253ed2fcb4781da36af0a67e0f1a4d45fc30aada"


# --- descriptions


def _fields(section: type, prefix: str = "") -> list[str]:
    found = []
    for name, info in section.model_fields.items():
        found.append(prefix + name)
        inner = validated.section_of(info.annotation)
        if inner is not None:
            found += _fields(inner, f"{prefix}{name}.")
    return found


def test_every_field_is_described() -> None:
    for path in _fields(Experiment):
        assert describe(path).endswith("."), path


def test_the_schema_is_json_and_carries_the_descriptions() -> None:
    text = json.dumps(schema())
    assert json.dumps(describe("pruning.ratio"))[1:-1] in text


SCAN = {"pruning": {"method": "taylor", "ratio": 0.3}, "scan": {}}


def test_a_scan_measures_perplexity_alone_and_reads_back_as_it_was() -> None:
    made = Experiment.parse(SCAN)
    assert made.scan is not None
    assert (made.evaluation.tasks, made.evaluation.fidelity, made.evaluation.speed) == ((), False, False)
    assert Experiment.from_yaml(made.to_yaml()) == made
    assert made.with_changes({"pruning.layers": [1, 2]}).scan == made.scan


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pruning": None}, "nothing to try"),
        ({"pruning": {"method": "hidden", "ratio": 0.2}}, "no single layers"),
        ({"pruning": {"method": "taylor", "target": "model"}}, "leave target out"),
        ({"pruning": {"method": "wanda", "allocation": "owl"}}, "leave allocation out"),
        ({"pruning": {"method": "l1", "same_sizes": True}}, "leave same_sizes out"),
        ({"recovery": {"kind": "lora"}}, "trains nothing"),
        ({"evaluation": {"tasks": ["piqa"]}}, "leave evaluation.tasks out"),
        ({"evaluation": {"limit": 5}}, "leave evaluation.limit out"),
        ({"evaluation": {"perplexity": []}}, "must be one text"),
        ({"scan": {"by": "row"}}, "'layer' or 'part'"),
        ({"scan": {"step": 2}}, "step"),
    ],
)
def test_what_does_not_apply_to_a_scan_is_refused_with_a_reason(changes: dict, said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        Experiment.parse({**SCAN, **changes})


def test_a_field_that_is_new_leaves_every_hash_as_it_was_and_a_scan_is_another_run() -> None:
    resolved = Resolved("m", "float32", "cpu", 30)
    run = Experiment.parse({"pruning": SCAN["pruning"], "evaluation": {"tasks": [], "fidelity": False, "speed": False}})
    assert "scan" not in canonical(run, resolved)
    scan = Experiment.parse(SCAN)
    assert experiment_hash(scan, resolved) != experiment_hash(run, resolved)
    assert experiment_hash(scan.with_changes({"scan.by": "part"}), resolved) != experiment_hash(scan, resolved)
