"""The training itself, by transformers' Trainer: optimiser steps, mixed precision, checkpoints, and going on from them.

Ours are the loss, the learning rate (which also falls as the allowed minutes run out), what is told of it, when a
checkpoint is written, and when training is called off.
"""

import gc
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from core.device import info, resolve_dtype
from core.errors import NumericalError
from core.files import sync_tree, write_atomic
from core.progress import Progress
from core.recovery.curve import FILE, Curve, Point, read_curve
from core.recovery.distillation import Objective
from core.recovery.samples import Material, Rows

if TYPE_CHECKING:
    from core.experiment import Recovery

__all__ = ["Clock", "Curve", "Point", "Trained", "micro_batch", "precision", "read_curve", "train", "validate"]

DIVERGED = 3.0  # times the loss of the first steps
FIRST_STEPS = 5  # whose mean is the loss at the start, and so many are smoothed over
VALIDATIONS = 10  # in a training
CHECKPOINT_SHARE, CHECKPOINT_S = 0.1, 300.0  # one after such a share of the training, or after so many seconds
SAID_EVERY_S = 2.0
MOST_TOKENS = {"cpu": 2048, "cuda": 65536}  # in a micro-batch
WATCHED = "watched.json"
"""In each checkpoint, written last: the losses it was judged by."""
MARGIN = 0.6  # of free memory


@dataclass(frozen=True)
class Trained:
    """How a training went. validation: nats a token before and after; diverged: why it was called off, or ''."""

    steps: int
    planned_steps: int
    seconds: float
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


def _rate(warmup: int, steps: int, clock: "Clock") -> Callable[[int], float]:
    """Linear warm-up, then linear fall to zero: by steps, or by the minutes allowed, whichever has gone further.

    A function, since a checkpoint would try to hold the state of anything else.
    """

    def rate(step: int) -> float:
        gone = max(step / max(1, steps), clock.share)
        return min(1.0, (step + 1) / max(1, warmup)) * max(0.0, 1.0 - gone)

    return rate


