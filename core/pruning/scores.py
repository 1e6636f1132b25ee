"""From scores per unit to the units that stay, and the random streams of seeded methods."""

import hashlib

import torch
from torch import Tensor

from core.errors import NumericalError


def stream(seed: int, layer: int, name: str) -> torch.Generator:
    """A random generator of its own for one part of one layer.

    What layer 10 draws depends on the seed alone, not on which other layers were selected or visited before.
    """
    digest = hashlib.sha256(f"{seed}/{layer}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def checked(scores: Tensor, shape: tuple[int, ...], method: str, where: str) -> Tensor:
    """The scores themselves. ValueError if the method returned another shape, NumericalError on nan or inf."""
    if tuple(scores.shape) != shape:
        raise ValueError(f"{method} returned scores of shape {tuple(scores.shape)} for {where}, expected {shape}")
    if not bool(torch.isfinite(scores).all()):
        raise NumericalError(
            f"{method} gave nan or inf as scores for {where}.",
            "Load the model as float32 or bfloat16, and check that its weights are finite.",
        )
    return scores


def keep_best(scores: Tensor, keep: int) -> Tensor:
    """Ascending indices of the `keep` highest scores (n,); among equals the earlier stays. (keep,) on the CPU."""
    order = scores.cpu().argsort(descending=True, stable=True)
    return order[:keep].sort().values


def keep_best_in_groups(scores: Tensor, groups: int, keep: int) -> Tensor:
    """Ascending indices of the `keep` highest scores inside each of `groups` equal consecutive groups of scores (n,).

    Every KV group keeps the same number of query heads, because attention kernels have one ratio of heads to KV heads.
    """
    size = len(scores) // groups
    chosen = [keep_best(group, keep) + g * size for g, group in enumerate(scores.view(groups, size))]
    return torch.cat(chosen)
