"""From the hidden states that leave the last layer to the loss, a few rows of logits at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from core.pruning.calibration import Walk

_LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**25}  # elements, tokens × vocabulary


class Head:
    """Final norm and LM head in the dtype of a walk's passes; logits are capped where the family caps them."""

    def __init__(self, walk: Walk) -> None:
        body = walk.body
        self._tick = walk.tick
        self._norm = walk.at_work(body.family.final_norm(body.model))
        self._head = walk.at_work(body.family.head(body.model))
        self._cap: float | None = getattr(body.model.config, "final_logit_softcapping", None)
        self._vocabulary = int(body.model.config.vocab_size)

    def logits(self, states: Tensor) -> Tensor:
        """Logits (n, vocabulary) in float32 of hidden states (n, d) from the last layer."""
        logits = self._head(self._norm(states))
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        result: Tensor = logits.float()
        return result

    def pieces(self, rows: Tensor) -> Iterator[slice]:
        """Slices of the rows (n, d), so few in each that their logits take little memory."""
        step = max(1, _LOGITS_AT_ONCE.get(rows.device.type, 2**23) // self._vocabulary)
        for start in range(0, len(rows), step):
            self._tick()
            yield slice(start, min(start + step, len(rows)))

    def loss_sums(
        self, hidden: Tensor, tokens: Tensor, draws: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Piece by piece of the flattened B · (T − 1) positions: (rows, hidden states (n, d), summed loss in nats).

        hidden: (B, T, d) from the last layer; tokens: (B, T). With gradients enabled each loss can be differentiated
        by its hidden states. draws: (B, T − 1) uniform numbers; by them the next tokens are drawn from the model's own
        distribution, in place of those in the text.
        """
        rows = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        targets = tokens[:, 1:].reshape(-1).to(rows.device)
        uniform = None if draws is None else draws.reshape(-1).to(rows.device)
        for piece in self.pieces(rows):
            states = rows[piece].detach().requires_grad_(torch.is_grad_enabled())
            logits = self.logits(states)
            wanted = targets[piece] if uniform is None else _drawn(logits, uniform[piece])
            yield piece, states, F.cross_entropy(logits, wanted, reduction="sum")


@torch.no_grad()
def _drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token (n,) from the distribution of each row of logits (n, vocabulary), where `uniform` (n,) falls in it."""
    total = logits.softmax(dim=-1).cumsum(dim=-1)
    places = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
    return places[:, 0].clamp_max(logits.shape[-1] - 1)


@contextmanager
def head_of(walk: Walk) -> Iterator[Head]:
    """The head of a walk's model, on the device meanwhile."""
    with walk.body.outside():
        yield Head(walk)