@dataclass
class Clock:
    """Seconds of training so far, over all attempts, and how many are allowed."""

    limit: float | None
    before: float = 0.0
    _begun: float = math.nan

    def start(self) -> None:
        """Training begins, or goes on."""
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first attempt began to train."""
        return self.before + (0.0 if math.isnan(self._begun) else time.monotonic() - self._begun)

    @property
    def share(self) -> float:
        """Of the allowed time that has gone; 0 where there is no limit."""
        return 0.0 if self.limit is None else self.seconds / self.limit


class _Trainer(Trainer):  # type: ignore[misc]
    def __init__(self, objective: Objective, rate: Callable[[int], float], **rest: Any) -> None:
        super().__init__(**rest)
        self.objective, self._rate = objective, rate
        self.model_accepts_loss_kwargs = False  # losses are means: the Trainer divides them by the micro-batches
        self.losses: list[Tensor] = []

    def compute_loss(
        self, _model: nn.Module, inputs: Mapping[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        with self.accelerator.autocast():  # the loss runs parts of the model, which accelerate does not see
            loss = self.objective(inputs)
        self.losses.append(loss.detach())
        return (loss, {}) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ARG002 (stock signature)
        if getattr(self, "lr_scheduler", None) is None:
            self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self._rate)
        return self.lr_scheduler


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Tells progress and curve, ends training when time is up or it diverges, and says when to save."""

    def __init__(self, trainer: "_Trainer", clock: Clock, curve: Curve, validate: Callable[[], float | None]) -> None:
        self.trainer, self.clock, self.curve, self.validate = trainer, clock, curve, validate
        self.progress: Progress = lambda _done, _total, _unit: None
        self.row_tokens = 0.0  # learned tokens in a row, on average
        self.first: list[float] = []
        self.recent: deque[float] = deque(maxlen=FIRST_STEPS)
        self.diverged = self.stopped = ""
        self.last_validation: float | None = None
        self._saved_at = self._said_at = 0.0
        self._next_validation = self._next_save = 0.0

    def tokens(self, step: int) -> int:
        arguments = self.trainer.args
        rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
        return round(float(step * rows * self.row_tokens))

    def tell(self, state: Any, part: float = 0.0) -> None:
        """Progress in steps, or in seconds where the time allowed ends it sooner."""
        done, steps, limit = state.global_step + part, state.max_steps, self.clock.limit
        if limit is not None and self.clock.share > done / steps:
            self.progress(min(self.clock.seconds, limit), limit, "s")
        else:
            self.progress(min(done, steps), steps, "steps")

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.clock.start()
        self._saved_at = self.clock.seconds
        self.tell(state)

    def on_substep_end(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.tell(state, min(1.0, len(self.trainer.losses) / args.gradient_accumulation_steps))

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        loss = float(torch.stack(self.trainer.losses).mean()) if self.trainer.losses else math.nan
        self.trainer.losses.clear()
        self._judge(loss, state.global_step)
        share = max(state.global_step / state.max_steps, self.clock.share)
        if self.clock.limit is not None and self.clock.seconds >= self.clock.limit:
            self.stopped = f"after {self.clock.limit / 60:g} min, as set"
        ending = bool(self.diverged or self.stopped) or state.global_step >= state.max_steps
        validation = None
        if not self.diverged and (share >= self._next_validation or ending):
            validation = self.last_validation = self.validate()
            self._next_validation = share + 1 / VALIDATIONS
        if validation is not None or ending or self.clock.seconds - self._said_at >= SAID_EVERY_S:
            self._said_at = self.clock.seconds
            rates = self.trainer.lr_scheduler.get_last_lr()
            self.curve.add(
                Point(
                    state.global_step,
                    round(self.clock.seconds, 2),
                    self.tokens(state.global_step),
                    loss if math.isfinite(loss) else None,
                    float(rates[0]),
                    validation,
                )
            )
        control.should_training_stop = control.should_training_stop or ending
        due = share >= self._next_save or self.clock.seconds - self._saved_at >= CHECKPOINT_S
        control.should_save = not self.diverged and self._calm() and (due or ending)
        if control.should_save:
            self._saved_at, self._next_save = self.clock.seconds, share + CHECKPOINT_SHARE
        self.tell(state)

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        known = {"first": self.first, "recent": list(self.recent), "validation": self.last_validation}
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sync_tree(folder)
        write_atomic(folder / WATCHED, json.dumps(known))

    def go_on(self, checkpoint: Path) -> None:
        """Know what was known when this checkpoint was written; one without our file leaves that to what comes."""
        try:
            known = json.loads((checkpoint / WATCHED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        self.first, self.last_validation = list(known["first"]), known["validation"]
        self.recent.extend(known["recent"])

    def _judge(self, loss: float, step: int) -> None:
        if len(self.first) < FIRST_STEPS and math.isfinite(loss):
            self.first.append(loss)
        self.recent.append(loss)
        start, now = _mean(self.first), _mean(self.recent)
        if not math.isfinite(loss):
            self.diverged = f"the loss is {loss} at step {step}"
        elif start is not None and now is not None and now > DIVERGED * start:
            self.diverged = f"the loss rose from {start:.3f} to {now:.3f} by step {step}"

    def _calm(self) -> bool:
        start, now = _mean(self.first), _mean(self.recent)
        return start is not None and now is not None and now <= (1 + DIVERGED) / 2 * start


def last_whole(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; torn ones, of a worker that was killed, are removed."""
    while checkpoints.is_dir() and (last := get_last_checkpoint(str(checkpoints))) is not None:
        if (Path(last) / WATCHED).is_file():
            return str(last)
        shutil.rmtree(last)
    return None


def _mean(values: "list[float] | deque[float]") -> float | None:
    return math.fsum(values) / len(values) if values else None


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
    rate = _rate(min(choice.warmup_steps, max(1, steps // 5)), steps, clock)
    trainer = _Trainer(objective, rate, model=model, args=arguments, train_dataset=material.train, data_collator=_stack)
    trainer.label_names = []
    trainer.remove_callback(PrinterCallback)
    watch = _Watch(trainer, clock, curve, lambda: validate(objective, model, material.validation, micro))
    watch.progress, watch.row_tokens = progress, material.train.tokens / len(material.train)
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
        tokens=watch.tokens(done),
        loss_first=_mean(watch.first),
        loss_last=None if watch.diverged else _mean(watch.recent),
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


def validate(objective: Objective, model: nn.Module, rows: Rows | None, micro: int) -> float | None:
    """−log q of the validation rows' learned tokens, nats a token; None without rows."""
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
    free = MARGIN * info(device).free_bytes
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
