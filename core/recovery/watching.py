"""What watches a training: its clock, what is told of it, when a checkpoint is due, and when it is called off."""

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from core.files import sync_tree, write_atomic
from core.progress import Progress
from core.recovery.curve import Curve, Point

if TYPE_CHECKING:
    from core.recovery.training import _Trainer

DIVERGED = 3.0  # times the loss of the first steps
FIRST_STEPS = 5  # whose mean is the loss at the start, and so many are smoothed over
VALIDATIONS = 10  # in a training
CHECKPOINT_SHARE, CHECKPOINT_S = 0.1, 300.0  # one after such a share of the training, or after so many seconds
SAID_EVERY_S = 2.0
WATCHED = "watched.json"
"""In each checkpoint, written last: the losses it was judged by."""


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


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tells progress and curve, ends training when time is up or it diverges, and says when to save."""

    def __init__(self, trainer: "_Trainer", clock: Clock, curve: Curve, validate: Callable[[], float | None]) -> None:
        self.trainer, self.clock, self.curve, self.validate = trainer, clock, curve, validate
        self.progress: Progress = lambda _done, _total, _unit: None
        self.told: tuple[float, float, str] = (0, 1, "steps")
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
            self.told = min(self.clock.seconds, limit), limit, "s"
        else:
            self.told = min(done, steps), steps, "steps"
        self.tick()

    def tick(self) -> None:
        """Say once more where it stands: a validation moves no step, and is cancelled all the same."""
        self.progress(*self.told)

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
        known = {"first": self.first, "recent": list(self.recent), "validation": self.last_validation,
                 "seconds": round(self.clock.seconds, 2)}  # fmt: skip
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
        self.clock.before = max(self.clock.before, float(known.get("seconds", 0.0)))

    def _judge(self, loss: float, step: int) -> None:
        if len(self.first) < FIRST_STEPS and math.isfinite(loss):
            self.first.append(loss)
        self.recent.append(loss)
        start, now = mean(self.first), mean(self.recent)
        if not math.isfinite(loss):
            self.diverged = f"the loss is {loss} at step {step}"
        elif start is not None and now is not None and now > DIVERGED * start:
            self.diverged = f"the loss rose from {start:.3f} to {now:.3f} by step {step}"

    def _calm(self) -> bool:
        start, now = mean(self.first), mean(self.recent)
        return start is not None and now is not None and now <= (1 + DIVERGED) / 2 * start


def last_whole(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; torn ones, of a worker that was killed, are removed."""
    while checkpoints.is_dir() and (last := get_last_checkpoint(str(checkpoints))) is not None:
        if (Path(last) / WATCHED).is_file():
            return str(last)
        shutil.rmtree(last)
    return None


def mean(values: "list[float] | deque[float]") -> float | None:
    """Their mean; None of none."""
    return math.fsum(values) / len(values) if values else None
