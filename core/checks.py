"""Whether an Experiment can work on a model, said before anything is loaded. No torch.

`check` returns problems by field: errors, which keep a run from being queued, and warnings, which are shown beside the
field. The text of a problem says what, which value, and what to do.
"""

from collections.abc import Iterator

from core.errors import ExperimentError, Problem, UnknownNameError
from core.experiment import Experiment, Pruning
from core.models.gguf_layout import gguf_architecture, known_families
from core.models.plans import Plan, parse_pattern, plan
from core.models.sizes import PART_MATRICES, Architecture


def check(experiment: Experiment, architecture: Architecture, *, foreign_code: bool = False) -> list[Problem]:
    """Every problem of `experiment` on a model of `architecture`; errors first.

    foreign_code: the model brings Python code of its own, which a cut model could not be saved with.
    """
    problems = [*_recovery(experiment, architecture), *_texts(experiment, architecture)]
    problems += _quantised(experiment, architecture)
    if experiment.pruning is not None:
        problems += _pruning(experiment.pruning, architecture, scan=experiment.scan is not None)
        if foreign_code:
            what = f"{experiment.model.name} brings Python code of its own, so a pruned form of it cannot be saved."
            problems.append(Problem("model.name", what, "Judge it dense, or choose a model of a stock class."))
    return sorted(problems, key=lambda problem: problem.level != "error")


def require(experiment: Experiment, architecture: Architecture, *, foreign_code: bool = False) -> None:
    """Raise ExperimentError with every error of `check`."""
    found = check(experiment, architecture, foreign_code=foreign_code)
    errors = [problem for problem in found if problem.level == "error"]
    if errors:
        raise ExperimentError.of(errors)


def _recovery(experiment: Experiment, architecture: Architecture) -> Iterator[Problem]:
    """What stands in the way of training, as far as the settings say it."""
    recovery = experiment.recovery
    if recovery is None:
        return
    if recovery.cutoff > architecture.max_positions:
        yield Problem(
            "recovery.cutoff",
            f"Samples of {recovery.cutoff} tokens are longer than the model's {architecture.max_positions} positions.",
            f"Choose at most {architecture.max_positions}.",
        )
    if isinstance(recovery.micro_batch, int) and recovery.batch_size % recovery.micro_batch:
        yield Problem(
            "recovery.micro_batch",
            f"A batch of {recovery.batch_size} is no multiple of a micro-batch of {recovery.micro_batch}.",
            "Choose a divisor of the batch, or auto.",
        )
    why = "kind is lora" if recovery.kind == "lora" else "full_weights trains no LoRA matrices"
    for name in recovery.inapplicable():
        if (value := getattr(recovery, name)) != type(recovery).model_fields[name].default:
            yield Problem(f"recovery.{name}", f"{name}={value!r} does not apply: {why}.", "Leave it out.")
    if recovery.hidden_mix and experiment.pruning is not None and _narrows(experiment.pruning.method):
        yield Problem(
            "recovery.hidden_mix",
            "The method narrows the stream itself, so its hidden states cannot be held against the dense ones.",
            "Set recovery.hidden_mix: 0, or choose another method.",
        )
    if recovery.data.corpus != "generated" and recovery.data.prompt_tokens is not None:
        what = "Only generated text begins with a passage."
        yield Problem("recovery.data.prompt_tokens", what, "Leave it out.")
    if recovery.data.corpus == "generated" and recovery.data.format != "text":
        yield Problem("recovery.data.format", "Generated text is plain text.", "Set recovery.data.format: text.")


def _narrows(method: str) -> bool:
    from core.pruning.registry import get

    try:
        return get(method).kind == "hidden"
    except UnknownNameError:
        return False


def _quantised(experiment: Experiment, architecture: Architecture) -> Iterator[Problem]:
    if experiment.model.quantised is not None and gguf_architecture(architecture) is None:
        yield Problem(
            "model.quantised",
            f"No GGUF is written of this {architecture.model_type} model, so it cannot be judged in "
            f"{experiment.model.quantised}.",
            f"Leave quantisation out, or choose a model of {', '.join(known_families())}.",
        )


def _texts(experiment: Experiment, architecture: Architecture) -> Iterator[Problem]:

    pruning = experiment.pruning
    limit = architecture.max_positions
    calibrated = pruning is not None and pruning.reads_text
    if pruning is not None and calibrated and pruning.calibration.length > limit:
        yield Problem(
            "pruning.calibration.length",
            f"Calibration windows of {pruning.calibration.length} tokens exceed the model's {limit} positions.",
            f"Choose at most {limit}.",
        )
    for i, text in enumerate(experiment.evaluation.perplexity):
        if text.window > limit:
            yield Problem(
                f"evaluation.perplexity.{i}.window",
                f"Perplexity windows of {text.window} tokens are longer than the model's {limit} positions.",
                f"Choose at most {limit}.",
            )
        if text.max_tokens is not None and text.max_tokens < text.window:
            yield Problem(
                f"evaluation.perplexity.{i}.max_tokens",
                f"max_tokens {text.max_tokens} is less than one window of {text.window} tokens.",
                "Raise it or make the window smaller.",
            )
        if pruning is not None and _leaks(pruning, text.corpus, text.split, text.path):
            yield Problem(
                f"evaluation.perplexity.{i}",
                f"Calibration and perplexity read the same text ({text.path or f'{text.corpus}, {text.split}'}).",
                "The value will look better than it is: judge on another split.",
                "warning",
            )
    if experiment.evaluation.chat_template and not experiment.evaluation.tasks:
        yield Problem("evaluation.chat_template", "chat_template is set, but there are no tasks.", "", "warning")


