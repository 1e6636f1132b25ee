"""What the card of an export says, gathered from a run's directory and its neighbours. No torch, no database."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import __version__, yaml_text
from core.errors import EspalierError
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory, list_runs
from core.jobs.states import State
from core.models import builtin
from core.models.card import CardFacts, metric_key
from core.models.catalogue import entries, read_config
from core.models.engines import loads_in
from core.models.export import Exported
from core.models.sizes import Architecture

_HUB_NAMES = {builtin.NAME: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def slug(text: str) -> str:
    """A file name of lower-case letters, digits, dots and hyphens; never empty, at most 60 characters."""
    letters = (
        unicodedata.normalize("NFKD", re.sub(r"[\u2010-\u2015\u2212]", "-", text))
        .encode("ascii", "ignore")
        .decode()
        .lower()
    )
    return re.sub(r"[^a-z0-9.]+", "-", letters).strip("-.")[:60].strip("-.") or "model"


def model_title(name: str) -> str:
    """A model's name without where it comes from: no folder of this machine."""
    return _HUB_NAMES.get(name, name).rstrip("/").rpartition("/")[2]


def title_of(run: RunDirectory | None, model: str | None, stage: str = "") -> str:
    """What the export is called: model and run, or the model. stage: which model of a run with recovery."""
    if run is None:
        return model_title(str(model))
    experiment = run.experiment()
    name = model_title(experiment.model.name)
    if experiment.pruning is None:
        return name
    title = f"{name}, {experiment.name or f'{experiment.pruning.method} {experiment.pruning.ratio * 100:g} %'}"
    return f"{title}, {stage}" if stage else title


def hub_id(name: str) -> str | None:
    """The dense model's id on the hub, or None for a folder."""
    if name in _HUB_NAMES:
        return _HUB_NAMES[name]
    return name if _HUB_ID.fullmatch(name) and not Path(name).expanduser().is_dir() else None


def licence(name: str) -> str | None:
    """The licence of a model that the catalogue knows."""
    return next((entry.license for entry in entries() if entry.name == name), None)


def gguf_about(run: RunDirectory | None, model: str | None, stage: str = "") -> dict[str, str]:
    """Values of `general.*` in a GGUF file."""
    name = run.experiment().model.name if run is not None else str(model)
    about = {"name": title_of(run, model, stage)}
    if (known := licence(name)) is not None:
        about["license"] = known.lower()
    return about


def card_facts(
    run: RunDirectory | None, model: str | None, source: Path, exported: Exported, title: str, stage: str = ""
) -> CardFacts:
    """Everything the card says of this export. stage: which model of a run with recovery it is."""
    experiment = run.experiment() if run is not None else None
    results: Mapping[str, Any] = (run.results() if run is not None else None) or {}
    name = experiment.model.name if experiment is not None else str(model)
    architecture = Architecture.from_config(read_config(source))
    return CardFacts(
        title=title,
        model_name=model_title(name),
        base_model=hub_id(name),
        license=licence(name),
        format=exported.format,
        dtype=exported.dtype,
        architecture=exported.architecture,
        params=architecture.params,
        engines=loads_in(architecture, _pattern(experiment)),
        metrics=[each for each in results.get("metrics") or () if not stage or each.get("stage") in (stage, "dense")],
        recovery=_recovery_words(experiment, results, stage),
        dense=_dense(run, results) if run is not None else {},
        checks=exported.checks,
        notes=exported.notes,
        yaml=_yaml(experiment) if experiment is not None else None,
        files=[exported.path.name],
        per_layer_code=exported.per_layer_code,
        version=__version__,
        **_cut(experiment, results),
    )


def _recovery_words(experiment: Experiment | None, results: Mapping[str, Any], stage: str) -> str:
    """How the model was trained after the cut, in a line; '' where that does not concern it."""
    recovery = experiment.recovery if experiment is not None else None
    if recovery is None or not stage:
        return ""
    if stage == "pruned":
        return "none: this is the model before recovery"
    found = results.get("recovery") or {}
    training, data = found.get("training") or {}, found.get("data") or {}
    name = "LoRA" if recovery.kind == "lora" else "distillation from the dense model"
    how = "weights of the cut layers" if recovery.kind == "distillation" and recovery.full_weights else (
        f"rank {recovery.rank}, alpha {recovery.alpha:g}"
    )  # fmt: skip
    words = [f"{name}, {how}, learning rate {recovery.learning_rate:g}"]
    if data.get("data"):
        words.append(f"on {data['data']}")
    if training.get("steps") is not None:
        words.append(f"{training['steps']} steps, {training.get('tokens')} tokens learned")
    return "; ".join(words)


def _pattern(experiment: Experiment | None) -> str | None:
    pruning = experiment.pruning if experiment is not None else None
    return pruning.pattern if pruning is not None and _kind(pruning.method) == "mask" else None


def _kind(method: str) -> str:
    from core.pruning.registry import get

    try:
        return str(get(method).kind)
    except EspalierError:  # a method of another version
        return ""


def _cut(experiment: Experiment | None, results: Mapping[str, Any]) -> dict[str, Any]:
    """What was pruned, as CardFacts has it; nothing for a dense model."""
    pruning = experiment.pruning if experiment is not None else None
    if experiment is None or pruning is None:
        return {}
    from core.pruning.registry import get

    found = results.get("pruning") or {}
    known: dict[str, Any] = {}
    try:
        method = get(pruning.method)
        known = {"method_title": method.title, "method_url": method.url}
    except EspalierError:
        pass
    return {
        **known,
        "method": pruning.method,
        "kind": _kind(pruning.method),
        "pattern": _pattern(experiment),
        "ratio": pruning.ratio,
        "target": pruning.target,
        "layers": pruning.layers,
        "n_layers": found.get("model_layers"),
        "parts": list(pruning.parts),
        "achieved_ratio": found.get("achieved_ratio"),
        "achieved_model_ratio": found.get("achieved_model_ratio"),
        "params_before": found.get("params_before"),
        "nonzero": found.get("nonzero_after"),
        "seed": experiment.seed,
    }


def _dense(run: RunDirectory, results: Mapping[str, Any]) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """The dense model's numbers, as this run or a complete dense run beside it measured them; newer ones win."""
    own = [metric for metric in results.get("metrics") or () if metric.get("stage") == "dense"]
    found = {metric_key(metric): metric for metric in own}
    about = _identity(results)
    for other in list_runs(run.path.parent):
        if other.path == run.path or other.recorded().state is not State.COMPLETE:
            continue
        theirs = other.results() or {}
        if (theirs.get("experiment") or {}).get("pruning") is None and _identity(theirs) == about:
            for metric in theirs.get("metrics") or ():
                found.setdefault(metric_key(metric), metric)
    return found


def _identity(results: Mapping[str, Any]) -> tuple[object, ...]:
    """Model, dtype and kind of device: what two runs share whose numbers may stand side by side."""
    environment = results.get("environment") or {}
    device = str(environment.get("device") or "").partition(":")[0]
    return (environment.get("model") or {}).get("fingerprint"), environment.get("dtype"), device


def _yaml(experiment: Experiment) -> str:
    """The experiment; paths of this machine are shortened to their last part, since the card may be published."""
    data = experiment.to_dict()
    short = _without_folders(data)
    return experiment.to_yaml() if short == data else yaml_text.dump(short)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return value.rstrip("/").rpartition("/")[2]
    return value
