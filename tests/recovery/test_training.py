"""LoRA and distillation on tiny models: what is trained, what stays, how it ends and how it goes on."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from core.errors import Cancelled, NumericalError
from core.experiment import Recovery
from core.recovery import training, watching
from core.recovery.distillation import Objective
from core.recovery.lora import MaskedLinear, attach, merge
from core.recovery.samples import Document, Material, Rows, pack
from core.recovery.training import _rate, read_curve, train
from core.recovery.watching import Clock


def rows(count: int, length: int = 12, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randint(4, 12, (count, length), generator=generator).tolist()
    return pack([Document(tuple(row), (True,) * length) for row in made], 2 * length, 0)


def some(count: int = 16) -> Material:
    return Material(rows(count), rows(4, seed=1), {})


def choice(**changes: Any) -> Recovery:
    fields = {"kind": "lora", "batch_size": 4, "micro_batch": 2, "epochs": 4, "learning_rate": 0.01, "warmup_steps": 1}
    return Recovery.model_validate({**fields, "dropout": 0, "cutoff": 24, **changes})


def run(model: Any, wanted: Recovery, folder: Path, material: Material | None = None, **more: Any) -> Any:
    objective = more.pop("objective", None) or Objective(model)
    how = {"device": "cpu", "seed": 0, "folder": folder, "progress": lambda *_: None, **more}
    masked = how.pop("masked", False)
    trained = model if wanted.full_weights else attach(model, wanted, masked=masked)
    return trained, train(trained, objective, material or some(), wanted, **how)


# ------------------------------------------------------------------------------------------------------------ objective


def batch_of(material: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": material.ids, "position_ids": material.positions, "learned": material.learned}


def test_the_language_model_loss_is_that_of_each_document_alone(tiny_llama: Any) -> None:
    model, total, count = tiny_llama(), 0.0, 0
    material = rows(3)
    for row in range(len(material)):
        for half in (material.ids[row, :12], material.ids[row, 12:]):
            logits = model(half[None]).logits[0]
            if bool(half.sum()):
                total += float(F.cross_entropy(logits[:-1], half[1:], reduction="sum").detach())
                count += 11
    assert float(Objective(model)(batch_of(material)).detach()) == pytest.approx(total / count, rel=1e-5)
    assert Objective(model).nll(batch_of(material)) == (pytest.approx(total, rel=1e-5), count)


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_the_mixture_is_the_formula(tiny_llama: Any, mix: float) -> None:
    student, teacher, temperature = tiny_llama(0), tiny_llama(1), 2.0
    ids = rows(2).ids[:, :12]
    batch = {"input_ids": ids, "position_ids": torch.arange(12).expand_as(ids), "learned": torch.ones_like(ids).bool()}
    with torch.no_grad():
        q, p = student(ids).logits[:, :-1], teacher(ids).logits[:, :-1]
        kl = (p / temperature).softmax(-1) * ((p / temperature).log_softmax(-1) - (q / temperature).log_softmax(-1))
        ce = F.cross_entropy(q.flatten(0, 1), ids[:, 1:].flatten())
        expected = (1 - mix) * ce + mix * temperature**2 * kl.sum(-1).mean()
        found = Objective(student, teacher, mix, temperature)(batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_hidden_states_of_a_model_with_fewer_layers_are_held_against_the_dense_ones(tiny_llama: Any) -> None:
    student, teacher = tiny_llama(num_hidden_layers=1), tiny_llama()
    batch = batch_of(rows(2))
    told = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    with torch.no_grad():
        own, dense = (model.model(**told).last_hidden_state for model in (student, teacher))
        predicts = torch.zeros_like(batch["learned"])
        predicts[:, :-1] = batch["learned"][:, 1:]
        far = float((own - dense)[predicts].square().sum() / dense[predicts].square().sum())
        plain, more = (float(Objective(student, teacher, 0.5, 2.0, hidden)(batch)) for hidden in (0.0, 0.7))
    assert far > 0.01
    assert more - plain == pytest.approx(0.7 * far, rel=1e-4)


def test_distilling_the_dense_model_from_itself_costs_nothing(tiny_llama: Any) -> None:
    model = tiny_llama()
    value = Objective(model, copy.deepcopy(model), 1.0, 2.0, 1.0)(batch_of(rows(2)))
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)


def test_no_gradient_reaches_the_dense_model(tiny_llama: Any) -> None:
    teacher = tiny_llama(1)
    Objective(tiny_llama(0), teacher, 1.0, 2.0, 0.5)(batch_of(rows(2))).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


# ----------------------------------------------------------------------------------------------------------------- LoRA


def masked(tiny_llama: Any) -> Any:
    model = tiny_llama()
    generator = torch.Generator().manual_seed(3)
    for layer in model.model.layers:
        for linear in (layer.mlp.down_proj, layer.self_attn.q_proj):
            linear.weight.data *= torch.rand(linear.weight.shape, generator=generator) > 0.5
    return model


def test_training_sees_what_the_merge_writes_and_zeros_stay(tiny_llama: Any, tmp_path: Path) -> None:
    model = masked(tiny_llama)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained, _ = run(model, choice(), tmp_path, masked=True)
    assert any(isinstance(module, MaskedLinear) for module in trained.modules())
    ids = rows(2).ids
    trained.save_pretrained(str(tmp_path / "adapter"))
    fresh = masked(tiny_llama)
    merged = merge(fresh, tmp_path / "adapter", choice(), masked=True)
    with torch.no_grad():
        assert torch.allclose(trained(ids).logits, merged(ids).logits, atol=1e-4)
    changed = 0
    for name, value in merged.state_dict().items():
        assert torch.equal(value == 0, before[name] == 0), name
        changed += int(not torch.equal(value, before[name]))
    assert changed == 7 * len(fresh.model.layers)


def test_peft_itself_loads_the_adapter_onto_the_pruned_model(tiny_llama: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    trained, _ = run(tiny_llama(), choice(), tmp_path)
    trained.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(tiny_llama(), str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.allclose(trained(rows(2).ids).logits, loaded(rows(2).ids).logits, atol=1e-6)


@pytest.mark.parametrize(("target", "count"), [("all-linear", 7), ("attention", 4), ("mlp", 3)])
def test_the_chosen_parts_get_matrices(tiny_llama: Any, target: str, count: int) -> None:
    model = tiny_llama()
    wrapped = attach(model, choice(target_modules=target), masked=False)
    names = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * count * len(model.model.layers)
    assert not any("lm_head" in name or "embed" in name for name in names)


def test_layers_that_share_matrices_get_them_once(tiny_model: Any) -> None:
    wrapped = attach(tiny_model("phi3"), choice(), masked=False)
    names = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert sum("layers.0." in name for name in names) == 2 * 4  # qkv, o, gate_up, down


# ------------------------------------------------------------------------------------------------------------- training


def test_training_lowers_the_loss_and_says_how_it_went(tiny_llama: Any, tmp_path: Path) -> None:
    _, done = run(tiny_llama(), choice(), tmp_path)
    assert (done.steps, done.planned_steps, done.accumulation, done.micro_batch) == (8, 8, 2, 2)
    assert done.validation_after < done.validation_before
    assert done.loss_last < done.loss_first
    curve = read_curve(tmp_path / "curve.jsonl")
    assert curve[0]["step"] == 0
    assert curve[-1]["step"] == 8
    assert curve[-1]["validation"] == pytest.approx(done.validation_after)
    assert (done.stopped, done.diverged) == ("", "")


@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"kind": "distillation", "full_weights": True}])
def test_a_killed_training_goes_on_to_the_same_end_by_the_same_losses(
    tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(watching, "CHECKPOINT_SHARE", 0.0)
    monkeypatch.setattr(watching, "SAID_EVERY_S", 0.0)
    wanted = choice(**changes)
    whole, done = run(tiny_llama(), wanted, tmp_path / "whole")

    def stop(steps: float, _total: float, _unit: str) -> None:
        if steps >= 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(tiny_llama(), wanted, tmp_path / "killed", progress=stop)
    resumed, again = run(tiny_llama(), wanted, tmp_path / "killed")
    assert (again.steps, again.loss_first) == (done.steps, done.loss_first)  # the start is that of the first attempt
    assert done.earlier_seconds == 0
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    one, other = (read_curve(tmp_path / name / "curve.jsonl") for name in ("whole", "killed"))
    assert [point["step"] for point in other] == [point["step"] for point in one] == list(range(9))
    for name in ("loss", "rate", "tokens"):
        assert [point[name] for point in other[1:]] == pytest.approx([point[name] for point in one[1:]], rel=1e-5), name


def test_one_that_was_killed_after_its_last_step_is_not_trained_further(tiny_llama: Any, tmp_path: Path) -> None:
    whole, done = run(tiny_llama(), choice(), tmp_path)
    weights = {name: value.detach().clone() for name, value in whole.named_parameters()}
    again, once_more = run(tiny_llama(), choice(), tmp_path)
    assert once_more.steps == done.steps
    for name, value in again.named_parameters():
        assert torch.equal(value, weights[name]), name
    assert (once_more.validation_after, once_more.loss_first) == (done.validation_after, done.loss_first)
    assert (once_more.loss_last, once_more.tokens) == (done.loss_last, done.tokens)
    steps = [point["step"] for point in read_curve(tmp_path / "curve.jsonl")]
    assert steps == sorted(set(steps))


def test_one_that_was_killed_after_its_minutes_is_not_trained_much_further(tiny_llama: Any, tmp_path: Path) -> None:
    wanted = choice(epochs=10_000, max_minutes=0.02)
    _, done = run(tiny_llama(), wanted, tmp_path)
    _, again = run(tiny_llama(), wanted, tmp_path)
    assert done.steps <= again.steps <= done.steps + 1
    assert again.stopped == done.stopped


@pytest.mark.parametrize("validation", [1, 2])  # before the first step, and between two
def test_a_validation_is_cancelled_after_the_batch_that_it_is_in(
    tiny_llama: Any, tmp_path: Path, validation: int
) -> None:
    model = tiny_llama()
    objective, batches, asked = Objective(model), [0], 2 * validation - 1  # of two rows, one in each batch

    def nll(batch: Any) -> tuple[float, int]:
        batches[0] += 1
        return objective.nll(batch)

    def watched(batch: Any) -> torch.Tensor:
        return objective(batch)

    def stop(*_: Any) -> None:
        if batches[0] >= asked:
            raise Cancelled

    watched.nll, watched.student, watched.teacher = nll, model, None
    with pytest.raises(Cancelled):
        run(model, choice(micro_batch=1), tmp_path, objective=watched, progress=stop)
    assert batches[0] == asked


def test_full_weights_of_a_masked_model_keep_their_zeros(tiny_llama: Any, tmp_path: Path) -> None:
    from core.recovery.recover import Pruned, _trainable

    model = masked(tiny_llama)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = choice(kind="distillation", full_weights=True, learning_rate=0.001)
    trainable = _trainable(model, wanted, Pruned(tmp_path, masked=True, cut_layers=(0, 1)))
    teacher = tiny_llama()
    run(trainable, wanted, tmp_path, objective=Objective(trainable, teacher, 0.5, 2.0))
    changed = 0
    for name, value in model.state_dict().items():
        assert torch.equal(value == 0, before[name] == 0), name
        changed += int(not torch.equal(value, before[name]))
    assert changed == 7 * 2


def test_the_minutes_allowed_end_it(tiny_llama: Any, tmp_path: Path) -> None:
    told: list[tuple[float, float, str]] = []
    _, done = run(
        tiny_llama(), choice(epochs=10_000, max_minutes=0.03), tmp_path, progress=lambda *what: told.append(what)
    )
    assert {unit for _, _, unit in told} <= {"s", "steps"}
    assert told[-1] == (pytest.approx(1.8), pytest.approx(1.8), "s")  # seconds, since they end it, and not steps
    assert done.steps < done.planned_steps
    assert "0.03 min," in done.stopped
    assert read_curve(tmp_path / "curve.jsonl")[-1]["rate"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("changes", [{}, {"kind": "distillation", "full_weights": True, "learning_rate": 0.003}])
def test_a_training_that_diverges_gives_back_the_last_checkpoint(
    tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(watching, "CHECKPOINT_SHARE", 0.0)
    model = tiny_llama()
    objective, calls = Objective(model), [0]
    good: list[torch.Tensor] = []

    def spoiled(batch: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 9:  # the first micro-batch of step 5
            good.extend(each.detach().clone() for each in model.parameters())
        return objective(batch) * (math.nan if calls[0] > 8 else 1.0)

    spoiled.nll, spoiled.student, spoiled.teacher = objective.nll, model, None
    _, done = run(model, choice(**changes), tmp_path, objective=spoiled)
    assert "nan" in done.diverged
    assert done.steps == 4
    assert done.validation_after is not None
    assert math.isfinite(done.validation_after)
    assert all(torch.equal(each, before) for each, before in zip(model.parameters(), good, strict=True))


def test_a_training_that_diverges_at_once_says_what_to_do(tiny_llama: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    objective = Objective(model)

    def spoiled(batch: Any) -> torch.Tensor:
        return objective(batch) * math.nan

    spoiled.nll, spoiled.student, spoiled.teacher = objective.nll, model, None
    with pytest.raises(NumericalError, match="learning_rate"):
        run(model, choice(), tmp_path, objective=spoiled)


def test_a_loss_that_trebles_counts_as_diverged(tiny_llama: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    objective, calls = Objective(model), [0]

    def rising(batch: Any) -> torch.Tensor:
        calls[0] += 1
        return objective(batch) * (5.0 if calls[0] > 20 else 1.0)

    rising.nll, rising.student, rising.teacher = objective.nll, model, None
    _, done = run(model, choice(epochs=40), tmp_path, objective=rising)
    assert done.diverged.startswith("the loss rose from")
    assert done.steps == 9  # of the last checkpoint that was written while all was well


def test_the_size_of_a_micro_batch_changes_nothing(tiny_llama: Any, tmp_path: Path) -> None:
    """Also where rows differ in how many of their tokens are learned, as answers do."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 12, (8, 24), generator=generator)
    learned = torch.arange(24) < torch.tensor([3, 24, 6, 20, 2, 9, 24, 4])[:, None]
    uneven = Material(Rows(ids, torch.arange(24).expand_as(ids), learned), None, {})
    ends = []
    for micro in (1, 2, 4):
        trained, done = run(tiny_llama(), choice(micro_batch=micro), tmp_path / str(micro), uneven)
        ends.append(([p.detach() for p in trained.parameters() if p.requires_grad], done.loss_last))
    for weights, loss in ends[1:]:
        assert loss == pytest.approx(ends[0][1], rel=1e-5)
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(weights, ends[0][0], strict=True))


