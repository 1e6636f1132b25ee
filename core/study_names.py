"""Names of a study's runs, made from what differs between them."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.experiment import Experiment
from core.sections import Pruning, Recovery

LONGEST = 200
_KINDS = {"lora": "LoRA", "distillation": "distillation"}
_FIRST = ("model.name", "model.quantised", "pruning.method", "pruning.ratio")
_ALWAYS = (*_FIRST, "pruning.layers", "recovery.kind")


def names_of(study: str, runs: Sequence[tuple[set[str], Experiment]]) -> list[str]:
    """One name a run, no two alike: the study's, and the values of the changed fields that are not the same in all; of
    recovery's those that are not the same in all of its kind."""
    plain = [experiment.to_dict() for _, experiment in runs]
    fields = {path for changed, _ in runs for path in changed}
    leaves = {leaf for path in fields for data in plain for leaf in _leaves(path, _at(data, path))}
    varied = {leaf for leaf in leaves if _varies(leaf, plain)}
    if "pruning.method" in varied:
        varied.add("pruning.ratio")
    ordered = sorted(varied, key=_place)
    silent = {leaf: _silent(leaf, plain) for leaf in ordered}
    taken: dict[str, int] = {}
    found = []
    shared: dict[Any, set[str]] = {}
    for data in plain:
        kind = _at(data, "recovery.kind")
        if kind not in shared:
            alike = [each for each in plain if _at(each, "recovery.kind") == kind]
            shared[kind] = {leaf for leaf in ordered if _of_recovery(leaf) and not _varies(leaf, alike)}
        words = ["" if leaf in shared[kind] else _words(leaf, _at(data, leaf), silent[leaf]) for leaf in ordered]
        label = " ".join(filter(None, words[:2])) if ordered[:2] == list(_FIRST[2:]) else ""
        rest = words[2:] if label else words
        title = ", ".join(filter(None, [label, *rest])) or ("dense" if data["pruning"] is None else "")
        name = f"{study}: {title}" if title else study
        taken[name] = taken.get(name, 0) + 1
        again = f" ({taken[name]})" if taken[name] > 1 else ""
        found.append(name[: LONGEST - len(again)] + again)
    return found


def _place(leaf: str) -> tuple[int, str]:
    """Where a field stands in a name: what is pruned, and how, first; of recovery its kind."""
    return (_FIRST.index(leaf) if leaf in _FIRST else len(_FIRST), leaf.replace("recovery.kind", "recovery."))


def _of_recovery(leaf: str) -> bool:
    return leaf.startswith("recovery.") and leaf != "recovery.kind"


def _varies(leaf: str, plain: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs that have the field have different values of it; for recovery, whether some have none."""
    values = [_at(data, leaf) for data in plain if leaf == "recovery.kind" or _has(data, leaf)]
    return not any(isinstance(value, Mapping) for value in values) and len({repr(value) for value in values}) > 1


def _words(leaf: str, value: Any, silent: Any) -> str:
    """How a field's value is said; '' where it says nothing."""
    if value is None or value == [] or value == silent:
        return ""
    match leaf:
        case "pruning.method":
            from core.pruning.registry import get

            return get(value).title.partition(" (")[0]
        case "pruning.ratio":
            return f"{value * 100:g} %"
        case "pruning.layers":
            return f"layers {value[0]}–{value[1]}"
        case "model.name":
            return str(value).removeprefix("builtin:").rstrip("/").rpartition("/")[2]
        case "recovery.kind":
            return _KINDS.get(value, str(value))
        case "pruning.pattern":
            return "" if value == "unstructured" else str(value)
        case "model.quantised":
            return str(value).upper()
        case "pruning.calibration.seed":
            return f"calibration seed {value}"
    last = leaf.rpartition(".")[2].replace("_", " ")
    return f"{last} {value}" if not isinstance(value, bool) else last if value else f"no {last}"


def _silent(leaf: str, plain: Sequence[Mapping[str, Any]]) -> Any:
    """The value of a field that goes without saying; `...` where each is said.

    It is the seed that all begin with, how most runs are judged, and else what an Experiment has without the field.
    """
    known = [value for data in plain if (value := _at(data, leaf)) is not None]
    if leaf == "seed":
        return next(iter(known), ...)
    if leaf in _ALWAYS or leaf.endswith("seed"):
        return ...
    if leaf.startswith("evaluation."):
        return next((value for value in known if sum(value == each for each in known) > len(known) / 2), ...)
    return _at(Experiment(pruning=Pruning(method="random"), recovery=Recovery()).to_dict(), leaf)


def _at(data: Mapping[str, Any], path: str) -> Any:
    node: Any = data
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _has(data: Mapping[str, Any], path: str) -> bool:
    parent, _, last = path.rpartition(".")
    section = _at(data, parent) if parent else data
    return isinstance(section, Mapping) and (last in section or parent.endswith("options"))


def _leaves(path: str, value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return [path] if not isinstance(value, list) or all(not isinstance(each, Mapping) for each in value) else []
    return [leaf for key, each in value.items() for leaf in _leaves(f"{path}.{key}", each)]
