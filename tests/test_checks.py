from typing import Any

import pytest

from core.checks import check, require
from core.errors import ExperimentError
from core.experiment import Experiment
from core.models.sizes import Architecture

CONFIG = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip


def found(architecture: dict[str, Any] | None = None, **fields: Any) -> dict[str, str]:
    experiment = Experiment.parse({"pruning": {"method": "taylor", "ratio": 0.4}}).with_changes(fields)
    return {
        problem.field: problem.level
        for problem in check(experiment, Architecture.from_config({**CONFIG, **(architecture or {})}))
    }


def test_the_default_experiment_has_no_problem() -> None:
    assert check(Experiment(), Architecture.from_config(CONFIG)) == []
    assert found() == {}


def test_layers_beyond_the_model_are_an_error_of_that_field() -> None:
    assert found(**{"pruning.layers": [4, 30]}) == {"pruning.layers": "error"}


def test_a_ratio_that_removes_no_head_is_a_warning_and_one_that_removes_nothing_an_error() -> None:
    assert found(**{"pruning.ratio": 0.2}) == {"pruning.ratio": "warning"}
    assert found(**{"pruning.ratio": 0.2, "pruning.parts": ["attention"]}) == {"pruning.ratio": "error"}


def test_a_width_not_divisible_by_the_pattern_names_the_matrix() -> None:
    experiment = Experiment.parse({"pruning": {"method": "wanda", "pattern": "4:8"}})
    problems = check(experiment, Architecture.from_config({**CONFIG, "intermediate_size": 1540}))
    assert "down of layer 0 has 1540" in problems[0].message


def test_windows_longer_than_the_model_are_errors() -> None:
    assert found(**{"pruning.calibration.length": 4096}) == {"pruning.calibration.length": "error"}
    assert found(**{"evaluation.perplexity": [{"window": 4096}]}) == {"evaluation.perplexity.0.window": "error"}


def test_judging_on_the_calibration_text_is_a_warning() -> None:
    assert found(**{"pruning.calibration.split": "heldout"}) == {"evaluation.perplexity.0": "warning"}
    assert found(**{"pruning.calibration.path": "a.txt", "evaluation.perplexity": [{"path": "a.txt"}]}) == {
        "evaluation.perplexity.0": "warning"
    }


def test_a_method_that_reads_no_text_cannot_leak() -> None:
    experiment = Experiment.parse({"pruning": {"method": "l2", "ratio": 0.4, "calibration": {"split": "heldout"}}})
    assert check(experiment, Architecture.from_config(CONFIG)) == []


def test_an_unknown_family_lists_the_known_ones() -> None:
    assert found({"model_type": "mamba"}) == {"model.name": "error"}


@pytest.mark.parametrize(
    ("recovery", "field"),
    [
        ({"kind": "lora", "cutoff": 4096}, "cutoff"),
        ({"kind": "lora", "batch_size": 64, "micro_batch": 6}, "micro_batch"),
        ({"kind": "lora", "full_weights": True}, "full_weights"),
        ({"kind": "lora", "hidden_mix": 0.5}, "hidden_mix"),
        ({"kind": "lora", "temperature": 4}, "temperature"),
        ({"kind": "distillation", "full_weights": True, "rank": 16}, "rank"),
        ({"kind": "lora", "data": {"corpus": "generated", "format": "chat"}}, "data.format"),
        ({"kind": "distillation", "data": {"prompt_tokens": 128}}, "data.prompt_tokens"),
    ],
)
def test_what_stands_in_the_way_of_training_is_said_of_its_field(recovery: dict[str, Any], field: str) -> None:
    assert found(recovery=recovery) == {f"recovery.{field}": "error"}


def test_both_kinds_of_recovery_work_as_they_are() -> None:
    assert found(recovery={"kind": "lora"}) == found(recovery={"kind": "distillation", "full_weights": True}) == {}


def test_require_lists_every_error() -> None:
    experiment = Experiment.parse(
        {
            "pruning": {"method": "taylor", "ratio": 0.4, "layers": [0, 99]},
            "recovery": {"kind": "lora", "cutoff": 4096},
        }
    )
    with pytest.raises(ExperimentError, match=r"Samples of 4096 tokens.*layers 0–99"):
        require(experiment, Architecture.from_config(CONFIG))


def test_same_sizes_with_a_layer_range_is_refused() -> None:
    assert found(**{"pruning.same_sizes": True, "pruning.layers": [4, 25]}) == {"pruning.same_sizes": "error"}


def test_a_model_with_code_of_its_own_is_judged_but_not_pruned() -> None:
    architecture = Architecture.from_config(CONFIG)
    pruned = Experiment.parse({"pruning": {"method": "taylor", "ratio": 0.4}})
    assert [p.field for p in check(pruned, architecture, foreign_code=True)] == ["model.name"]
    assert check(Experiment(), architecture, foreign_code=True) == []


@pytest.mark.parametrize(
    "fields",
    [{"pruning.target": "model"}, {"pruning.allocation": "global"}, {"pruning.reconstruct": True}],
)
def test_targets_allocations_and_refits_are_accepted(fields: dict[str, Any]) -> None:
    experiment = Experiment.parse({"pruning": {"method": "taylor", "ratio": 0.3}}).with_changes(fields)
    require(experiment, Architecture.from_config(CONFIG))


@pytest.mark.parametrize(
    ("method", "fields", "says"),
    [
        ("wanda", {"allocation": "global"}, "uniform or owl"),
        ("l2", {"allocation": "owl"}, "uniform or global"),
        ("magnitude", {"allocation": "owl"}, "looks at no text"),
        ("wanda", {"allocation": "owl", "pattern": "2:4"}, "same share of every layer"),
        ("l2", {"allocation": "global", "same_sizes": True}, "leave allocation out"),
        ("hidden", {"layers": [0, 1]}, "layers=.* does not apply"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_in_words(method: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ExperimentError, match=says):
        Experiment.parse({"pruning": {"method": method, **fields}})
