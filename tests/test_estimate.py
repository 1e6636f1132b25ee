"""Rough time and memory: a stated model, corrected by what earlier runs took."""

import dataclasses

import pytest

from core import estimate, estimate_cuts, estimate_recovery, estimate_work
from core.device import DeviceInfo, info
from core.experiment import Experiment
from core.models.catalogue import resolve
from core.models.plans import plan
from core.models.sizes import Architecture, LayerSizes
from core.pruning.registry import methods

CPU = DeviceInfo("cpu", 0, "a processor", 16 << 30, 8 << 30)
H200 = DeviceInfo("cuda", 0, "H200", 140 << 30, 139 << 30, (9, 0))
T4 = DeviceInfo("cuda", 0, "T4", 16 << 30, 15 << 30, (7, 5))
SMOLLM2 = Architecture("llama", 576, 64, 49152, True, (LayerSizes(9, 3, 1536),) * 30, max_positions=8192)


def work(device=CPU, dtype="float32", **data):
    experiment = Experiment.parse(data)
    cut = None if experiment.pruning is None else plan(SMOLLM2, experiment.pruning)
    return estimate.Work(experiment, SMOLLM2, cut, device, dtype)


def test_two_cores_are_taken_to_read_six_to_nine_hundred_tokens_a_second(monkeypatch):
    monkeypatch.setattr(estimate_work, "cores", lambda: 2)
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
    assert (
        5 * tasks(limit=100) > tasks(limit=100, shots=4) > 3.5 * tasks(limit=100)
    )  # examples are read once a document


def added(stage, samples=(32, 64), **pruning):
    """Seconds that twice the calibration text adds to a stage."""
    less, more = (
        estimate.stage_seconds(work(pruning={**pruning, "calibration": {"samples": n}})).get(stage, 0.0)
        for n in samples
    )
    return more - less


def test_text_costs_where_it_is_read_gradients_before_the_cut_and_statistics_during_it():
    assert added("calibrate", method="taylor") > 0
    assert added("prune", method="wanda") > 0
    assert added("prune", method="taylor") == added("calibrate", method="wanda") == 0


def test_passes_are_counted_as_the_engine_makes_them():
    once = added("calibrate", method="block_influence")
    assert added("prune", method="wanda") == pytest.approx(2 * once)
    assert added("calibrate", method="wanda", layers=[10, 29]) == pytest.approx(once / 3)
    assert added("calibrate", method="wanda", allocation="owl") == pytest.approx(once)
    assert added("calibrate", method="flap") == pytest.approx(once)
    assert added("calibrate", method="flap", reconstruct=True) == pytest.approx(once)
    assert added("prune", method="flap", reconstruct=True) > 3 * once
    assert 4 < added("calibrate", method="taylor") / once < 8  # the head counts too, and it is a fifth of this model
    assert added("calibrate", method="hidden", options={"criterion": "taylor"}) == pytest.approx(
        added("calibrate", method="taylor")
    )


def test_greedy_removal_costs_half_a_pass_a_candidate_and_round():
    once = added("calibrate", method="block_influence")
    three = added("calibrate", method="perplexity_greedy", ratio=0.1)  # three of thirty layers
    candidates = 30 + 29 + 28
    assert 0.5 * candidates * once < three < 1.1 * candidates * once


def test_gram_matrices_and_solves_make_sparsegpt_dearer_than_wanda():
    assert added("prune", method="sparsegpt") > 1.2 * added("prune", method="wanda")
    one_layer, all_layers = (
        estimate.stage_seconds(work(pruning={"method": "sparsegpt", "layers": layers}))["prune"] - 1
        for layers in ([5, 5], None)
    )
    assert all_layers == pytest.approx(30 * one_layer)


def test_methods_that_go_round_in_turns_cost_as_their_options_say():
    def seconds(**options):
        return estimate.stage_seconds(work(pruning={"method": "admm", "options": options}))["prune"]

    once, few, many = (seconds(iterations=n, refinements=0) for n in (1, 11, 21))
    assert many - few == pytest.approx(few - once)
    assert few > 1.1 * once
    assert seconds(iterations=1, refinements=5) > 1.1 * once


@pytest.mark.skipif("obs" not in methods(), reason="no method asks for a curvature yet")
def test_a_curvature_takes_a_backward_pass_and_moments_of_inputs_and_outputs():
    backward, forward = ({"method": "obs", "options": {"metric": metric}} for metric in ("output", "identity"))
    assert added("calibrate", **backward) > 3 * added("calibrate", method="flap")
    assert added("calibrate", **backward) > added("calibrate", **forward)
    o, down = (576, 576), (576, 1536)
    assert estimate_cuts._summed(work(pruning=backward), 3) == 4 * sum(r**2 + c**2 for r, c in (o, down))


