"""What is minimised: the language-model loss, or the divergence from the dense model, or a mixture.

    L = (1 − m)·CE + m·T²·KL(p_T ‖ q_T) + h·D

p, q: next-token distributions of the dense and the pruned model, softmax at temperature T; CE: −log q of the text's own
next token; D: the squared distance of the last layer's normed hidden states, as a share of the dense ones' squares. All
are means over the learned tokens. Hinton et al. 2015, https://arxiv.org/abs/1503.02531
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Objective:
    """The loss of a batch of packed rows. Logits are made at learned positions alone, the dense ones not kept."""

    student: Any
    teacher: Any | None = None
    mix: float = 0.0
    temperature: float = 1.0
    hidden: float = 0.0

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """L of a batch {input_ids, position_ids, learned}, each (B, T); a scalar, with gradients if enabled."""
        own, targets = _states(self.student, batch)
        logits = _logits(self.student, own)
        total = logits.new_zeros(())
        if self.teacher is None or self.mix < 1:
            share = 1.0 if self.teacher is None else 1 - self.mix
            total = total + share * F.cross_entropy(logits, targets)
        if self.teacher is None:
            return total
        with torch.no_grad():
            wanted, _ = _states(self.teacher, batch)
            expected = _logits(self.teacher, wanted)
            expected = F.log_softmax(self._softened(expected), dim=-1)
        if self.mix > 0:
            found = F.log_softmax(self._softened(logits), dim=-1)
            divergence = F.kl_div(found, expected, reduction="sum", log_target=True) / max(1, len(targets))
            total = total + self.mix * self.temperature**2 * divergence
        if self.hidden > 0:
            wanted = wanted.float()
            total = total + self.hidden * (own.float() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
        return total

    def _softened(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1 else logits / self.temperature  # they are gigabytes: no copy for nothing

    @torch.no_grad()
    def nll(self, batch: Mapping[str, Tensor]) -> tuple[float, int]:
        """Summed −log q of the learned tokens of a batch, in nats, and their number."""
        own, targets = _states(self.student, batch)
        return float(F.cross_entropy(_logits(self.student, own), targets, reduction="sum")), len(targets)


def _states(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Normed hidden states (n, d) of the positions whose next token is learned, and these tokens (n,)."""
    device = model.get_input_embeddings().weight.device
    ids = batch["input_ids"].to(device)
    states = model.base_model(
        input_ids=ids, position_ids=batch["position_ids"].to(device), use_cache=False
    ).last_hidden_state
    learned = batch["learned"].to(device)[:, 1:]
    return states[:, :-1][learned], ids[:, 1:][learned]


def _logits(model: Any, states: Tensor) -> Tensor:
    """Float32 logits (n, vocabulary), capped where the family caps them."""
    logits: Tensor = model.get_output_embeddings()(states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
