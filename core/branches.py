"""Decoder layers before and after a cut, from a plan or from what a run reports: what the figure draws. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.models.plans import Plan

UNTOUCHED = 0.998
"""Denser layers count as full: real weights hold a few zeros of their own (SmolLM2-135M: 0.03 %)."""
_MATRICES = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down")}
_UNITS = ("heads", "kv", "mlp")


@dataclass(frozen=True)
class Branch:
    """One decoder layer before and after a cut. Densities are shares of non-zero weights, 1 = no zeros.

    `kept_heads` are the query heads that stay, by their old index; None where only their number is known. `hidden` are
    the channels of the residual stream, the same for all branches; (0, 0) where nobody says. `example`: the scores will
    decide how much this layer loses or whether it goes, and what is drawn is one even way.
    """

    layer: int
    selected: bool
    heads: tuple[int, int]
    kv_heads: tuple[int, int]
    mlp: tuple[int, int]
    attention_density: float = 1.0
    mlp_density: float = 1.0
    kept_heads: tuple[int, ...] | None = None
    hidden: tuple[int, int] = (0, 0)
    example: bool = False

    @property
    def dropped(self) -> bool:
        """Whether nothing is left of the layer."""
        return self.heads[1] == 0 and self.mlp[1] == 0 and self.heads[0] + self.mlp[0] > 0

    @property
    def changed(self) -> bool:
        """Whether the layer loses units or weights."""
        narrower = self.hidden[0] != self.hidden[1]
        return self.heads[0] != self.heads[1] or self.mlp[0] != self.mlp[1] or narrower or min(density(self)) < 1

    @property
    def narrowed(self) -> float:
        """What is left of the stream's width, as a share."""
        return self.hidden[1] / self.hidden[0] if self.hidden[0] else 1.0

    def sentence(self) -> str:
        """What happens in this layer, for people who point at it or hear it read."""
        about = " about" if self.example and self.changed else ""
        if self.dropped:
            return f"Layer {self.layer}: removed{', for example' if self.example else ''}"
        changes = [
            _change(*self.heads, "heads"),
            _change(*self.kv_heads, "KV heads"),
            _change(*self.mlp, "MLP channels"),
        ]
        if self.attention_density < 1:
            changes.append(f"attention {1 - self.attention_density:.1%} zeros")
        if self.mlp_density < 1:
            changes.append(f"MLP {1 - self.mlp_density:.1%} zeros")
        if self.hidden[0] != self.hidden[1]:
            changes.append(_change(*self.hidden, "channels of the stream"))
        return f"Layer {self.layer}:{about} {', '.join(changes)}{'' if self.selected else ' (not chosen)'}"


def _change(before: int, after: int, what: str) -> str:
    return f"{before:,} {what}" if before == after else f"{before:,} → {after:,} {what}"


def branches_of_plan(plan: "Plan", parts: Iterable[str] = ("attention", "mlp")) -> list[Branch]:
    """Branches of a plan (core.models.sizes); `parts` are the experiment's, and say where a mask puts its zeros."""
    chosen, found = set(parts), []
    hidden = (plan.before.hidden_size, plan.after.hidden_size)
    for cut in plan.cuts:
        density = 1.0
        if cut.zeros:
            shapes = plan.before.matrix_shapes(cut.layer)
            reach = sum(shapes[role][0] * shapes[role][1] for part in chosen for role in _MATRICES[part])
            density = 1 - cut.zeros / reach
        found.append(
            Branch(
                cut.layer,
                cut.selected,
                (cut.before.heads, cut.after.heads),
                (cut.before.kv_heads, cut.after.kv_heads),
                (cut.before.mlp, cut.after.mlp),
                density if "attention" in chosen else 1.0,
                density if "mlp" in chosen else 1.0,
                hidden=hidden,
                example=cut.selected and not plan.exact,
            )
        )
    return found


def branches_of_rows(rows: Iterable[Mapping[str, Any]]) -> list[Branch]:
    """Branches of the store's `layers` rows of one run (layer, heads_before, …, density); changed means chosen.

    Where whole layers went or the stream is narrower, all layers were chosen from.
    """
    found = []
    for row in sorted(rows, key=lambda r: int(r["layer"])):
        heads, kv, mlp = ((_whole(row, f"{name}_before"), _whole(row, f"{name}_after")) for name in _UNITS)
        hidden = (_whole(row, "hidden_before"), _whole(row, "hidden_after"))
        value = row.get("density")
        density = float(value) if value is not None and value == value else 1.0  # nan where the store has none
        density = 1.0 if density > UNTOUCHED else density
        resized = any(before != after for before, after in (heads, kv, mlp))
        thin = 1.0 if resized else density
        chosen = resized or density < 1 or hidden[0] != hidden[1]
        found.append(Branch(int(row["layer"]), chosen, heads, kv, mlp, thin, thin, hidden=hidden))
    if any(branch.dropped for branch in found):
        found = [replace(branch, selected=True) for branch in found]
    return found


def _whole(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    return int(value) if value is not None and value == value else 0


def dense_branches(layers: Iterable[tuple[int, int, int]]) -> list[Branch]:
    """Branches of a model that nothing was cut from, given (heads, KV heads, MLP channels) of each layer."""
    return [Branch(i, True, (h, h), (kv, kv), (mlp, mlp)) for i, (h, kv, mlp) in enumerate(layers)]


def summary(branches: Sequence[Branch]) -> str:
    """The whole figure in one sentence: its text alternative."""
    changed = [b for b in branches if b.changed]
    if not branches:
        return "No layers."
    if not changed:
        return f"{len(branches)} layers, nothing removed."
    gone = [str(b.layer) for b in branches if b.dropped]
    if gone and any(b.example for b in branches):
        return f"{len(branches)} layers, {len(gone)} of them removed: the scores decide which."
    if gone:
        return f"{len(branches)} layers, {len(gone)} of them removed: {', '.join(gone)}."
    return f"{len(branches)} layers, {len(changed)} of them cut. {changed[0].sentence()}."


def density(branch: Branch) -> tuple[float, float]:
    """Shares of non-zero weights that are drawn, of attention and MLP."""
    return round(branch.attention_density, 3), round(branch.mlp_density, 3)
