"""From scores per unit to the units that stay, and the random streams of seeded methods."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

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


@dataclass(frozen=True)
class ScoreCache:
    """Scores on disk, under the hash of everything that determines them: a sweep over ratios calibrates once.

    `identity` names what the engine cannot see itself: the model's fingerprint and the dtype and device of the run.
    """

    directory: Path
    identity: Mapping[str, Any]

    def _file(self, what: Mapping[str, Any]) -> Path:
        text = json.dumps({"v": 1, **self.identity, **what}, sort_keys=True, default=str)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"

    def read(self, what: Mapping[str, Any], names: Iterable[str]) -> dict[str, Tensor] | None:
        """The scores of all `names`, or None where one is missing or the file is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._file(what)
        try:
            held = load_file(path)
        except (OSError, SafetensorError):
            return None
        names = list(names)
        return {name: held[name] for name in names} if all(name in held for name in names) else None

    def write(self, what: Mapping[str, Any], scores: Mapping[str, Tensor]) -> None:
        """Add scores to what is held. A full disk costs only the time to compute them again."""
        from safetensors.torch import save

        path = self._file(what)
        merged = {**(self.read(what, self._names(path)) or {}), **scores}
        data = save({name: each.detach().cpu().contiguous() for name, each in merged.items()})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, prefix=".scores-", delete=False) as file:
                file.write(data)
            Path(file.name).replace(path)
        except OSError:
            return

    @staticmethod
    def _names(path: Path) -> list[str]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as held:
                return list(held.keys())
        except (OSError, SafetensorError):
            return []
