"""The training itself, by transformers' Trainer: optimiser steps, mixed precision, checkpoints, and going on from them.

Ours are the loss, the learning rate (which also falls as the allowed minutes run out), what is told of it, when a
checkpoint is written, and when training is called off.
"""

import gc
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from core.device import info, resolve_dtype
from core.errors import NumericalError
from core.progress import Progress
from core.recovery.curve import FILE, Curve, Point, read_curve
from core.recovery.distillation import Objective
from core.recovery.samples import Material, Rows
from core.recovery.watching import Clock, Watch, last_whole, mean

if TYPE_CHECKING:
    from core.experiment import Recovery

__all__ = ["Curve", "Point", "Trained", "micro_batch", "precision", "read_curve", "train", "validate"]

MOST_TOKENS = {"cpu": 2048, "cuda": 65536}  # in a micro-batch
MARGIN = 0.6  # of free memory
STATES = 12  # bytes that a trained number takes besides itself: its gradient, and AdamW's two moments
WARM = 0.2  # of the steps or of the minutes, that warm-up takes at most


@dataclass(frozen=True)
class Trained:
    """How a training went. validation: nats a token before and after; diverged: why it was called off, or ''.

    seconds: of training, over all attempts; earlier_seconds: those of them that an attempt before this one spent.
    """

    steps: int
    planned_steps: int
    seconds: float
    earlier_seconds: float
    tokens: int
    loss_first: float | None
    loss_last: float | None
    validation_before: float | None
    validation_after: float | None
    stopped: str
    diverged: str
    micro_batch: int
    accumulation: int
    gradient_checkpointing: bool
    precision: str
    trained_parameters: int


def _rate(warmup: int, steps: int, clock: Clock) -> Callable[[int], float]:
    """Linear warm-up, then linear fall to zero: by steps, or by the minutes allowed, whichever has gone further.

    Where the minutes allow few steps, warm-up ends when its share of them has gone.
    A function, since a checkpoint would try to hold the state of anything else.
    """

    def rate(step: int) -> float:
        gone = max(step / max(1, steps), clock.share)
        warm = max((step + 1) / max(1, warmup), clock.share / WARM)
        return min(1.0, warm) * max(0.0, 1.0 - gone)

    return rate


