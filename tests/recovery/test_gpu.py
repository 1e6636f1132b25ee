"""Training on a GPU: number formats, loss scaling, and what happens where memory does not suffice."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from core.recovery import training, watching
from core.recovery.distillation import Objective
from core.recovery.recover import Pruned, _trainable
from tests.recovery.test_training import choice, masked, rows, run, some

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU = "cuda:0"


def on_gpu(model: Any, dtype: torch.dtype) -> Any:
    return model.to(device=GPU, dtype=dtype)


@pytest.mark.parametrize("half", [False, True])
def test_lora_is_float32_beside_half_precision_weights(
    tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    monkeypatch.setattr(watching, "CHECKPOINT_SHARE", 0.0)
    if half:  # as on a GPU without bfloat16
        monkeypatch.setattr(training, "precision", lambda _device: (True, False))
    dtype = torch.float16 if half else torch.bfloat16
    trained, done = run(on_gpu(tiny_llama(), dtype), choice(), tmp_path, device=GPU)
    assert done.precision == ("float16 autocast" if half else "bfloat16 autocast")
    assert (done.steps, done.diverged) == (8, "")
    assert done.validation_after < done.validation_before
    kinds = {("lora_" in name, value.dtype) for name, value in trained.named_parameters()}
    assert kinds == {(True, torch.float32), (False, dtype)}
    kept = sorted((tmp_path / "checkpoints").glob("checkpoint-*"))
    assert kept
    assert all((each / "scaler.pt").is_file() == half for each in kept)  # losses are scaled for float16 alone


@pytest.mark.parametrize("half", [False, True])
def test_one_that_was_killed_goes_on(
    tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    from core.errors import Cancelled

    monkeypatch.setattr(watching, "CHECKPOINT_SHARE", 0.0)
    if half:
        monkeypatch.setattr(training, "precision", lambda _device: (True, False))
    dtype = torch.float16 if half else torch.bfloat16

    def stop(steps: float, _total: float, _unit: str) -> None:
        if steps >= 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(on_gpu(tiny_llama(), dtype), choice(), tmp_path, device=GPU, progress=stop)
    _, done = run(on_gpu(tiny_llama(), dtype), choice(), tmp_path, device=GPU)
    assert done.steps == 8
    assert math.isfinite(done.validation_after)
    assert done.validation_after < done.validation_before


@pytest.mark.parametrize("half", [False, True])
def test_masks_and_full_weights_keep_zeros_in_mixed_precision(
    tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    if half:
        monkeypatch.setattr(training, "precision", lambda _device: (True, False))
    model = on_gpu(masked(tiny_llama), torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = choice(kind="distillation", full_weights=True, learning_rate=0.001)
    trainable = _trainable(model, wanted, Pruned(tmp_path, masked=True, cut_layers=(0, 1)))
    teacher = on_gpu(tiny_llama(), torch.float32)
    _, done = run(trainable, wanted, tmp_path, device=GPU, objective=Objective(trainable, teacher, 0.5, 2.0, 0.1))
    assert done.diverged == ""
    state = model.state_dict()
    assert all(torch.equal(value == 0, before[name] == 0) for name, value in state.items())
    assert sum(not torch.equal(value, before[name]) for name, value in state.items()) == 14


def test_masked_lora_trains_in_bfloat16(tiny_llama: Any, tmp_path: Path) -> None:
    _, done = run(on_gpu(masked(tiny_llama), torch.bfloat16), choice(), tmp_path, device=GPU, masked=True)
    assert done.validation_after < done.validation_before


def test_where_memory_does_not_suffice_smaller_passes_do(tiny_llama: Any, tmp_path: Path) -> None:
    model = on_gpu(tiny_llama(vocab_size=65536), torch.bfloat16)
    limit = 1.2 * 2**30  # 128 rows of 23 tokens make 770 MB of logits, several times
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        wanted = choice(micro_batch=128, batch_size=128, epochs=1)
        _, done = run(model, wanted, tmp_path, some(256), device=GPU)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.micro_batch < 128
    assert done.micro_batch * done.accumulation == 128
    assert done.gradient_checkpointing
    assert torch.cuda.max_memory_allocated() <= limit


def test_auto_takes_what_the_memory_holds(tiny_llama: Any) -> None:
    model = on_gpu(tiny_llama(), torch.bfloat16)
    assert len(rows(4)) == 2
    size, recompute = training.micro_batch(model, Objective(model), choice(micro_batch="auto", batch_size=64), GPU)
    assert (size, recompute) == (64, False)
