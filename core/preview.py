"""What one experiment would do, said before it is queued: counts, cost, and what should be known. No torch."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from core import estimate, roots
from core.checks import check
from core.data.corpora import check_corpus, leakage, training_leakage
from core.data.tasks import check_tasks
from core.device import info, resolve_device, resolve_dtype
from core.errors import EspalierError, ExperimentError, InputError, Problem
from core.estimate_needs import needs
from core.evaluation.chance import certainty
from core.experiment import Experiment, Pruning, Resolved, experiment_hash
from core.models import llamacpp
from core.models.catalogue import ModelSource, resolve
from core.models.engines import Engine, loads_in, zeros_in_words
from core.models.families import families
from core.models.gguf_layout import about_bytes
from core.models.plans import Plan, parse_pattern, plan
from core.models.sizes import Architecture
from core.recovery.offered import check_data

GIB = 1 << 30
PYTHON = ".venv/bin/python"


@dataclass(frozen=True)
class Setting:
    """An experiment with everything that `auto` and the model's name stand for on this machine."""

    experiment: Experiment
    source: ModelSource
    device: str
    dtype: str

    @property
    def architecture(self) -> Architecture:
        return self.source.architecture

    @property
    def hash(self) -> str:
        return experiment_hash(
            self.experiment,
            Resolved(self.source.fingerprint, self.dtype, self.device.partition(":")[0], self.architecture.n_layers),
        )

    def resolved(self) -> dict[str, Any]:
        """As it stands in a run's state.json; `needs` in bytes, for the queue to know where there is room."""
        takes = needs(work_of(self, planned(self)))
        return {"model": self.source.fingerprint, "device": self.device, "dtype": self.dtype, "needs": takes}


def settle(experiment: Experiment) -> Setting:
    """Resolve model, device and dtype. InputError where one cannot be had; asks a hub only for a hub model's config.

    What it names on this machine must lie under the roots (core/roots.py).
    """
    roots.require(experiment)
    device = resolve_device(experiment.device)
    return Setting(experiment, resolve(experiment.model), device, resolve_dtype(experiment.model.dtype, device))


def problems_of(setting: Setting) -> list[Problem]:
    """Everything that stands in the way or should be known, by field; errors first."""
    experiment = setting.experiment
    found = check(experiment, setting.architecture, foreign_code=setting.source.foreign_code)
    pruning = experiment.pruning
    if pruning is not None and pruning.reads_text:
        found += check_corpus(pruning.calibration, "pruning.calibration")
    for i, text in enumerate(experiment.evaluation.perplexity):
        found += check_corpus(text, f"evaluation.perplexity.{i}")
    if experiment.recovery is not None:
        found += check_data(experiment.recovery)
    found += check_tasks(experiment.evaluation.tasks)
    cut = planned(setting)
    if cut is not None and cut.kind == "hidden" and estimate.streamed(work_of(setting, cut)):
        found.append(
            Problem(
                "pruning.method",
                "Hidden-channel pruning touches every matrix at once, and this model does not fit into memory.",
                "Choose a width, depth or mask method, or a machine with more memory.",
            )
        )
    return sorted(found, key=lambda problem: problem.level != "error")


def problem_of(error: InputError, field: str) -> list[Problem]:
    """An error as problems of fields."""
    if isinstance(error, ExperimentError) and error.problems:
        return list(error.problems)
    return [Problem(field, error.message, error.advice)]


def planned(setting: Setting) -> Plan | None:
    """What would be cut; None for the dense model, and where the problems leave nothing to plan."""
    if setting.experiment.pruning is None:
        return None
    try:
        return plan_of(setting.architecture, setting.experiment.pruning)
    except EspalierError:  # `problems_of` says it, beside its field
        return None


def plan_of(architecture: Architecture, pruning: Pruning) -> Plan:
    """The plan as people see it: where the scores share the ratio out, its example comes to what will go in all.

    One ranking over all layers takes `goal` parameters, down to the unit; the same ratio in each layer rounds heads
    down in each, and takes less.
    """
    found = plan(architecture, pruning)
    if found.exact or found.kind != "width" or pruning.target == "model" or found.goal >= found.reach:
        return found
    share = found.goal / architecture.params
    even = plan(architecture, pruning.model_copy(update={"target": "model", "ratio": share}))
    return replace(even, goal=found.goal, ratio=found.ratio)


def work_of(setting: Setting, cut: Plan | None) -> estimate.Work:
    """What the cost is estimated from."""
    return estimate.Work(setting.experiment, setting.architecture, cut, info(setting.device), setting.dtype)


# --- in words


def smaller(cut: Plan | None, setting: Setting | None = None) -> str:
    """Whether the model on disk gets smaller; `setting` for a model that is rounded in place of a cut."""
    quantised = None if setting is None else setting.experiment.model.quantised
    if setting is not None and quantised is not None:
        before, after = estimate.weight_bytes(setting.architecture), about_bytes(setting.architecture, quantised)
        return f"yes: {megabytes(before)} → about {megabytes(after)} as a GGUF file (−{1 - after / before:.0%})"
    if cut is None:
        return "no: nothing is removed"
    if setting is not None and setting.experiment.scan is not None:
        return "no: a scan tries each layer and saves no model"
    before, after = estimate.weight_bytes(cut.before), estimate.weight_bytes(cut.after)
    if after == before:
        return f"no: zeros are stored like other numbers ({megabytes(before)})"
    about = "" if cut.exact else "about "
    return f"yes: {megabytes(before)} → {about}{megabytes(after)} (−{1 - after / before:.1%})"