def _leaks(pruning: Pruning, corpus: str | None, split: str, path: str | None) -> bool:

    calibration = pruning.calibration
    if not pruning.reads_text:
        return False
    if path is not None or calibration.path is not None:
        return path == calibration.path
    return (corpus, split) == (calibration.corpus, calibration.split)


def _pruning(pruning: Pruning, architecture: Architecture, *, scan: bool = False) -> list[Problem]:
    from core.models.families import family

    try:
        family(architecture.model_type)
    except UnknownNameError as error:
        return [Problem("model.name", error.message, error.advice)]
    try:
        planned = plan(architecture, pruning)
    except ExperimentError as error:
        return error.problems
    found = [*_patterns(pruning, planned), *_widths(pruning, planned)]
    return found if scan else [*found, *_whole_layers(pruning, planned)]  # a scan leaves each layer out, however few


def _patterns(pruning: Pruning, planned: Plan) -> Iterator[Problem]:
    n_of_m = parse_pattern(pruning.pattern)
    if n_of_m is None:
        return
    m = n_of_m[1]
    for layer in planned.selected:
        shapes = planned.before.matrix_shapes(layer)
        for part in pruning.parts:
            for role in PART_MATRICES[part]:
                width = shapes[role][1]
                if width % m:
                    yield Problem(
                        "pruning.pattern",
                        f"Pattern {pruning.pattern} needs input widths divisible by {m}, "
                        f"but {role} of layer {layer} has {width}.",
                        "Choose unstructured, or leave that part out.",
                    )
                    return


def _widths(pruning: Pruning, planned: Plan) -> Iterator[Problem]:
    if planned.kind != "width":
        return
    yield from _same_sizes(pruning, planned)
    if planned.params_after == planned.params_before:
        yield Problem(
            "pruning.ratio",
            f"{pruning.ratio:.0%} removes nothing here: {_granularity(pruning, planned)}",
            "Raise the ratio, or lower round_to.",
        )
    elif not planned.exact or pruning.target == "model":
        return
    elif "attention" in pruning.parts and all(cut.before.heads == cut.after.heads for cut in planned.cuts):
        yield Problem(
            "pruning.ratio",
            f"{pruning.ratio:.0%} removes no head at all here: {_granularity(pruning, planned)}",
            "Raise the ratio, or count query heads within groups.",
            "warning",
        )


def _same_sizes(pruning: Pruning, planned: Plan) -> Iterator[Problem]:
    from core.models.families import family

    if not pruning.same_sizes:
        return
    if not planned.after.uniform:
        yield Problem(
            "pruning.same_sizes",
            f"same_sizes is set, but only layers {planned.selected[0]}–{planned.selected[-1]} are cut: sizes differ.",
            "Prune all layers, or turn same_sizes off.",
        )
    elif family(planned.after.model_type).layout(planned.after) != "stock":
        heads, hidden = planned.after.layers[0].heads, planned.after.hidden_size
        yield Problem(
            "pruning.same_sizes",
            f"The stock class takes no {heads} query heads: they do not divide the hidden size {hidden}.",
            "Choose a ratio that leaves another number of heads, prune the MLP only, or turn same_sizes off.",
        )


def _whole_layers(pruning: Pruning, planned: Plan) -> Iterator[Problem]:
    if planned.kind == "depth":
        n = len(planned.selected)
        if not planned.layers_removed:
            yield Problem(
                "pruning.ratio",
                f"{pruning.ratio:.0%} of {n} layers is less than one.",
                f"Choose at least {1 / n:.0%}.",
            )
        elif not planned.before.uniform:
            yield Problem(
                "pruning.method",
                "This model's layers differ in size already; how much goes depends on which layers are chosen.",
                "The result says what went.",
                "warning",
            )
    elif planned.kind == "hidden" and planned.after.hidden_size == planned.before.hidden_size:
        step = max(sizes.heads for sizes in planned.before.layers)
        yield Problem(
            "pruning.ratio",
            f"{pruning.ratio:.0%} removes no channel of {planned.before.hidden_size}: they go {step} at a time.",
            f"Choose at least {step / planned.before.hidden_size:.1%}.",
        )


def _granularity(pruning: Pruning, planned: Plan) -> str:
    sizes = planned.before.layers[planned.selected[0]]
    if pruning.heads == "kv_groups":
        return f"a layer has {sizes.kv_heads} KV groups, and heads are rounded down."
    return f"a KV group has {sizes.heads // sizes.kv_heads} query heads, and heads are rounded down."