def test_calibration_is_faster_where_the_processor_has_bfloat16(monkeypatch):
    seconds = {}
    for has in (False, True):
        monkeypatch.setattr(estimate_work, "bfloat16_in_hardware", lambda has=has: has)
        seconds[has] = added("calibrate", method="taylor")
    assert seconds[False] > 1.5 * seconds[True]


def test_gradients_that_do_not_fit_at_once_are_taken_in_groups_each_with_a_forward_pass():
    def groups(dtype, **calibration):
        return estimate_cuts._gradient_groups(
            work(H200, dtype, pruning={"method": "taylor", "calibration": calibration})
        )

    assert len(groups("bfloat16", samples=4, length=128)) == 1
    assert len(groups("bfloat16")) == 2  # float32 sums of all layers take 1.6 times the bfloat16 weights
    assert len(groups("float32")) == 1
    assert sorted(layer for group in groups("bfloat16") for layer in group) == list(range(30))


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
    kept_scores = estimate.Pace.of([({"calibrate": 100.0, "load": 1.0}, {"calibrate": 2.0, "load": 1.0})])
    assert kept_scores.apply({"calibrate": 100.0}) == {"calibrate": 100.0}
    assert "3 earlier runs" in pace.basis(CPU, "float32")


def test_without_earlier_runs_the_assumption_is_said_with_its_number(monkeypatch):
    monkeypatch.setattr(estimate, "cores", lambda: 2)
    monkeypatch.setattr(estimate_work, "cores", lambda: 2)
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


QUIET = {"fidelity": False, "speed": False}


def test_memory_grows_with_what_the_method_keeps():
    def needed(**pruning):
        return estimate.pruning_bytes(work(pruning=pruning))

    weights = 4 * SMOLLM2.params
    assert weights < needed(method="l1") < needed(method="wanda") < needed(method="taylor") < 5 * weights
    assert needed(method="sparsegpt") > needed(method="wanda")
    assert needed(method="l1", reconstruct=True) > needed(method="l1")


@pytest.mark.parametrize("order", ["first", "second"])
def test_gradients_take_no_more_than_the_weights_however_much_text_there_is(order, monkeypatch):
    monkeypatch.setattr(estimate_work, "bfloat16_in_hardware", lambda: True)

    def kept(samples):
        options = {"order": order}
        pruning = {"method": "taylor", "options": options, "calibration": {"samples": samples}}
        return estimate_cuts._gradient_bytes(work(pruning=pruning))

    assert kept(1) < kept(64)
    assert kept(64) == kept(4096) <= 4 * SMOLLM2.params


def test_a_gpu_without_room_for_the_model_holds_a_layer_at_a_time():
    small = DeviceInfo("cuda", 0, "small", 1 << 30, 300 << 20, (8, 0))
    tight, roomy = (work(gpu, "bfloat16", pruning={"method": "wanda"}, evaluation=QUIET) for gpu in (small, H200))
    assert estimate.layerwise(tight)
    assert not estimate.layerwise(roomy)
    assert estimate.pruning_bytes(tight) < estimate.pruning_bytes(roomy)
    assert estimate.judging_bytes(tight) == estimate.judging_bytes(roomy)


def test_a_model_is_said_to_be_streamed_exactly_where_the_engine_streams_it(monkeypatch):
    import psutil

    from core.models.streaming import must_stream

    one = work(pruning={"method": "wanda"})

    class Source:
        architecture = SMOLLM2

    class Memory:
        available = 0

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    seen = set()
    for share in (0.3, 0.55, 0.65, 2.0):
        Memory.available = int(4 * SMOLLM2.params / share)
        assert estimate.streamed(one) == must_stream(Source(), "mask")
        seen.add(estimate.streamed(one))
    assert seen == {True, False}
    assert not estimate.streamed(work())


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


def test_a_rounded_model_costs_its_file_and_is_compared_with_dense():
    plain, rounded = work(), work(model={"quantised": "q4_0"})
    assert "save" not in estimate.stage_seconds(plain)
    assert estimate.stage_seconds(rounded)["save"] > 5
    assert "fidelity" in estimate.stage_seconds(rounded)
    assert estimate.memory_bytes(rounded) > estimate.memory_bytes(plain)
    assert estimate.disk_bytes(plain) < 80e6 < estimate.disk_bytes(rounded) < 110e6


def recovering(device=CPU, dtype="float32", **recovery):
    """A run that trains after a cut of a third."""
    data = {"kind": "lora", **recovery}
    return work(device, dtype, pruning={"method": "l1", "ratio": 0.34}, recovery=data)


def test_recovery_is_judged_twice_and_trained_once():
    plain = estimate.stage_seconds(work(pruning={"method": "l1", "ratio": 0.34}))
    both = estimate.stage_seconds(recovering())
    assert {name: both[name] / plain[name] for name in ("perplexity", "tasks", "fidelity", "speed")} == dict.fromkeys(
        ("perplexity", "tasks", "fidelity", "speed"), 2
    )
    assert both["recover"] > both["perplexity"]
    assert "recover" not in plain
    assert estimate.work_kind("recover") == "recover"
    assert estimate.work_kind("judge_recovered.task.piqa") == "tasks"
    assert estimate.work_kind("judge_recovered") is None


