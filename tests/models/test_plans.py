"""What a ratio becomes: counts worked by hand, and targets met to within one unit."""

from typing import Any

import pytest

from core.errors import ExperimentError
from core.experiment import Experiment, Pruning
from core.models.plans import Plan, floor_count, half_up_count, kept_channels, params_of, plan, zeros_in_matrix
from core.models.sizes import Architecture, LayerSizes

SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
TINYLLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False, "max_position_embeddings": 2048,
}  # fmt: skip
QWEN = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 32768,
}  # fmt: skip


def pruning(**fields: Any) -> Pruning:
    found = Experiment.parse({"pruning": {"method": "l2", **fields}}).pruning
    assert found is not None
    return found


def test_ratios_are_read_as_decimals() -> None:
    assert floor_count(0.29, 100) == 29
    assert int(0.29 * 100) == 28, "the trap this guards against"
    assert half_up_count(0.5, 3) == 2
    assert half_up_count(0.3, 1536) == 461


def test_a_plan_of_tinyllama_at_a_quarter_removes_one_group_and_names_its_share_of_the_model() -> None:
    planned = plan(Architecture.from_config(TINYLLAMA), pruning(ratio=0.25, layers=[4, 17], round_to=1))
    assert planned.cuts[4].after == LayerSizes(24, 3, 4224)
    assert planned.cuts[3].after == planned.cuts[3].before
    assert planned.achieved_model_ratio == pytest.approx(0.140, abs=5e-4)


def test_llm_pruner_at_a_fifth_removes_no_head_of_tinyllama() -> None:
    planned = plan(Architecture.from_config(TINYLLAMA), pruning(ratio=0.20, layers=[4, 18]))
    assert {cut.after.heads for cut in planned.cuts} == {32}


def test_query_heads_leave_the_same_number_in_every_group() -> None:
    planned = plan(Architecture.from_config(TINYLLAMA), pruning(ratio=0.30, heads="query_heads"))
    assert planned.cuts[0].after.kv_heads == 4
    assert planned.cuts[0].after.heads == 4 * (8 - 2)


@pytest.mark.parametrize(
    ("ratio", "n", "step", "kept"), [(0.3, 1536, 32, 1088), (0.3, 1536, 1, 1075), (0.99, 8, 32, 8), (0.99, 64, 16, 16)]
)
def test_kept_channels_are_rounded_up_and_never_none(ratio: float, n: int, step: int, kept: int) -> None:
    assert kept_channels(ratio, n, step) == kept


def test_a_width_cut_never_empties_a_layer() -> None:
    planned = plan(Architecture.from_config(SMOLLM2), pruning(ratio=0.99, round_to=1))
    assert all(cut.after.kv_heads == 1 and cut.after.heads == 3 and cut.after.mlp >= 1 for cut in planned.cuts)


def test_parts_limit_what_is_cut() -> None:
    planned = plan(Architecture.from_config(SMOLLM2), pruning(ratio=0.5, parts=["mlp"]))
    assert planned.cuts[0].after == LayerSizes(9, 3, 768)
    assert planned.achieved_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("shape", "ratio", "pattern", "compare", "zeros"),
    [
        ((3, 5), 0.5, "unstructured", "row", 9),
        ((3, 5), 0.5, "unstructured", "matrix", 8),
        ((3, 8), 0.5, "2:4", "row", 12),
        ((2, 16), 0.5, "4:8", "row", 16),
    ],
)
def test_zeros_are_counted_exactly(
    shape: tuple[int, int], ratio: float, pattern: str, compare: str, zeros: int
) -> None:
    assert zeros_in_matrix(shape, ratio, pattern, compare) == zeros


def test_a_mask_plan_keeps_every_parameter_and_counts_zeros() -> None:
    found = Experiment.parse({"pruning": {"method": "wanda", "ratio": 0.5}}).pruning
    assert found is not None
    planned = plan(Architecture.from_config(SMOLLM2), found)
    assert planned.params_after == planned.params_before
    assert planned.achieved_ratio == pytest.approx(0.5)
    assert planned.params_before - planned.nonzero_after == 106_168_320 // 2


def test_layers_beyond_the_model_are_named() -> None:
    with pytest.raises(ExperimentError, match="layers 4–30 asked for, but the model has layers 0–29"):
        plan(Architecture.from_config(SMOLLM2), pruning(layers=[4, 30]))


# ------------------------------------------------------------------------------- a target fraction of the whole model

MODELS = [SMOLLM2, TINYLLAMA, QWEN]
every_model = pytest.mark.parametrize("config", MODELS, ids=["smollm2", "tinyllama", "qwen"])


