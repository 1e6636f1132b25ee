"""From what the form holds to Experiments: one for each method and ratio. No widgets here."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from core.errors import ExperimentError
from core.experiment import ALLOCATIONS, Experiment, inapplicable
from pages._parts.launch_state import DENSE, FILE, NO_RECOVERY, QUANTISED, RECOVERY, chosen_names

Values = Mapping[Any, Any]
MOST_RUNS = 24
RECOVERED = {NO_RECOVERY: "", "lora": ", then LoRA", "distillation": ", then distilled"}
_DISTILLATION = {"temperature", "loss_mix", "hidden_mix", "full_weights"}
_OF_LORA = {"rank", "alpha", "dropout"}


def cuts(values: Values) -> list[tuple[str, int]]:
    """(method, ratio in per cent) of every run that the form stands for, in the form's order."""
    names = chosen_names(values)
    ratios = sorted(values["launch_ratios"]) if values["launch_several_ratios"] else [values["launch_ratio"]]
    return [(name, ratio) for name in names for ratio in (ratios[:1] if name in (DENSE, *QUANTISED) else ratios)]


def experiments(values: Values, methods: Mapping[str, Any], n_layers: int) -> list[Experiment]:
    """Every Experiment of the form. ExperimentError lists what cannot be, by field."""
    if not chosen_names(values):
        raise ExperimentError("No method is chosen.", "Choose at least one.", field="pruning.method")
    if values["launch_several_ratios"] and not values["launch_ratios"]:
        raise ExperimentError("No ratio is chosen.", "Choose at least one.", field="pruning.ratio")
    chosen = cuts(values)
    if len(chosen) > MOST_RUNS:
        raise ExperimentError(
            f"{len(chosen)} runs at once, but at most {MOST_RUNS} go together.",
            "Choose fewer methods or ratios.",
            field="pruning.ratio",
        )
    offered = allocations([methods[name] for name, _ in chosen if name in methods], values)
    found: list[Experiment] = []
    for name, ratio in chosen:
        method, quantised = methods.get(name), name if name in QUANTISED else None
        experiment = _parsed(
            {
                "name": _name(values, method, ratio, quantised, several=len(chosen) > 1, n_layers=n_layers),
                "model": {**_model(values), "quantised": quantised},
                "pruning": _pruning(values, method, ratio, n_layers, offered) if method is not None else None,
                "recovery": recovery(values) if method is not None else None,
                "evaluation": _evaluation(values, dense=name == DENSE),
                "save_model": values["launch_save_model"],
                "seed": values["launch_seed"] or 0,
                "device": values["launch_device"],
            }
        )
        # A pattern fixes its ratio: all are one run.
        if all((experiment.pruning, experiment.model) != (other.pruning, other.model) for other in found):
            found.append(experiment)
    return found


def _parsed(data: dict[str, Any]) -> Experiment:
    """The Experiment; what is wrong with a method's options is said of them, not of the whole cut."""
    try:
        return Experiment.parse(data)
    except ExperimentError as error:
        raise ExperimentError.of(
            [
                replace(problem, field="pruning.options") if problem.message.startswith("options of") else problem
                for problem in error.problems
            ]
        ) from None


def allocations(chosen: Iterable[Any], values: Values) -> dict[str, tuple[str, ...]]:
    """Kinds of the chosen methods for which there is a choice of how the ratio is shared, and what it is."""
    kinds = {
        method.kind
        for method in chosen
        if method.kind != "mask" or (values["launch_pattern"] == "unstructured" and _reads(method, values))
    }
    return {kind: choices for kind, choices in ALLOCATIONS.items() if kind in kinds}


def reads_text(method: Any, values: Values) -> bool:
    """Whether anything about this method's cut looks at calibration text: itself, the allocation or the refit."""
    if method.kind == "width" and (values["launch_reconstruct"] or values["launch_allocation_width"] == "measured"):
        return True
    return _reads(method, values)


def _reads(method: Any, values: Values) -> bool:
    return bool(method.calibrated(values["launch_options"].get(method.name, {})))


def short_title(method: Any) -> str:
    """A method's title without what stands in brackets: `Taylor`."""
    return str(method.title).split(" (")[0]


def _name(values: Values, method: Any, ratio: int, quantised: str | None, *, several: bool, n_layers: int) -> str:
    own = values["launch_name"].strip()
    if own and not several:
        return str(own)
    if method is None:
        text = quantised.upper() if quantised else "dense" if own else "Dense"
        return f"{own}: {text}" if own else text
    text = f"{short_title(method)} {_percent(values, method, ratio)} %"
    first, last = values["launch_layers"]
    if values["launch_target"] == "model" and not _fixed(values, method):
        text += " of the model"
    if method.kind != "hidden" and (first, last) != (0, n_layers - 1):
        text += f", layers {first}–{last}"
    text += RECOVERED[values["launch_recovery"]]
    return f"{own}: {text}" if own else text


