"""What is written down of a cut while it is made: scores and who stays, histograms and images of masked matrices.

Rows are those of core/anatomy_file.py. Nothing here changes what is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 48
IMAGE = 64  # blocks along the longer and the shorter side at most
MOST = 2**22  # weights of a matrix that its histogram counts: every k-th row of a larger one


@dataclass
class Anatomy:
    """Collects rows; one for a cut."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def scores(
        self,
        layer: int,
        name: str,
        unit: str,
        scores: Tensor,
        kept: Tensor | None,
        members: Sequence[int] | None = None,
        what: str = "importance",
    ) -> None:
        """Scores (n,) and which of them stay, ascending indices; None: all."""
        values = scores.detach().double().cpu()
        stays = torch.ones(len(values), dtype=torch.bool)
        if kept is not None:
            stays.zero_()[kept.cpu()] = True
        self.rows.append(
            {
                "kind": "scores",
                "layer": layer,
                "name": name,
                "unit": unit,
                "what": what,
                "values": values.float().tolist(),
                "members": None if members is None else list(members),
                "kept": stays.tolist(),
                "scale": "linear",
                **_around_the_cut(values, stays),
            }
        )

    def weights(self, layer: int, role: str, scores: Tensor, keep: Tensor, what: str = "importance") -> None:
        """Scores (out, in) of one matrix, none negative or all finite, and the mask that was made of them."""
        step = -(-scores.numel() // MOST)
        some, stays = scores[::step].detach().flatten().float(), keep[::step].flatten()
        log = bool((some >= 0).all()) and bool((some > 0).any())
        if log:  # zeros stand with the smallest that is none
            some = some.clamp_min(float(some[some > 0].min())).log10()
        low, high = float(some.min()), float(some.max())
        high = high if high > low else low + 1.0

        def counts(which: Tensor) -> list[int]:
            found: list[float] = torch.histc(some[which], bins=BINS, min=low, max=high).tolist()
            return [int(each) for each in found]

        self.rows.append(
            {
                "kind": "weights",
                "layer": layer,
                "name": role,
                "unit": "weight",
                "what": what,
                "values": torch.linspace(low, high, BINS + 1).tolist(),
                "stayed": counts(stays),
                "removed": counts(stays.logical_not()),
                "scale": "log10" if log else "linear",
                "rows": scores.shape[0],
                "columns": scores.shape[1],
                **_around_the_cut(some, stays),
                **_image(keep),
            }
        )


def _around_the_cut(values: Tensor, stays: Tensor) -> dict[str, float | None]:
    kept, gone = values[stays], values[stays.logical_not()]
    return {
        "least_kept": float(kept.min()) if len(kept) else None,
        "most_removed": float(gone.max()) if len(gone) else None,
    }


def _image(keep: Tensor) -> dict[str, Any]:
    """Density of blocks of a mask (out, in), at most IMAGE along each side."""
    rows, columns = (min(side, IMAGE) for side in keep.shape)
    density = F.adaptive_avg_pool2d(keep.float()[None], (rows, columns))[0]
    data = (density * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy().tobytes()
    return {"image": data, "image_rows": rows, "image_columns": columns}
