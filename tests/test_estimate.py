"""Rough time and memory: a stated model, corrected by what earlier runs took."""

import pytest

from core import estimate
from core.device import DeviceInfo
from core.experiment import Experiment
from core.models.plans import plan
from core.models.sizes import Architecture, LayerSizes

CPU = DeviceInfo("cpu", 0, "a processor", 16 << 30, 8 << 30)
H200 = DeviceInfo("cuda", 0, "H200", 140 << 30, 139 << 30, (9, 0))
T4 = DeviceInfo("cuda", 0, "T4", 16 << 30, 15 << 30, (7, 5))
SMOLLM2 = Architecture("llama", 576, 64, 49152, True, (LayerSizes(9, 3, 1536),) * 30, max_positions=8192)


def work(device=CPU, dtype="float32", **data):
    experiment = Experiment.parse(data)
    cut = None if experiment.pruning is None else plan(SMOLLM2, experiment.pruning)
    return estimate.Work(experiment, SMOLLM2, cut, device, dtype)


def test_two_cores_are_taken_to_read_six_to_nine_hundred_tokens_a_second(monkeypatch):
    monkeypatch.setattr(estimate, "cores", lambda: 2)
    evaluation = {"tasks": [], "perplexity": [{"corpus": "passages", "max_tokens": 8192}]}
    seconds = estimate.stage_seconds(work(evaluation=evaluation))["perplexity"]
    assert 600 / 1.2 < 8192 / seconds < 900


def test_work_that_is_not_asked_for_costs_nothing():
    dense = estimate.stage_seconds(work(evaluation={"tasks": [], "perplexity": [], "speed": False}))
    assert set(dense) == {"load"}
    random = estimate.stage_seconds(work(pruning={"method": "random"}))
    assert "calibrate" not in random
    assert {"prune", "save", "fidelity"} <= set(random)


def test_more_text_documents_and_shots_cost_in_proportion():
    def tasks(**evaluation):
        return (
            estimate.stage_seconds(work(evaluation={"tasks": ["piqa"], **evaluation}))["tasks"] - estimate.TASK_START_S
        )

    assert tasks(limit=200) == pytest.approx(2 * tasks(limit=100), rel=0.01)
    assert tasks(limit=99_999) == pytest.approx(tasks())
    assert tasks(limit=100, shots=4) > 4.5 * tasks(limit=100)


def test_text_costs_where_it_is_read_gradients_before_the_cut_and_statistics_during_it():
    def added(method, stage):
        plain, calibrated = (
            estimate.stage_seconds(work(pruning={"method": method, "calibration": {"samples": samples}}))[stage]
            for samples in (32, 64)
        )
        return calibrated - plain

    assert added("taylor", "calibrate") == pytest.approx(1.5 * added("wanda", "prune"))
    assert added("taylor", "prune") == added("wanda", "calibrate") == 0


def test_a_cut_model_is_judged_faster_than_a_masked_one():
    cut = estimate.stage_seconds(work(pruning={"method": "l1", "ratio": 0.5}))
    masked = estimate.stage_seconds(work(pruning={"method": "magnitude", "ratio": 0.5}))
    assert cut["perplexity"] < 0.75 * masked["perplexity"]


def test_devices_are_told_apart():
    seconds = {
        name: sum(estimate.stage_seconds(work(device, dtype, pruning={"method": "taylor"})).values())
        for name, device, dtype in [("cpu", CPU, "float32"), ("t4", T4, "float16"), ("h200", H200, "bfloat16")]
    }
    assert seconds["h200"] < seconds["t4"] < seconds["cpu"]


def test_a_file_is_counted_by_its_size_and_a_missing_one_as_nothing(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("four letters " * 1000)
    counted = estimate.perplexity_tokens(
        Experiment.parse({"evaluation": {"perplexity": [{"path": str(file)}]}}).evaluation.perplexity[0]
    )
    assert 2000 < counted < 4000
    missing = Experiment.parse({"evaluation": {"perplexity": [{"path": str(tmp_path / "no")}]}}).evaluation.perplexity[
        0
    ]
    assert estimate.perplexity_tokens(missing) == 0


def test_earlier_runs_correct_each_kind_of_work_by_the_median():
    pairs = [({"load": 10.0, "perplexity": 20.0}, {"load": 5.0, "perplexity": factor * 20.0}) for factor in (1, 3, 100)]
    pace = estimate.Pace.of(pairs)
    assert pace.runs == 3
    corrected = pace.apply({"load": 10.0, "perplexity": 1.0, "tasks": 2.0, "save": 7.0})
    assert corrected == {"load": 5.0, "perplexity": 3.0, "tasks": 6.0, "save": 7.0}
    assert "3 earlier runs" in pace.basis(CPU, "float32")


def test_without_earlier_runs_the_assumption_is_said_with_its_number(monkeypatch):
    monkeypatch.setattr(estimate, "cores", lambda: 2)
    said = estimate.Pace().basis(CPU, "float32")
    assert "170 GFLOP/s in float32" in said
    assert "2 CPU cores" in said


def test_parts_of_the_evaluation_are_summed_by_kind_and_its_total_is_left_out():
    timings = [
        ("load", 4.0),
        ("evaluate.perplexity.0", 1.0),
        ("evaluate.task.piqa", 2.0),
        ("evaluate.task.arc_easy", 3.0),
        ("evaluate.speed", None),
        ("evaluate", 6.0),
        ("something new", 1.0),
    ]
    assert estimate.by_kind(timings) == {"load": 4.0, "perplexity": 1.0, "tasks": 5.0}


def test_memory_grows_with_what_the_method_keeps():
    plain = estimate.memory_bytes(work(pruning={"method": "l1"}, evaluation={"fidelity": False, "speed": False}))
    taylor = estimate.memory_bytes(work(pruning={"method": "taylor"}, evaluation={"fidelity": False, "speed": False}))
    fisher = estimate.memory_bytes(
        work(
            pruning={"method": "taylor", "options": {"order": "second"}}, evaluation={"fidelity": False, "speed": False}
        )
    )
    weights = 4 * SMOLLM2.params
    assert weights < plain < taylor < fisher < 8 * weights


def test_memory_of_half_precision_is_about_half():
    quarter = {"pruning": {"method": "l1"}}
    full, half = (estimate.memory_bytes(work(H200, dtype, **quarter)) for dtype in ("float32", "bfloat16"))
    fixed = estimate.PROCESS_BYTES["cuda"] + 2 * estimate.LOGIT_BYTES["cuda"]
    assert (half - fixed) == pytest.approx((full - fixed) / 2, rel=0.01)


def test_disk_is_the_saved_model_and_only_if_it_is_kept():
    kept = estimate.disk_bytes(work(pruning={"method": "l1", "ratio": 0.5}))
    gone = estimate.disk_bytes(work(pruning={"method": "l1", "ratio": 0.5}, save_model=False))
    assert (
        kept - gone
        == 4 * plan(SMOLLM2, Experiment.parse({"pruning": {"method": "l1", "ratio": 0.5}}).pruning).params_after
    )
