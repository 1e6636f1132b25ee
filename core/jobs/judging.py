"""The evaluation stage: the weights as they were saved, judged part by part.

Parts are stages of their own (core.jobs.stages), so that a run that lost its worker repeats at most one. The dense
model is loaded only for what compares with it, after everything else, and beside the pruned one.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from core.data.task_files import short_name
from core.evaluation.outcomes import join_samples, write_documents, write_samples
from core.experiment import SEVEN_TASKS, PerplexityCorpus
from core.jobs import stages
from core.jobs.baselines import Earlier, part_key, perplexity_protocol, task_protocol, weights_hash
from core.jobs.journal import Journal
from core.jobs.judging_speed import speed_part
from core.progress import Progress, while_it_lasts
from core.settings import documents_dir, runs_dir

if TYPE_CHECKING:
    from core.evaluation.metrics import Metric
    from core.jobs.pipeline import Setting
    from core.models.loading import LoadedModel

FIDELITY_TOKENS = 8192  # enough for a standard error of about a hundredth of a nat


class _Models:
    """The judged model and, where asked for, the dense one: loaded when first needed."""

    def __init__(
        self, journal: Journal, setting: "Setting", dense: "LoadedModel | None", base: str = stages.EVALUATE
    ) -> None:
        self.journal, self._setting, self.base = journal, setting, base
        self._dense = (dense.model, dense.tokenizer) if dense is not None else None
        self._judged: tuple[Any, Any] | None = self._dense if setting.experiment.dense else None
        self._weights: str | None = None

    def judged(self) -> tuple[Any, Any]:
        """(model, tokenizer) as saved; for a dense run the dense model."""
        if self._judged is None:
            from core.models.loading import load_directory

            progress = self.journal.progress(task="load")
            directory, how = self.journal.directory, self._setting
            place = directory.recovered_dir if self.base == stages.JUDGE_RECOVERED else directory.model_dir
            if how.experiment.model.quantised is not None:
                from core.models.gguf_rounded import load_rounded

                choice = how.experiment.model
                self._judged = load_rounded(choice, place, device=how.device, dtype=how.dtype, progress=progress)
            else:
                self._judged = load_directory(place, device=how.device, dtype=how.dtype, progress=progress)
        return self._judged

    def known(self) -> bool:
        """Whether an earlier run may have judged this very model: the dense one, or as it was pruned."""
        experiment = self._setting.experiment
        return experiment.dense or (experiment.pruning is not None and self.base == stages.EVALUATE)

    def weights(self) -> str:
        """What the pruned model's saved weights hash to; '' for the dense model, whose source says what it is."""
        if self._weights is None:
            dense = self._setting.experiment.dense
            folder = self.journal.directory.model_dir
            self._weights = "" if dense else while_it_lasts(lambda: weights_hash(folder), self.journal.tick)
        return self._weights

    def dense(self) -> Any:
        """The dense model."""
        if self._dense is None:
            from core.models.loading import load

            progress = self.journal.progress(task="load dense")
            how = self._setting
            loaded = load(how.experiment.model, device=how.device, dtype=how.dtype, progress=progress)
            self._dense = (loaded.model, loaded.tokenizer)
        return self._dense[0]


class Judged(NamedTuple):
    """What a part found: metrics, a row a document (core.evaluation.outcomes), and what else belongs into its file."""

    metrics: "list[Metric]"
    samples: list[dict[str, Any]]
    more: dict[str, Any]


Part = Callable[[Progress], Judged]


def evaluate(journal: Journal, setting: "Setting", dense: "LoadedModel | None", base: str = stages.EVALUATE) -> None:
    """Do all parts that are not finished, then finish the stage `base`. `dense` is the model of a dense run.

    base: evaluate, or judge_recovered, for the model after recovery; of that, speed is not measured again.
    Parts that an earlier run finished under the same key (core.jobs.baselines) are taken from there: of the dense
    model, and of the same weights, pruned in the same way.
    """
    journal.begin(base)
    models = _Models(journal, setting, dense, base)
    recovered = base == stages.JUDGE_RECOVERED
    others = Earlier(runs_dir(), but=journal.directory.id)
    earlier = 0.0
    for name, label, part, protocol in _parts(setting, models):
        found = journal.reuse(name)
        if found is not None:
            earlier += float(found.get("seconds") or 0)
            continue
        begun = time.monotonic()
        key = part_key(setting, protocol, models.weights()) if protocol and models.known() else ""
        known = others.find(key) if key else None
        if known is None:
            judged = part(journal.progress(task=label))
            metrics = [metric.at("recovered") if recovered else metric for metric in judged.metrics]
            rows = [metric.to_json() for metric in metrics]
            samples = [{**row, "stage": "recovered"} for row in judged.samples] if recovered else judged.samples
            more = {**judged.more, "key": key} if key else judged.more
        else:
            rows, samples, more = known.metrics, known.samples, {**known.more, "key": key, "taken_from": known.run_id}
            journal.say(f"{label}: taken from run {known.run_id}, which judged the same model in the same way.")
        if samples:
            write_samples(_samples_file(journal, name), samples)
            more = {**more, "documents_of": sorted({str(row["task"]) for row in samples})}
        journal.write(name, {"metrics": rows, **more}, round(time.monotonic() - begun, 3))
        for row in rows:
            journal.events.metric(row)
    parts = sorted(journal.directory.stages_dir.glob(f"{base}.*.parquet"))
    join_samples(parts, journal.directory.samples_file, keep="pruned" if recovered else None)
    journal.finish({"weights_sha256": models.weights()} if models.known() else {}, extra_seconds=earlier)