def test_a_training_step_is_four_flops_a_parameter_and_token_a_teacher_adds_two():
    one = recovering(validation=0, epochs=1)
    flops = estimate_recovery.training_seconds(one, one.experiment.recovery) * estimate_work.flops_a_second(
        CPU, "float32"
    )
    tokens = estimate_recovery.PASSAGES_TOKENS
    assert 4.0 < flops / (one.after.params * tokens) < 4.6  # products of attention, and gradients of LoRA's matrices
    taught = recovering(kind="distillation", validation=0, epochs=1)
    more = estimate_recovery.training_seconds(taught, taught.experiment.recovery) * estimate_work.flops_a_second(
        CPU, "float32"
    )
    assert 2.0 < (more - flops) / (one.before.params * tokens) < 2.3


def test_the_minutes_allowed_cap_the_training_however_slow_the_device_was_before():
    capped = recovering(max_minutes=1.0)
    stages = estimate.stage_seconds(capped)
    assert 60 < stages["recover"] < 90
    slow = estimate.Pace({"recover": 10.0}, 1).apply(stages)
    assert estimate.capped(slow, capped)["recover"] == pytest.approx(stages["recover"])
    free = recovering()
    assert estimate.capped({"recover": 1e6}, free) == {"recover": 1e6}


def test_the_data_decide_how_much_is_learned_from(tmp_path):
    def tokens(**data):
        return estimate_recovery.data_tokens(recovering(data=data).experiment.recovery)

    assert tokens() == estimate_recovery.PASSAGES_TOKENS
    assert tokens(max_samples=10) == 10 * 256
    assert tokens(corpus="generated") == 2048 * 256
    assert tokens(corpus="alpaca-cleaned", format="instructions") == 51_760 * 107
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "four letters"}\n' * 1000)
    assert 4000 < tokens(path=str(file)) < 8000
    assert tokens(path=str(tmp_path / "no")) == 0


def test_training_weights_takes_more_memory_than_training_lora_and_a_teacher_more_still():
    def needed(**recovery):
        return estimate.recovering_bytes(recovering(micro_batch=4, **recovery))

    assert needed() < needed(kind="distillation") < needed(kind="distillation", full_weights=True)
    assert needed(kind="distillation", full_weights=True) - needed(kind="distillation") > 8 * SMOLLM2.params
    assert estimate.recovering_bytes(work(pruning={"method": "l1"})) == 0
    kept = estimate.disk_bytes(recovering()) - estimate.disk_bytes(work(pruning={"method": "l1", "ratio": 0.34}))
    assert kept == 4 * recovering().after.params


def test_lora_of_tinyllama_at_the_papers_recipe_fits_a_t4():
    tiny = Architecture("llama", 2048, 64, 32000, False, (LayerSizes(32, 4, 5632),) * 22, max_positions=2048)
    experiment = Experiment.parse(
        {
            "pruning": {"method": "taylor", "ratio": 0.3},
            "recovery": {"kind": "lora", "micro_batch": 4},
        }
    )
    one = estimate.Work(experiment, tiny, plan(tiny, experiment.pruning), T4, "float16")
    assert 2 << 30 < estimate.recovering_bytes(one) < 12 << 30


def test_trained_numbers_are_those_of_two_matrices_beside_each_linear_layer():
    one = recovering(rank=8)
    shapes = [shape for i in range(30) for shape in one.after.matrix_shapes(i).values()]
    assert estimate_recovery.trained_parameters(one, one.experiment.recovery) == sum(8 * (o + i) for o, i in shapes)


def test_a_scan_costs_half_a_pass_a_layer_and_saves_nothing() -> None:
    base = {"pruning": {"method": "l1", "ratio": 0.3}, "evaluation": {"perplexity": [{"max_tokens": 4096}]}}
    scan = Experiment.parse({**base, "scan": {}})
    architecture = resolve(scan.model).architecture
    assert scan.pruning is not None
    work = estimate.Work(scan, architecture, plan(architecture, scan.pruning), info("cpu"), "float32")
    seconds = estimate.stage_seconds(work)
    assert set(seconds) == {"load", "scan"}
    ordinary = dataclasses.replace(work, experiment=Experiment.parse(base))
    one = estimate.stage_seconds(ordinary)["perplexity"]
    assert 15 < seconds["scan"] / one < 30  # half of 30 passes, and the head, which is large in so small a model
    parts = dataclasses.replace(work, experiment=scan.with_changes({"scan.by": "part"}))
    assert 2.5 < estimate.stage_seconds(parts)["scan"] / seconds["scan"] < 3
    assert estimate.disk_bytes(work) < 10e6
    assert estimate.work_kind("scan") == "scan"
    assert estimate.work_kind("scan.layer.3") is None