def test_where_memory_does_not_suffice_the_micro_batch_is_halved(tiny_llama: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    objective = Objective(model)

    def tight(batch: Any) -> torch.Tensor:
        if len(batch["input_ids"]) > 1:
            raise torch.OutOfMemoryError("too much")
        return objective(batch)

    tight.nll, tight.student, tight.teacher = objective.nll, model, None
    _, done = run(model, choice(micro_batch=4, batch_size=4), tmp_path, objective=tight)
    assert (done.micro_batch, done.accumulation, done.gradient_checkpointing) == (1, 4, True)


@pytest.mark.parametrize(("micro", "batch", "smaller"), [(4, 64, 2), (5, 15, 1), (9, 18, 3), (2, 2, 1), (1, 8, 1)])
def test_a_smaller_micro_batch_still_divides_the_batch(micro: int, batch: int, smaller: int) -> None:
    assert training.smaller(micro, batch) == smaller


def test_the_rate_warms_up_and_falls_with_steps_or_time() -> None:
    clock = Clock(limit=None)
    rate = _rate(4, 100, clock)
    assert [rate(step) for step in (0, 3, 50, 100)] == pytest.approx([0.25, 0.97, 0.5, 0.0])
    timed = _rate(4, 100, Clock(limit=10.0, before=7.5))
    assert timed(10) == pytest.approx(0.25)
    slow = [_rate(100, 1_000_000, Clock(limit=10.0, before=seconds))(3) for seconds in (0.0, 1.0, 2.0, 6.0)]
    assert slow == pytest.approx(
        [0.04, 0.45, 0.8, 0.4], rel=1e-4
    )  # so few steps fit into the time: warm-up takes a fifth of it


def test_a_torn_line_of_the_curve_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_curve(path) == [{"step": 1}]
    assert read_curve(tmp_path / "none") == []