def _percent(values: Values, method: Any, ratio: int) -> int:
    if not _fixed(values, method):
        return ratio
    n, m = (int(part) for part in values["launch_pattern"].split(":"))
    return round(100 * (m - n) / m)


def _fixed(values: Values, method: Any) -> bool:
    """Whether a pattern fixes the share of zeros."""
    return bool(method.kind == "mask" and values["launch_pattern"] != "unstructured")


def _model(values: Values) -> dict[str, Any]:
    return {
        "name": values["launch_model"] or "",
        "dtype": values["launch_dtype"],
        "trust_remote_code": values["launch_trust"],
    }


def _pruning(
    values: Values, method: Any, ratio: int, n_layers: int, offered: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    first, last = values["launch_layers"]
    allocation = values[f"launch_allocation_{method.kind}"] if method.kind in offered else "uniform"
    data: dict[str, Any] = {
        "method": method.name,
        "ratio": ratio / 100,
        "target": values["launch_target"],
        "layers": None if (first, last) == (0, n_layers - 1) else [first, last],
        "parts": values["launch_parts"],
        "heads": values["launch_heads"],
        "round_to": values["launch_round_to"],
        "allocation": allocation,
        "same_sizes": values["launch_same_sizes"] and allocation == "uniform",
        "reconstruct": values["launch_reconstruct"],
        "pattern": values["launch_pattern"],
        "options": values["launch_options"].get(method.name, {}),
    }
    for field in inapplicable(method.kind):
        data.pop(field, None)
    if _fixed(values, method):
        del data["ratio"], data["target"]
    if allocation == "owl" or reads_text(method, values):
        data["calibration"] = {
            **_text(values["launch_calibration_corpus"], values["launch_calibration_path"], "pruning.calibration.path"),
            "split": values["launch_calibration_split"],
            "samples": values["launch_calibration_samples"],
            "length": values["launch_calibration_length"],
            "seed": values["launch_calibration_seed"],
        }
    return data


def _text(corpus: str, path: str, field: str) -> dict[str, Any]:
    if corpus != FILE:
        return {"corpus": corpus}
    if not path.strip():
        raise ExperimentError("A text file is asked for, but no path is given.", "Give its path.", field=field)
    return {"path": path.strip()}


def recovery_fields(values: Values) -> frozenset[str]:
    """Fields of `recovery` that apply to the kind of training that is chosen."""
    fields = set(RECOVERY)
    if values["launch_recovery"] != "distillation":
        fields -= _DISTILLATION
    elif values["launch_recovery_full_weights"]:
        fields -= _OF_LORA
    return frozenset(fields)


def recovery(values: Values) -> dict[str, Any] | None:
    """The section `recovery`: what applies and is not the default; None where nothing is trained."""
    if values["launch_recovery"] == NO_RECOVERY:
        return None
    fields = recovery_fields(values)
    found: dict[str, Any] = {"kind": values["launch_recovery"], "data": _lesson(values)}
    for name, default in RECOVERY.items():
        value = values[f"launch_recovery_{name}"]
        if name in fields and value is not None and value != default:
            found[name] = value
    return found


def _lesson(values: Values) -> dict[str, Any]:
    """What is learned from."""
    name = values["launch_recovery_data"] or "passages"
    data = _text(name, values["launch_recovery_path"], "recovery.data.path")
    data["format"] = values["launch_recovery_format"]
    if name == "passages":
        del data["corpus"]
    if values["launch_recovery_max_samples"] is not None:
        data["max_samples"] = values["launch_recovery_max_samples"]
    if name == "generated" and values["launch_recovery_prompt_tokens"] is not None:
        data["prompt_tokens"] = values["launch_recovery_prompt_tokens"]
    return data


def _evaluation(values: Values, *, dense: bool) -> dict[str, Any]:
    entries = []
    for corpus in values["launch_perplexity"]:
        entries.append(
            {
                **_text(corpus, values["launch_perplexity_path"], "evaluation.perplexity.path"),
                "window": values["launch_perplexity_window"],
                "max_tokens": values["launch_perplexity_max_tokens"],
                "bos": values["launch_perplexity_bos"],
            }
        )
    return {
        "perplexity": entries,
        "tasks": values["launch_tasks"],
        "limit": values["launch_limit"],
        "shots": values["launch_shots"],
        "chat_template": values["launch_chat_template"],
        "fidelity": values["launch_fidelity"] and not dense,
        "speed": values["launch_speed"],
    }