class _Trainer(Trainer):  # type: ignore[misc]
    def __init__(self, objective: Objective, rate: Callable[[int], float], **rest: Any) -> None:
        super().__init__(**rest)
        self.objective, self._rate = objective, rate
        self.model_accepts_loss_kwargs = False  # losses are means: the Trainer divides them by the micro-batches
        self.losses: list[Tensor] = []
        self._usual: Tensor | float = 1.0  # learned tokens in a micro-batch of this step, on average

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of a step. Each counts by its learned tokens, so that their size does not matter."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._usual = torch.stack([_learned(each) for each in batches]).float().mean()
        return batches, items

    def compute_loss(
        self, _model: nn.Module, inputs: Mapping[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        with self.accelerator.autocast():  # the loss runs parts of the model, which accelerate does not see
            loss = self.objective(inputs) * (_learned(inputs) / self._usual)
        self.losses.append(loss.detach())
        return (loss, {}) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ARG002 (stock signature)
        if getattr(self, "lr_scheduler", None) is None:
            self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self._rate)
        return self.lr_scheduler


def _learned(batch: Mapping[str, Tensor]) -> Tensor:
    """How many tokens of a batch are learned."""
    return batch["learned"][:, 1:].sum()


def train(
    model: nn.Module,
    objective: Objective,
    material: Material,
    choice: "Recovery",
    *,
    device: str,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Trained:
    """Train what requires gradients in `model`, in place; on from the last checkpoint in `folder` if there is one.

    The micro-batch is halved where memory does not suffice. Where the loss diverges, the weights are those of the last
    checkpoint; NumericalError if there is none.
    """
    curve, checkpoints = Curve(folder / FILE), folder / "checkpoints"
    micro, recompute = micro_batch(model, objective, choice, device)
    os.environ["ACCELERATE_TORCH_DEVICE"] = device  # its own choice would be the first GPU
    while True:
        try:
            return _attempt(
                model, objective, material, choice, device, seed, curve, checkpoints, micro, recompute, progress
            )
        except torch.OutOfMemoryError:
            if micro == 1 and recompute:
                raise
        micro, recompute = smaller(micro, choice.batch_size), True  # out here nothing holds the failed pass any more
        model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _attempt(
    model: nn.Module,
    objective: Objective,
    material: Material,
    choice: "Recovery",
    device: str,
    seed: int,
    curve: Curve,
    checkpoints: Path,
    micro: int,
    recompute: bool,
    progress: Progress,
) -> Trained:
    last = last_whole(checkpoints)
    step = int(last.rpartition("-")[2]) if last else 0
    clock = Clock(None if choice.max_minutes is None else 60 * choice.max_minutes, before=curve.back_to(step))
    accumulation = max(1, choice.batch_size // micro)
    steps = max(1, math.ceil(len(material.train) * choice.epochs / (micro * accumulation)))
    half, brain = precision(device)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=choice.learning_rate,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        fp16=half,
        bf16=brain,
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        logging_strategy="no",
        save_strategy="no",
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=device != "cpu",
        report_to=[],
        disable_tqdm=True,
    )
    if recompute:
        student = objective.student  # the name changed in transformers 5.23
        enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    arguments._n_gpu = min(1, arguments.n_gpu)  # one run, one GPU
    rate = _rate(min(choice.warmup_steps, max(1, int(WARM * steps))), steps, clock)
    trainer = _Trainer(objective, rate, model=model, args=arguments, train_dataset=material.train, data_collator=_stack)
    trainer.label_names = []
    trainer.remove_callback(PrinterCallback)
    watch = Watch(trainer, clock, curve, lambda: validate(objective, model, material.validation, micro, watch.tick))
    watch.progress, watch.row_tokens = progress, material.train.tokens / len(material.train)
    watch.told = step, steps, "steps"
    trainer.add_callback(watch)
    if last is not None:
        watch.go_on(Path(last))
    before = next((each["validation"] for each in curve.read() if each["step"] == 0), None)
    if step == 0:
        before = watch.validate()
        curve.add(Point(0, 0.0, 0, None, 0.0, before))
    trainer.train(resume_from_checkpoint=last)
    model.train(False)
    done = trainer.state.global_step
    if watch.diverged:
        last = last_whole(checkpoints)
        if last is None:
            raise NumericalError(
                f"Training diverged before its first checkpoint: {watch.diverged}.",
                "Lower recovery.learning_rate, or raise recovery.warmup_steps.",
            )
        trainer._load_from_checkpoint(last)
        done = int(last.rpartition("-")[2])
        watch.last_validation = watch.validate()
    shutil.rmtree(checkpoints / "runs", ignore_errors=True)
    return Trained(
        steps=done,
        planned_steps=steps,
        seconds=round(clock.seconds, 2),
        earlier_seconds=round(clock.before, 2),
        tokens=watch.tokens(done),
        loss_first=mean(watch.first),
        loss_last=None if watch.diverged else mean(watch.recent),
        validation_before=before,
        validation_after=watch.last_validation,
        stopped=watch.stopped,
        diverged=watch.diverged,
        micro_batch=micro,
        accumulation=accumulation,
        gradient_checkpointing=recompute,
        precision="float16 autocast" if half else "bfloat16 autocast" if brain else "float32",
        trained_parameters=sum(each.numel() for each in model.parameters() if each.requires_grad),
    )


def _stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def validate(
    objective: Objective, model: nn.Module, rows: Rows | None, micro: int, tick: Callable[[], None] = lambda: None
) -> float | None:
    """−log q of the validation rows' learned tokens, nats a token; None without rows. `tick` after each micro-batch."""
    if rows is None or rows.tokens == 0:
        return None
    was = model.training
    model.train(False)
    try:
        total, count = 0.0, 0
        for start in range(0, len(rows), micro):
            batch = {name: value[start : start + micro] for name, value in _all(rows).items()}
            nll, tokens = objective.nll(batch)
            total, count = total + nll, count + tokens
            tick()
        return total / count
    finally:
        model.train(was)


def _all(rows: Rows) -> dict[str, Tensor]:
    return {"input_ids": rows.ids, "position_ids": rows.positions, "learned": rows.learned}


def precision(device: str) -> tuple[bool, bool]:
    """(float16 autocast, bfloat16 autocast): bfloat16 where the GPU has it, else float16, losses scaled; CPU none."""
    if device == "cpu":
        return False, False
    brain = resolve_dtype("auto", device) == "bfloat16"
    return not brain, brain


def smaller(micro: int, batch: int) -> int:
    """About half as many rows in one pass, so that the batch is still a multiple of them."""
    return next(each for each in range(max(1, micro // 2), 0, -1) if batch % each == 0)


def micro_batch(model: nn.Module, objective: Objective, choice: "Recovery", device: str) -> tuple[int, bool]:
    """(rows in one pass, whether activations are computed again in the backward pass), from the memory there is.

    The number of rows divides the batch.
    """
    if isinstance(choice.micro_batch, int):
        return min(choice.micro_batch, choice.batch_size), False
    kind = "cpu" if device == "cpu" else "cuda"
    config: Any = model.config
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    free = max(0.0, MARGIN * (info(device).free_bytes - STATES * trained))
    logits = 4 * config.vocab_size * (6 if objective.teacher is not None else 4)
    wide = max(each.shape[0] for name, each in model.named_parameters() if each.ndim == 2 and "embed" not in name)
    layer = 4 * (8 * config.hidden_size + 4 * min(wide, 4 * config.hidden_size))
    most = max(1, MOST_TOKENS[kind] // choice.cutoff)
    for recompute in (False, True):
        kept = config.num_hidden_layers * (4 * config.hidden_size if recompute else layer)
        fits = int(free // (choice.cutoff * (logits + kept)))
        if fits >= min(4, choice.batch_size) or recompute:
            rows = max(1, min(fits, most, choice.batch_size))
            return next(each for each in range(rows, 0, -1) if choice.batch_size % each == 0), recompute
    raise AssertionError