def planned(config: dict[str, Any], **fields: Any) -> Plan:
    return plan(Architecture.from_config(config), pruning(**fields))


def costs(config: dict[str, Any]) -> dict[str, int]:
    """Parameters of one unit, counted from the matrices (and biases) that it owns."""
    d, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    hd, bias = d // heads, 1 if config["model_type"] == "qwen2" else 0
    rep = heads // kv
    return {
        "channel": 3 * d,
        "head": hd * (2 * d + bias),
        "group": rep * hd * (2 * d + bias) + 2 * hd * (d + bias),
    }


def gone(made: Plan) -> int:
    return made.params_before - made.params_after


@every_model
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.2, 0.35, 0.5])
@pytest.mark.parametrize("heads", ["kv_groups", "query_heads"])
@pytest.mark.parametrize("round_to", [1, 32])
def test_a_target_is_met_to_within_half_a_step_of_channels(
    config: dict[str, Any], ratio: float, heads: str, round_to: int
) -> None:
    made = planned(config, ratio=ratio, target="model", heads=heads, round_to=round_to)
    assert made.goal == half_up_count(ratio, made.params_before)
    assert abs(gone(made) - made.goal) <= round_to * costs(config)["channel"] / 2
    assert made.achieved_model_ratio == gone(made) / made.params_before
    assert made.exact
    if round_to == 32:
        assert all(cut.after.mlp % 32 == 0 for cut in made.cuts)


@every_model
@pytest.mark.parametrize("ratio", [0.1, 0.3])
@pytest.mark.parametrize("round_to", [1, 32])
def test_with_the_same_sizes_everywhere_a_step_is_one_of_all_layers(
    config: dict[str, Any], ratio: float, round_to: int
) -> None:
    made = planned(config, ratio=ratio, target="model", same_sizes=True, round_to=round_to)
    assert len({cut.after for cut in made.cuts}) == 1
    assert abs(gone(made) - made.goal) <= round_to * costs(config)["channel"] * len(made.cuts) / 2


@every_model
def test_a_target_is_met_by_the_selected_layers_alone(config: dict[str, Any]) -> None:
    made = planned(config, ratio=0.15, target="model", layers=[3, 16], round_to=1)
    assert abs(gone(made) - made.goal) <= costs(config)["channel"] / 2
    for cut in made.cuts:
        assert (cut.after == cut.before) == (not 3 <= cut.layer <= 16)


@every_model
@pytest.mark.parametrize(("heads", "unit"), [("kv_groups", "group"), ("query_heads", "head")])
def test_attention_alone_comes_as_near_as_its_heads_allow(config: dict[str, Any], heads: str, unit: str) -> None:
    made = planned(config, ratio=0.04, target="model", parts=["attention"], heads=heads)
    together = 1 if unit == "group" else config["num_key_value_heads"]  # one in every KV group
    assert abs(gone(made) - made.goal) <= costs(config)[unit] * together / 2
    assert all(cut.after.mlp == cut.before.mlp and cut.after.kv_heads >= 1 for cut in made.cuts)


@every_model
def test_channels_alone_meet_a_target_as_well(config: dict[str, Any]) -> None:
    made = planned(config, ratio=0.2, target="model", parts=["mlp"], round_to=1)
    assert abs(gone(made) - made.goal) <= costs(config)["channel"] / 2
    assert {(cut.after.heads, cut.after.kv_heads) for cut in made.cuts} == {
        (config["num_attention_heads"], config["num_key_value_heads"])
    }


@every_model
def test_layers_differ_by_one_step_at_most(config: dict[str, Any]) -> None:
    made = planned(config, ratio=0.25, target="model", round_to=1)
    widths = {cut.after.mlp for cut in made.cuts}
    assert max(widths) - min(widths) <= 1
    assert len({cut.after.heads for cut in made.cuts}) == 1


@every_model
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_a_mask_meets_a_target_to_within_half_a_weight_a_row_or_matrix(config: dict[str, Any], method: str) -> None:
    made = planned(config, method=method, ratio=0.3, target="model")
    zeros = sum(cut.zeros for cut in made.cuts)
    units = 0
    for cut in made.cuts:
        shapes = made.before.matrix_shapes(cut.layer).values()
        units += len(shapes) if method == "magnitude" else sum(rows for rows, _ in shapes)
    assert abs(zeros - made.goal) <= units / 2
    assert made.params_after == made.params_before
    assert made.params_before - made.nonzero_after == zeros


