"""Speed: what is measured, and that it is measured in turn."""

import math
import os
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from core.errors import Cancelled
from core.evaluation import load, speed
from core.evaluation.speed import measure


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BUDGET", 0.5)


def test_both_models_get_every_metric_with_spread_and_protocol(tiny_llama: Any) -> None:
    found = measure({"pruned": tiny_llama(), "dense": tiny_llama()}, device="cpu")
    single = [metric for metric in found if metric.protocol["batch"] == 1]
    by_stage = {stage: {m.metric: m for m in single if m.stage == stage} for stage in ("pruned", "dense")}
    for metrics in by_stage.values():
        assert set(metrics) == {
            "prefill_tokens_per_second",
            "first_token_milliseconds",
            "decode_tokens_per_second",
            "peak_memory_bytes",
        }
        assert all(metric.value > 0 and metric.n >= 3 for metric in metrics.values())
        assert metrics["decode_tokens_per_second"].stderr is not None
        assert metrics["decode_tokens_per_second"].protocol["threads"] == torch.get_num_threads()
    assert by_stage["pruned"]["peak_memory_bytes"].protocol == by_stage["dense"]["peak_memory_bytes"].protocol


def test_models_take_turns(tiny_llama: Any) -> None:
    order: list[str] = []
    models = {name: tiny_llama() for name in ("a", "b")}
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: order.append(name))
    measure(models, device="cpu")
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert len(turns) >= 2 * 2 * 4  # two batches: warm-up and at least three rounds


def test_a_slower_model_is_measured_as_slower(tiny_llama: Any) -> None:
    models = {"fast": tiny_llama(), "slow": tiny_llama()}
    models["slow"].model.layers[0].register_forward_hook(lambda *_: time.sleep(0.1))
    found = {(m.stage, m.metric): m.value for m in measure(models, device="cpu") if m.protocol["batch"] == 1}
    assert found["slow", "first_token_milliseconds"] >= 100
    assert found["slow", "decode_tokens_per_second"] <= 10 < found["fast", "decode_tokens_per_second"]


def test_weights_that_are_tied_count_once_in_the_memory(tiny_llama: Any) -> None:
    tied, untied = (speed._Memory("cpu", tiny_llama(tie_word_embeddings=tie)).weights for tie in (True, False))
    assert untied - tied == 96 * 16 * 4


def test_memory_counts_what_a_pass_takes_and_gives_back(tiny_llama: Any) -> None:
    meter = speed._Memory("cpu", tiny_llama())
    if meter.before is None:
        pytest.skip("this system does not tell a process its peak memory")
    block = torch.ones(64 << 20, dtype=torch.uint8)
    del block
    assert (64 << 20) * 0.9 < (meter.peak() or 0) < (64 << 20) * 2


def test_models_with_few_positions_are_measured_within_them(tiny_llama: Any) -> None:
    lengths: list[int] = []
    model = tiny_llama(max_position_embeddings=64)
    model.register_forward_pre_hook(lambda _m, _a, kw: lengths.append(kw["input_ids"].shape[1]), with_kwargs=True)
    (metric, *_) = measure({"dense": model}, device="cpu")
    assert max(lengths) + metric.protocol["decoded"] <= 64


def test_the_median_and_its_error_ignore_one_disturbed_repetition() -> None:
    rows = [{"decode_tokens_per_second": value} for value in (10.0, 10.2, 9.8, 10.1, 1.0)]
    (metric,) = speed._summary("dense", rows, {})
    assert metric.value == 10.0
    assert metric.stderr is not None
    assert metric.stderr < 0.3


def test_two_of_three_that_are_close_do_not_hide_the_third() -> None:
    assert (speed.median_error([47.4, 47.6, 24.8]) or 0) > 20


@pytest.mark.parametrize("repetitions", [3, 4, 5, 8, 15])
def test_the_interval_of_a_speed_holds_its_median_about_as_often_as_it_says(repetitions: int) -> None:
    generator = random.Random(repetitions)
    drawn = [[generator.gauss(100.0, 5.0) for _ in range(repetitions)] for _ in range(4000)]
    held = [abs(statistics.median(each) - 100.0) <= 1.959964 * (speed.median_error(each) or 0) for each in drawn]
    assert 0.9 < sum(held) / len(held) < 0.99


def test_one_repetition_has_no_error() -> None:
    assert speed.median_error([10.0]) is None


def test_quartiles_stand_beside_the_median_and_what_disturbed_it_too() -> None:
    rows = [{"decode_tokens_per_second": value} for value in (8.0, 9.0, 10.0, 11.0, 14.0)]
    (metric,) = speed._summary("dense", rows, {"batch": 1}, "other programs kept 2.0 of 2 cores busy")
    assert metric.details == {"quartiles": [9.0, 11.0], "disturbed": "other programs kept 2.0 of 2 cores busy"}
    assert metric.protocol == {"batch": 1}


def test_a_batch_is_measured_too_and_counts_the_tokens_of_all_its_sequences(tiny_llama: Any) -> None:
    shapes: list[tuple[int, int]] = []
    model = tiny_llama()
    model.register_forward_pre_hook(lambda _m, _a, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    found = measure({"dense": model}, device="cpu")
    many = {m.metric: m for m in found if m.protocol["batch"] == 4}
    assert {batch for batch, _ in shapes} == {1, 4}
    assert set(many) == {"prefill_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes"}
    single = next(m for m in found if m.metric == "decode_tokens_per_second" and m.protocol["batch"] == 1)
    assert many["decode_tokens_per_second"].value > 1.5 * single.value  # four at a time, on a model of no size


def test_a_batch_that_does_not_fit_is_left_out(tiny_llama: Any) -> None:
    def refuse(_model: Any, _arguments: Any, named: Any) -> None:
        if named["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("no room")

    model = tiny_llama()
    model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert {metric.protocol["batch"] for metric in measure({"dense": model}, device="cpu")} == {1}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_other_programs_at_work_are_noticed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "nvml_handle", lambda _device: None)  # a GPU that tells nothing; its host does
    busy = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others = [subprocess.Popen([sys.executable, "-c", busy]) for _ in range(cores)]
    try:
        time.sleep(0.3)
        watcher = load.watch(device)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            math.sqrt(2.0)
        said = watcher.verdict()
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert "core" in said


def test_the_gpu_of_others_is_judged_while_this_process_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(0.0, 5 << 30), (0.0, 5 << 30), (0.0, 5 << 30), (40.0, 5 << 30), (1.0, 5 << 30), (1.0, 7 << 30)])
    monkeypatch.setattr(load.GpuWatch, "_look", lambda _self: next(looks))
    monkeypatch.setattr(load, "nvml_handle", lambda _device: (object(), object()))
    monkeypatch.setattr(load.CpuWatch, "verdict", lambda _self: "")
    said = [load.watch("cuda:0").verdict() for _ in range(3)]
    assert said == [
        "",
        "other programs kept the GPU 40 % busy",
        "the GPU memory of other programs changed by 2.0 GiB meanwhile",
    ]


def test_cancelling_ends_it(tiny_llama: Any) -> None:
    def stop(done: float, _total: float, _unit: str) -> None:
        if done >= 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        measure({"dense": tiny_llama()}, device="cpu", progress=stop)