def _parts(setting: "Setting", models: _Models) -> Iterable[tuple[str, str, Part, dict[str, Any]]]:
    """(stage name, what progress calls it, the work, what its numbers depend on) of every part.

    Those that need the dense model come last. The protocol is empty where a part is never taken from another run.
    """
    experiment, base = setting.experiment, models.base
    evaluation = experiment.evaluation
    for place, text in enumerate(evaluation.perplexity):
        label = f"perplexity/{text.corpus or Path(text.path or '').name}"
        yield (
            stages.part("perplexity", place, base),
            label,
            _perplexity(setting, models, text),
            perplexity_protocol(text),
        )
    for task in evaluation.tasks:
        label = short_name(task)
        yield stages.part("task", label, base), label, _task(setting, models, task), task_protocol(experiment, task)
    if set(SEVEN_TASKS) <= set(evaluation.tasks):
        yield stages.part("average", of=base), "mean of the tasks", _average(models), {}
    if evaluation.fidelity and not experiment.dense:
        protocol = {"fidelity": perplexity_protocol(_fidelity_text(setting))}
        yield stages.part("fidelity", of=base), "fidelity", _fidelity(setting, models), protocol
    if evaluation.speed and base == stages.EVALUATE:
        yield stages.part("speed"), "speed", _speed(setting, models), {}


def _perplexity(setting: "Setting", models: _Models, text: PerplexityCorpus) -> Part:
    def work(progress: Progress) -> Judged:
        from core.data.corpora import evaluation_windows
        from core.evaluation.perplexity import perplexity

        model, tokenizer = models.judged()
        windows = while_it_lasts(lambda: evaluation_windows(text, tokenizer), models.journal.tick)
        size = setting.experiment.evaluation.batch_size
        result = perplexity(model, windows, batch_size=size, progress=progress)
        details = _what_it_read(setting, text, recovered=models.base == stages.JUDGE_RECOVERED)
        return Judged([result.metric(windows, **details)], result.samples(windows), {})

    return work


def _what_it_read(setting: "Setting", text: PerplexityCorpus, *, recovered: bool) -> dict[str, Any]:
    """Details of a perplexity: the texts that shaped the judged model, and whether `text` is too near to them."""
    from core.data.corpora import calibrated_on, leakage, learned_from, training_leakage

    pruning, recovery = setting.experiment.pruning, setting.experiment.recovery
    details: dict[str, Any] = {}
    found = []
    if pruning is not None and pruning.reads_text:
        details["calibrated_on"] = calibrated_on(pruning.calibration)
        found.append(leakage(pruning.calibration, text))
    if recovered and recovery is not None:
        details["learned_from"] = learned_from(recovery.data)
        found.append(training_leakage(recovery.data, text))
    said = " ".join(filter(None, found))
    return {**details, "leakage": said} if said else details


def _task(setting: "Setting", models: _Models, name: str) -> Part:
    def work(progress: Progress) -> Judged:
        model, tokenizer = models.judged()
        progress(0, 1, "documents")
        from core.evaluation.tasks import evaluate_task

        how = setting.experiment.evaluation
        result = evaluate_task(
            model,
            tokenizer,
            name,
            shots=how.shots,
            limit=how.limit,
            chat_template=how.chat_template,
            batch_size=how.batch_size,
            seed=setting.experiment.seed,
            progress=progress,
        )
        for task, documents in result.documents.items():
            write_documents(documents_dir(), result.harness, task, documents)
        return Judged(result.metrics, result.samples, {})

    return work


def _average(models: _Models) -> Part:
    """The mean over the seven tasks, of what their parts wrote."""

    def work(progress: Progress) -> Judged:
        from core.evaluation.averages import seven_average
        from core.evaluation.metrics import Metric

        progress(0, 1, "tasks")
        parts = (models.journal.directory.stage(stages.part("task", task, models.base)) or {} for task in SEVEN_TASKS)
        average = seven_average(Metric.from_json(row) for part in parts for row in part.get("metrics", ()))
        return Judged([] if average is None else [average], [], {})

    return work


def _fidelity(setting: "Setting", models: _Models) -> Part:
    def work(progress: Progress) -> Judged:
        from core.data.corpora import evaluation_windows
        from core.evaluation.fidelity import fidelity

        model, tokenizer = models.judged()
        text = _fidelity_text(setting)
        windows = while_it_lasts(lambda: evaluation_windows(text, tokenizer), models.journal.tick)
        kept, size = _kept_layers(models.journal), setting.experiment.evaluation.batch_size
        result = fidelity(model, models.dense(), windows, kept=kept, batch_size=size, progress=progress)
        return Judged(result.metrics(windows), [], {"layer_errors": result.layer_errors(windows)})

    return work


def _fidelity_text(setting: "Setting") -> PerplexityCorpus:
    """The beginning of the first text of perplexity, or of the usual one."""
    text = (*setting.experiment.evaluation.perplexity, PerplexityCorpus())[0]
    tokens = max(text.window, min(FIDELITY_TOKENS, text.max_tokens or FIDELITY_TOKENS))
    return text.model_copy(update={"max_tokens": tokens})


def _kept_layers(journal: Journal) -> list[int] | None:
    """Which layers of the dense model the judged one still has; None where none was cut."""
    cut = (journal.directory.stage(stages.PRUNE) or {}).get("layers")
    if not cut:
        return None
    return [int(row["layer"]) for row in cut if row["heads_after"] or row["mlp_after"]]


def _speed(setting: "Setting", models: _Models) -> Part:
    part = speed_part(setting, models)

    def work(progress: Progress) -> Judged:
        metrics, warnings = part(progress)
        return Judged(metrics, [], {"warnings": warnings} if warnings else {})

    return work


def _samples_file(journal: Journal, part: str) -> Path:
    return journal.directory.stages_dir / f"{quote(part, safe='')}.parquet"