def faster(cut: Plan | None, experiment: Experiment) -> str:
    """Whether the saved model runs faster."""
    if experiment.model.quantised is not None:
        return "in llama.cpp" + ("" if llamacpp.installed() else ", which is not installed here to measure it")
    if cut is None:
        return "no: nothing is removed"
    if experiment.scan is not None:
        return "no: a scan tries each layer and saves no model"
    pruning = experiment.pruning
    if cut.params_after == cut.params_before:
        if pruning is not None and parse_pattern(pruning.pattern) == (2, 4):
            return "only with kernels for 2:4 sparsity: others, vLLM among them, multiply the zeros"
        return "no: zeros are multiplied like other numbers"
    work = cut.before.macs(1, 512) / max(cut.after.macs(1, 512), 1)
    about = "" if cut.exact else "about "
    return f"yes: {about}{1 - 1 / work:.0%} fewer operations a token (at most {work:.2f}×)"


def zeros(pattern: str) -> str:
    """What the zeros of a pattern are worth to which engines; '' for zeros that stand anywhere."""
    return "" if parse_pattern(pattern) is None else zeros_in_words(pattern)


def opens_in(setting: Setting, cut: Plan | None) -> list[Engine]:
    """What loads the exported model, and what does not; empty for a family that is not known."""
    after = setting.architecture if cut is None else _as_it_may_end(setting, cut)
    if after.model_type not in families() or setting.experiment.scan is not None:
        return []
    pruning = setting.experiment.pruning
    if setting.experiment.model.quantised is not None:
        return [engine for engine in loads_in(after) if engine.name == "llama.cpp"]
    return loads_in(after, pruning.pattern if pruning is not None and cut is not None and cut.kind == "mask" else None)


def _as_it_may_end(setting: Setting, cut: Plan) -> Architecture:
    """Sizes after the cut. Where the scores decide how much each layer loses, the layers will hardly end alike."""
    pruning, after = setting.experiment.pruning, cut.after
    if cut.exact or cut.kind != "width" or pruning is None or not after.uniform or after.n_layers < 2:
        return after
    first = cut.before.layers[0]
    return after.with_layers((first if first != after.layers[0] else replace(first, mlp=1), *after.layers[1:]))


def warnings_of(setting: Setting, cut: Plan | None, needed_bytes: int, said: Sequence[Problem] = ()) -> list[str]:
    """What works, but should be known, beyond the problems that were `said` of fields."""
    experiment, evaluation = setting.experiment, setting.experiment.evaluation
    found: list[str] = []
    pruning = experiment.pruning
    if pruning is not None and pruning.reads_text:
        fields = {problem.field for problem in said}
        texts = [text for i, text in enumerate(evaluation.perplexity) if f"evaluation.perplexity.{i}" not in fields]
        found += list(dict.fromkeys(filter(None, (leakage(pruning.calibration, text) for text in texts))))
    if experiment.recovery is not None:
        learned = (training_leakage(experiment.recovery.data, text) for text in evaluation.perplexity)
        found += list(dict.fromkeys(filter(None, learned)))
    if evaluation.tasks and evaluation.limit is not None:
        points = 100 * certainty(evaluation.limit)
        found.append(f"{evaluation.limit} documents a task: scores are good to about ±{points:.0f} points.")
    found += _room(setting, cut, needed_bytes)
    if cut is not None and 0 < cut.achieved_model_ratio < 0.01:
        found.append(f"Only {cut.achieved_model_ratio:.2%} of the whole model goes.")
    return found


def _room(setting: Setting, cut: Plan | None, needed_bytes: int) -> list[str]:
    """Where memory is short: how the cut works all the same, and what does not."""
    work, device = work_of(setting, cut), info(setting.device)
    whole = estimate.judging_bytes(work)
    found = []
    if estimate.streamed(work):
        found.append("The weights would take most of the free memory: it will be pruned a layer at a time from disk.")
    elif estimate.layerwise(work):
        found.append(f"{device.name} has no room for the whole model: layers come to it one at a time.")
    elif needed_bytes > device.free_bytes:
        free = f"{device.name} has {device.free_bytes / GIB:.1f} GiB free"
        return [f"Needs about {needed_bytes / GIB:.1f} GiB, but {free}."]
    if found and whole > device.free_bytes:
        found.append(
            f"Judging it takes the whole model, about {whole / GIB:.1f} GiB, but {device.name} has "
            f"{device.free_bytes / GIB:.1f} GiB free: leave evaluation out, or expect it to fail."
        )
    return found


def megabytes(count: int) -> str:
    """Bytes for people, in decimal units as file managers count them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def command(experiment: Experiment) -> str:
    """The command that runs this experiment from a terminal; the file is the YAML shown beside it."""
    return f"{PYTHON} -m core run {file_name(experiment.name)}.yaml"


def command_of_file(path: str) -> str:
    """The command that runs an experiment file."""
    return f"{PYTHON} -m core run {shlex.quote(path)}"


def file_name(text: str) -> str:
    """A file name made of free text: [a-z0-9-] only, so that no text becomes a path or an option."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or "experiment"
