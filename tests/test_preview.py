"""What a run would do, in words: sizes, speed, engines, memory that is short."""

import pytest

from core import estimate
from core import preview as previews
from core.device import DeviceInfo
from core.experiment import Experiment
from core.models.plans import plan
from core.presets import smaller_and_faster
from core.pruning.registry import get


def setting(**pruning):
    return previews.settle(Experiment.parse({"pruning": pruning or None, "device": "cpu"}))


def engines(**pruning):
    one = setting(**pruning)
    return {engine.name: engine for engine in previews.opens_in(one, previews.planned(one))}


def test_where_the_scores_share_the_ratio_out_the_totals_are_those_of_the_goal():
    one = setting(method="l2", ratio=0.2, allocation="global", layers=[4, 25])
    cut = previews.planned(one)
    assert not cut.exact
    step = 3 * 576 * 32  # one step of MLP channels
    assert abs((cut.params_before - cut.params_after) - cut.goal) <= step
    assert cut.goal == plan(one.architecture, one.experiment.pruning).goal
    assert {each.layer for each in cut.cuts if each.before != each.after} <= set(range(4, 26))
    assert previews.smaller(cut).split("→")[1].startswith(" about ")


def test_an_even_cut_is_planned_as_the_engine_plans_it():
    one = setting(method="l2", ratio=0.2)
    assert previews.planned(one) == plan(one.architecture, one.experiment.pruning)
    assert "about" not in previews.smaller(previews.planned(one))


def test_a_stock_class_is_promised_only_where_layers_will_surely_end_alike():
    assert "no remote code" in engines(method="last", ratio=0.2)["transformers"].how
    assert "no remote code" in engines(method="block_influence", ratio=0.2)["transformers"].how
    for uneven in (
        {"method": "l2", "ratio": 0.4, "layers": [4, 25]},
        {"method": "l2", "ratio": 0.4, "allocation": "global"},
        {"method": "l2", "ratio": 0.2, "allocation": "global", "parts": ["mlp"]},
    ):
        found = engines(**uneven)
        assert "trust_remote_code=True" in found["transformers"].how
        assert not found["vLLM"].loads


def test_engines_are_told_what_a_mask_is_worth_to_them():
    assert "2:4" in engines(method="wanda", pattern="2:4")["vLLM"].how
    assert "2:4" not in engines(method="wanda", ratio=0.5)["vLLM"].how
    assert "2:4" not in engines()["vLLM"].how


def test_a_pattern_says_who_gains_from_it():
    assert "Ampere" in previews.zeros("2:4")
    assert "vLLM removed" in previews.zeros("2:4")
    assert "No common engine" in previews.zeros("4:8")
    assert previews.zeros("unstructured") == ""


@pytest.fixture
def device(monkeypatch):
    """Sets the device that previews see, and the host's free memory."""
    import psutil

    def set_(kind, free, host=64 << 30):
        found = DeviceInfo(kind, 0, "the device", max(free, 1 << 34), free, (8, 0) if kind == "cuda" else None)
        monkeypatch.setattr(previews, "info", lambda _: found)

        class Memory:
            available = host

        monkeypatch.setattr(psutil, "virtual_memory", Memory)

    return set_


def warnings(**pruning):
    one = setting(**pruning)
    cut = previews.planned(one)
    return " ".join(previews.warnings_of(one, cut, estimate.memory_bytes(previews.work_of(one, cut))))


def test_a_model_larger_than_memory_is_said_to_be_pruned_from_disk(device):
    device("cpu", 100 << 20, host=100 << 20)
    said = warnings(method="wanda")
    assert "pruned a layer at a time from disk" in said
    assert "Needs about" not in said
    assert "Judging it takes the whole model" in said
    assert "Needs about" in warnings()  # the dense model is not pruned


def test_a_gpu_with_little_memory_gets_a_layer_at_a_time_and_a_large_one_nothing_to_say(device):
    device("cuda", 300 << 20)
    assert "layers come to it one at a time" in warnings(method="wanda")
    device("cuda", 100 << 30)
    said = warnings(method="wanda")
    assert "one at a time" not in said
    assert "Needs about" not in said


def test_hidden_channels_of_a_model_that_does_not_fit_are_refused_beside_the_method(device):
    device("cpu", 100 << 20, host=100 << 20)
    found = [p for p in previews.problems_of(setting(method="hidden", ratio=0.25)) if p.level == "error"]
    assert [p.field for p in found] == ["pruning.method"]
    device("cpu", 64 << 30)
    assert not [p for p in previews.problems_of(setting(method="hidden", ratio=0.25)) if p.level == "error"]


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("keep", [0.95, 0.8, 0.65, 0.5])
def test_the_recipe_for_a_smaller_model_keeps_the_share_that_was_asked_for(keep, stock):
    one = setting(**smaller_and_faster(keep, stock=stock))
    assert [p for p in previews.problems_of(one) if p.level == "error"] == []
    cut = previews.planned(one)
    # every layer loses the same, 32 channels at a time: half such a step of SmolLM2 is 0.6 %
    assert cut.params_after / cut.params_before == pytest.approx(keep, abs=0.0063)
    assert get(one.experiment.pruning.method).kind == "width"
    assert cut.exact is stock  # elsewhere measuring decides
    if stock:
        assert cut.after.uniform
    assert one.experiment.pruning.reconstruct
