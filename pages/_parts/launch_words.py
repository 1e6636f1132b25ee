"""What is cut, in words for people: kinds of cut, and a plan in one or two sentences. Pure."""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

from pages._parts.launch_state import NONE
from pages._parts.theme import count

KINDS = {
    "width": "Heads and channels",
    "depth": "Whole layers",
    "hidden": "Hidden channels",
    "mask": "Single weights",
    NONE: "Nothing",
}
DOES = {
    "width": "Attention heads and MLP channels go: a smaller and faster model.",
    "depth": "Whole decoder layers go: a smaller and faster model.",
    "hidden": "The stream that all layers read and write gets narrower: a smaller and faster model.",
    "mask": "Weights become zero where they stand: neither smaller nor faster.",
    NONE: "Evaluate only: the model is judged as it is, wherever it was made; a baseline for the others.",
}
TARGETS = {"selected": "of these layers", "model": "of the whole model"}
ALLOCATIONS = {
    "uniform": "The same in each layer",
    "global": "One ranking over all layers",
    "measured": "By what each cut costs, measured",
    "owl": "Less where outliers are (OWL)",
}


def targets(kinds: Iterable[str]) -> dict[str, str]:
    """What the ratio is a fraction of, for these kinds of cut."""
    return TARGETS | ({"selected": "of the stream's channels"} if set(kinds) == {"hidden"} else {})


def sentence(plan: Any, pruning: Any = None) -> str:
    """What goes, and where; which layers stay untouched; what is left to the scores, and what is refitted."""
    says: dict[str, Callable[[Any], str]] = {"mask": _mask, "width": _width, "depth": _depth, "hidden": _hidden}
    text = says[plan.kind](plan)
    if plan.kind == "width" and pruning is not None and pruning.reconstruct:
        text += " What reads them is then refitted on the calibration text."
    return text


def _mask(plan: Any) -> str:
    cuts = [cut for cut in plan.cuts if cut.selected]
    if not plan.exact:
        zeros = sum(cut.zeros for cut in cuts)
        return (
            f"Sets about {count(zeros)} weights to zero in {_where(plan)}: fewer in layers with more outliers. "
            "The figure shows an even share."
        )
    total = sum(r * c for r, c in plan.before.matrix_shapes(cuts[0].layer).values())
    what = f"Sets {_range(cut.zeros for cut in cuts)} of {total:,} weights to zero"
    return f"{what} {_in_each(plan)}{_rest(plan)}."


def _width(plan: Any) -> str:
    cuts = [cut for cut in plan.cuts if cut.selected]
    if not plan.exact:
        return (
            f"Removes about {count(plan.params_before - plan.params_after)} parameters from {_where(plan)}: the scores "
            f"decide which layers lose how much. The total is right, the figure an even example{_rest(plan)}."
        )
    one = cuts[0].before
    parts = []
    groups = [cut.before.kv_heads - cut.after.kv_heads for cut in cuts]
    heads = [cut.before.heads - cut.after.heads for cut in cuts]
    channels = [cut.before.mlp - cut.after.mlp for cut in cuts]
    if any(groups):
        parts.append(f"{_range(groups)} of {one.kv_heads} KV groups ({_range(heads)} heads)")
    elif any(heads):
        parts.append(f"{_range(heads)} of {one.heads} heads")
    if any(channels):
        parts.append(f"{_range(channels)} of {one.mlp:,} channels")
    return f"Removes {' and '.join(parts) or 'nothing'} {_in_each(plan)}{_rest(plan)}."


def _depth(plan: Any) -> str:
    chosen, gone = [cut.layer for cut in plan.cuts if cut.selected], [cut.layer for cut in plan.cuts if cut.removed]
    if not gone:
        return "Removes no layer."
    many = f"{len(gone)} layer{'s' if len(gone) > 1 else ''}"
    if plan.exact:
        return f"Removes {many}, {_spans(gone)}; the other {plan.after.n_layers} stay as they are."
    return (
        f"Removes {many} of the {len(chosen)} from {chosen[0]} to {chosen[-1]}: the scores decide which. "
        "The figure leaves out the last ones, as an example."
    )


def _hidden(plan: Any) -> str:
    return (
        f"Narrows the stream from {plan.before.hidden_size:,} to {plan.after.hidden_size:,} channels, in the "
        "embedding, every layer and the head. Heads and MLP channels keep their number; their weights get fewer."
    )


def _range(numbers: Iterable[int]) -> str:
    """`512`, or `480 to 512` where layers differ."""
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _where(plan: Any) -> str:
    chosen = [cut.layer for cut in plan.cuts if cut.selected]
    return f"layers {chosen[0]}–{chosen[-1]}" if len(chosen) > 1 else f"layer {chosen[0]}"


def _in_each(plan: Any) -> str:
    where = _where(plan)
    return f"in each of the {where}" if where.startswith("layers") else f"in {where}"


def _rest(plan: Any) -> str:
    rest = _spans([cut.layer for cut in plan.cuts if not cut.selected])
    return f"; {rest} stay as they are" if rest else ""


def _spans(layers: list[int]) -> str:
    spans = []
    for _, group in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        run = [layer for _, layer in group]
        spans.append(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}")
    return " and ".join(spans)
