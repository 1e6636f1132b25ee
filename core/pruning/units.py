"""Coupled structures: the rows and columns that can only go together, and how a score per weight becomes one per unit.

| unit | rows of | columns of |
|---|---|---|
| KV group | q (its `rep` query heads), k, v | o |
| query head | q | o |
| MLP channel | gate, up | down |

In each of these linear layers the channels of unit u are one contiguous block, and the blocks stand in the order of the
units: KV group g owns query heads g·rep … (g+1)·rep − 1. So `view(units, -1)` groups channels correctly, also under
grouped-query attention, where the block of q and o is `rep · head_dim` long and that of k and v `head_dim`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from core.models.families import Matrix
from core.models.sizes import PART_MATRICES, LayerSizes

if TYPE_CHECKING:
    from core.pruning.calibration import InputStats
    from core.pruning.curvature import Curvature

Part = Literal["attention", "mlp"]
Unit = Literal["KV group", "query head", "MLP channel"]

# roles whose rows belong to a unit, and roles whose columns do
_ROWS: dict[Unit, tuple[str, ...]] = {"KV group": ("q", "k", "v"), "query head": ("q",), "MLP channel": ("gate", "up")}
_COLUMNS: dict[Unit, str] = {"KV group": "o", "query head": "o", "MLP channel": "down"}


@dataclass(frozen=True)
class WeightGradients:
    """What calibration learned of one weight matrix.

    `gradient` (out, in) is g = ∂L/∂W of the mean next-token loss over all windows; `fisher` (out, in) the mean over the
    windows of the squared gradient of each window's own mean loss. Both float32; `fisher` only where it was asked for.
    """

    gradient: Tensor
    fisher: Tensor | None = None


@dataclass(frozen=True)
class Member:
    """One weight matrix of a structure. `axis` 0: the structure's units own its rows; 1: its columns."""

    role: str
    axis: Literal[0, 1]
    matrix: Matrix
    gradients: WeightGradients | None = None

    @property
    def weight(self) -> Tensor:
        """W (out, in) in float32, detached."""
        return self.matrix.weight.float()

    @property
    def gradient(self) -> Tensor:
        """∂L/∂W (out, in); only for methods that declare `needs` gradients."""
        if self.gradients is None:
            raise ValueError(
                f"no gradients were gathered for {self.role}: the method must be registered with needs gradients"
            )
        return self.gradients.gradient

    @property
    def fisher(self) -> Tensor:
        """F (out, in); only for methods that declare `needs` fisher."""
        if self.gradients is None or self.gradients.fisher is None:
            raise ValueError(
                f"no Fisher diagonal was gathered for {self.role}: the method must be registered with needs fisher"
            )
        return self.gradients.fisher


@dataclass(frozen=True)
class Structure:
    """All weight matrices that share the units of one part of one decoder layer.

    `read` are statistics of what the units hand to the matrix that reads them (o or down): X (tokens, channels);
    `curved` is the curvature of the loss there.
    """

    layer: int
    part: str
    unit: Unit
    units: int
    members: tuple[Member, ...]
    read: "InputStats | None" = None
    curved: "Curvature | None" = None

    @property
    def reader(self) -> Member:
        """The member whose columns belong to the units: o or down."""
        return self.members[-1]

    @property
    def inputs(self) -> "InputStats":
        """Statistics of the reader's inputs; only for methods that declare `needs` inputs, moments or gram."""
        if self.read is None:
            raise ValueError(
                f"no inputs were gathered for {self.reader.role}: the method must be registered with needs inputs"
            )
        return self.read

    @property
    def curvature(self) -> "Curvature":
        """Of the loss at what the reader makes; only for methods that declare `needs` curvature."""
        if self.curved is None:
            raise ValueError(
                f"no curvature was gathered for {self.reader.role}: the method must be registered with needs curvature"
            )
        return self.curved

    def per_unit(self, channels: Tensor) -> Tensor:
        """Sum scores of the reader's columns (in,) to (units,): a unit's columns are one contiguous block."""
        return channels.view(self.units, -1).sum(dim=1)

    def sum(self, score: Callable[[Member], Tensor], channel: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Sum a score per weight over everything that a unit owns.

        score: maps a member to (out, in). channel: applied to the sum over each channel's fan (a row's inputs, a
        column's outputs) before the channels of a unit are added up; None leaves it. Returns (units,).
        """
        return self.by_member(score, channel).sum(dim=0)

    def by_member(self, score: Callable[[Member], Tensor], channel: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The sums of `sum` before the members are added up: (members, units)."""
        fans = (score(member).sum(dim=1 - member.axis) for member in self.members)  # each (channels,)
        reduced = (fan if channel is None else channel(fan) for fan in fans)
        return torch.stack([each.view(self.units, -1).sum(dim=1) for each in reduced])


def unit_of(part: str, heads: str) -> Unit:
    """The unit that `pruning.heads` asks for in a part of the layer."""
    if part == "mlp":
        return "MLP channel"
    return "KV group" if heads == "kv_groups" else "query head"


def count_units(unit: Unit, sizes: LayerSizes) -> int:
    """How many of these units a layer of these sizes has."""
    return {"KV group": sizes.kv_heads, "query head": sizes.heads, "MLP channel": sizes.mlp}[unit]


def member_roles(unit: Unit) -> tuple[str, ...]:
    """Roles of the linear layers that a unit reaches into."""
    return (*_ROWS[unit], _COLUMNS[unit])


def structure(
    layer: int,
    part: str,
    heads: str,
    sizes: LayerSizes,
    matrices: Mapping[str, Matrix],
    gradients: Mapping[str, WeightGradients] | None = None,
    read: "InputStats | None" = None,
    curved: "Curvature | None" = None,
) -> Structure:
    """The coupled structure of one part of a layer. `matrices` and `gradients` go by role."""
    unit, known = unit_of(part, heads), gradients or {}
    members = [Member(role, 0, matrices[role], known.get(role)) for role in _ROWS[unit]]
    column = _COLUMNS[unit]
    members.append(Member(column, 1, matrices[column], known.get(column)))
    return Structure(layer, part, unit, count_units(unit, sizes), tuple(members), read, curved)


def reader_role(part: str) -> str:
    """Role of the matrix that reads what a part's units make."""
    return "o" if part == "attention" else "down"


def roles_of(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Roles of all linear layers in these parts, in the order of the forward pass."""
    return tuple(role for part in parts for role in PART_MATRICES[part])