@every_model
@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_whole_layers_meet_a_target_to_within_half_a_layer(config: dict[str, Any], ratio: float) -> None:
    made = planned(config, method="last", ratio=ratio, target="model")
    layer = made.before.layer_params(0)
    assert abs(gone(made) - made.goal) <= layer / 2
    assert gone(made) == made.layers_removed * layer
    assert made.after.n_layers == made.before.n_layers - made.layers_removed


@every_model
@pytest.mark.parametrize("ratio", [0.05, 0.3])
def test_hidden_channels_meet_a_target_to_within_half_of_what_config_classes_allow(
    config: dict[str, Any], ratio: float
) -> None:
    made = planned(config, method="hidden", ratio=ratio, target="model")
    hidden, heads = made.after.hidden_size, config["num_attention_heads"]
    assert hidden % heads == 0
    one = made.before.params // config["hidden_size"]  # nearly: every parameter but q and k norms belongs to a channel
    assert abs(gone(made) - made.goal) <= one * heads / 2 * 1.01
    assert made.after.head_dim == made.before.head_dim


def test_more_than_can_go_is_refused_with_the_numbers() -> None:
    """A KV group of three stays in each of 30 layers, 32 channels of 1536, and one layer of the model."""
    for fields, most in (
        ({"parts": ["attention"]}, 30 * 2 * costs(SMOLLM2)["group"]),
        ({"layers": [0, 9]}, 10 * (2 * costs(SMOLLM2)["group"] + 1504 * costs(SMOLLM2)["channel"])),
        ({"layers": [0, 9], "round_to": 1}, 10 * (2 * costs(SMOLLM2)["group"] + 1535 * costs(SMOLLM2)["channel"])),
        ({"method": "last", "layers": [0, 9]}, 10 * 3_540_096),
        ({"method": "magnitude", "parts": ["mlp"], "layers": [0, 9]}, 10 * 3 * 576 * 1536),
    ):
        with pytest.raises(ExperimentError, match=rf"50% of the whole model is 67,257,504 .* hold only {most:,} "):
            planned(SMOLLM2, ratio=0.5, target="model", **fields)
    assert planned(SMOLLM2, ratio=0.76, method="last", target="model").layers_removed == 29
    with pytest.raises(ExperimentError, match=f"hold only {29 * 3_540_096:,} "):
        planned(SMOLLM2, ratio=0.77, method="last", target="model")


# ---------------------------------------------------------------------------------------------------- the other kinds


@pytest.mark.parametrize(
    ("layers", "ratio", "removed"), [(None, 0.5, 15), (None, 0.3, 9), ([4, 17], 0.5, 7), ([4, 6], 0.3, 0)]
)
def test_whole_layers_are_counted_down(layers: list[int] | None, ratio: float, removed: int) -> None:
    made = planned(SMOLLM2, method="last", ratio=ratio, layers=layers)
    assert made.layers_removed == removed
    last = 29 if layers is None else layers[1]
    assert [cut.layer for cut in made.cuts if cut.removed] == list(range(last - removed + 1, last + 1))
    assert gone(made) == removed * made.before.layer_params(0)


def test_at_least_one_layer_of_the_model_stays() -> None:
    made = planned({**SMOLLM2, "num_hidden_layers": 1}, method="last", ratio=0.99)
    assert made.layers_removed == 0


@pytest.mark.parametrize(("ratio", "kept"), [(0.3, 405), (0.01, 576), (0.5, 288), (0.999, 9)])
def test_hidden_channels_that_stay_are_rounded_up_to_a_multiple_of_the_heads(ratio: float, kept: int) -> None:
    assert planned(SMOLLM2, method="hidden", ratio=ratio).after.hidden_size == kept  # of 576, by nines


def test_what_scores_decide_is_an_example_and_says_so() -> None:
    for fields in (
        {"method": "l2", "allocation": "global"},
        {"method": "wanda", "allocation": "owl"},
        {"method": "block_influence"},
    ):
        assert not planned(SMOLLM2, ratio=0.3, **fields).exact
    for method in ("l2", "wanda", "last", "hidden"):
        assert planned(SMOLLM2, method=method, ratio=0.3).exact


def test_params_of_a_layer_are_those_of_the_architecture() -> None:
    architecture = Architecture.from_config(QWEN)
    assert params_of(architecture, architecture.layers[0]) == architecture.layer_params(0)
    smaller = LayerSizes(7, 1, 4863)
    lost = architecture.layer_params(0) - params_of(architecture, smaller)
    assert lost == costs(QWEN)["group"] + costs(QWEN)["channel"]
