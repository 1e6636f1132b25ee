"""Recovery of the built-in model: minutes, since the training and the weights are real."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.experiment import Pruning, Recovery, RecoveryData
from core.models.saving import save
from core.models.sizes import Architecture
from core.pruning.prune import prune
from core.recovery.recover import Pruned, recover
from core.recovery.samples import material

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def quiet(*_: Any) -> None:
    """Nobody watches."""


def test_the_dense_model_teaches_its_masked_form_which_keeps_its_zeros(smollm2: Any, tmp_path: Path) -> None:
    dense, tokenizer = copy.deepcopy(smollm2.model), smollm2.tokenizer
    model = copy.deepcopy(dense)
    architecture = Architecture.from_config(model.config.to_dict())
    half = Pruning(method="magnitude", ratio=0.5)
    prune(model, half, architecture=architecture, windows=None, seed=0, device="cpu")
    save(model, tokenizer, tmp_path / "model", quiet, dtype="bfloat16")
    done = recover(
        Pruned(tmp_path / "model", masked=True, cut_layers=tuple(range(architecture.n_layers))),
        Recovery.model_validate(
            {"kind": "distillation", "data": {"max_samples": 16}, "cutoff": 64, "batch_size": 4, "epochs": 1,
             "learning_rate": 1e-3, "warmup_steps": 1, "validation": 0.1},
        ),
        dense=lambda _dtype: (dense, tokenizer),
        fingerprint="smollm2",
        device="cpu",
        dtype="float32",
        saved_dtype="bfloat16",
        seed=0,
        folder=tmp_path / "recovery",
        model_dir=tmp_path / "recovered",
        cache=tmp_path / "cache",
        progress=lambda _task: quiet,
    )  # fmt: skip
    training = done.training
    assert training.validation_before is not None
    assert training.validation_after is not None
    assert training.validation_after < training.validation_before - 0.1
    before, after = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("model", "recovered"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 7 * architecture.n_layers


def test_answers_are_learned_behind_the_prompt_that_chat_makes(smollm2: Any, tmp_path: Path) -> None:
    tokenizer = smollm2.tokenizer
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "Name a colour.", "input": "Of the sky.", "output": "Blue, mostly."}\n')
    made = material(RecoveryData(path=str(path), format="instructions"), tokenizer, length=64, validation=0, seed=0)
    asked = [{"role": "user", "content": "Name a colour.\n\nOf the sky."}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    ids, learned = made.train.ids[0].tolist(), made.train.learned[0].tolist()
    assert ids[: len(prompt)] == prompt
    assert not any(learned[: len(prompt)])
    answer = [token for token, mine in zip(ids, learned, strict=True) if mine]
    assert tokenizer.decode(answer).rstrip("\n") == f"Blue, mostly.{tokenizer.eos_token}"
