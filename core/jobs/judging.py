"""The evaluation stage: the weights as they were saved, judged part by part.

Parts are stages of their own (core.jobs.stages), so that a run that lost its worker repeats at most one. The dense
model is loaded only for what compares with it, after everything else, and beside the pruned one.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.experiment import PerplexityCorpus
from core.jobs import stages
from core.jobs.journal import Journal
from core.progress import Progress

if TYPE_CHECKING:
    from core.evaluation.metrics import Metric
    from core.jobs.pipeline import Setting
    from core.models.loading import LoadedModel

SPARSE = "2:4"
FIDELITY_TOKENS = 8192  # enough for a standard error of about a hundredth of a nat


class _Models:
    """The judged model and, where asked for, the dense one: loaded when first needed."""

    def __init__(self, journal: Journal, setting: "Setting", dense: "LoadedModel | None") -> None:
        self.journal, self._setting = journal, setting
        self._dense = (dense.model, dense.tokenizer) if dense is not None else None
        self._judged: tuple[Any, Any] | None = self._dense if setting.experiment.dense else None

    def judged(self) -> tuple[Any, Any]:
        """(model, tokenizer) as saved; for a dense run the dense model."""
        if self._judged is None:
            from core.models.loading import load_directory

            progress = self.journal.progress(task="load")
            place, how = self.journal.directory.model_dir, self._setting
            if how.experiment.model.quantised is not None:
                self._judged = _rounded(place, how, progress)
            else:
                self._judged = load_directory(place, device=how.device, dtype=how.dtype, progress=progress)
        return self._judged

    def dense(self) -> Any:
        """The dense model."""
        if self._dense is None:
            from core.models.loading import load

            progress = self.journal.progress(task="load dense")
            how = self._setting
            loaded = load(how.experiment.model, device=how.device, dtype=how.dtype, progress=progress)
            self._dense = (loaded.model, loaded.tokenizer)
        return self._dense[0]


def _rounded(place: Path, how: "Setting", progress: Progress) -> tuple[Any, Any]:
    """The dense model with the weights that the GGUF file in the run's folder `place` holds."""
    from core.models.gguf_rounded import put_rounded, the_file
    from core.models.loading import load, weights_directory

    choice = how.experiment.model
    assert choice.quantised is not None
    loaded = load(choice, device=how.device, dtype=how.dtype, progress=progress)
    source = weights_directory(loaded.source, choice.trust_remote_code)
    put_rounded(loaded.model, source, the_file(place), choice.quantised, progress)
    return loaded.model, loaded.tokenizer


Part = Callable[[Progress], "tuple[list[Metric], list[dict[str, Any]]]"]


def evaluate(journal: Journal, setting: "Setting", dense: "LoadedModel | None") -> None:
    """Do all parts that are not finished, then finish the stage. `dense` is the model of a dense run."""
    journal.begin(stages.EVALUATE)
    models = _Models(journal, setting, dense)
    earlier = 0.0
    for name, label, part in _parts(setting, models):
        found = journal.reuse(name)
        if found is not None:
            earlier += float(found.get("seconds") or 0)
            continue
        begun = time.monotonic()
        metrics, samples = part(journal.progress(task=label))
        rows = [metric.to_json() for metric in metrics]
        if samples:
            _write_samples(_samples_file(journal, name), samples)
        journal.write(name, {"metrics": rows}, round(time.monotonic() - begun, 3))
        for row in rows:
            journal.events.metric(row)
    _join_samples(journal)
    journal.finish({}, extra_seconds=earlier)
    for path in journal.directory.stages_dir.glob("*.parquet"):
        path.unlink()


def _parts(setting: "Setting", models: _Models) -> Iterable[tuple[str, str, Part]]:
    """(stage name, what progress calls it, the work) of every part; those that need the dense model come last."""
    evaluation, compared = setting.experiment.evaluation, not setting.experiment.dense
    for place, text in enumerate(evaluation.perplexity):
        yield (
            stages.part("perplexity", place),
            f"perplexity/{text.corpus or Path(text.path or '').name}",
            _perplexity(setting, models, text),
        )
    for task in evaluation.tasks:
        yield stages.part("task", task), task, _task(setting, models, task)
    if evaluation.fidelity and compared:
        yield stages.part("fidelity"), "fidelity", _fidelity(setting, models)
    if evaluation.speed:
        yield stages.part("speed"), "speed", _speed(setting, models)


def _perplexity(setting: "Setting", models: _Models, text: PerplexityCorpus) -> Part:
    def work(progress: Progress) -> tuple[list["Metric"], list[dict[str, Any]]]:
        from core.data.corpora import evaluation_windows
        from core.evaluation.perplexity import perplexity

        model, tokenizer = models.judged()
        windows = evaluation_windows(text, tokenizer)
        size = setting.experiment.evaluation.batch_size
        result = perplexity(model, windows, batch_size=size, progress=progress)
        return [result.metric(windows)], []

    return work


def _task(setting: "Setting", models: _Models, name: str) -> Part:
    def work(progress: Progress) -> tuple[list["Metric"], list[dict[str, Any]]]:
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
        return result.metrics, result.samples

    return work


def _fidelity(setting: "Setting", models: _Models) -> Part:
    def work(progress: Progress) -> tuple[list["Metric"], list[dict[str, Any]]]:
        from core.data.corpora import evaluation_windows
        from core.evaluation.fidelity import fidelity

        model, tokenizer = models.judged()
        evaluation = setting.experiment.evaluation
        text = (*evaluation.perplexity, PerplexityCorpus())[0]
        tokens = max(text.window, min(FIDELITY_TOKENS, text.max_tokens or FIDELITY_TOKENS))
        windows = evaluation_windows(text.model_copy(update={"max_tokens": tokens}), tokenizer)
        result = fidelity(model, models.dense(), windows, batch_size=evaluation.batch_size, progress=progress)
        return result.metrics(windows), []

    return work


def _speed(setting: "Setting", models: _Models) -> Part:
    def work(progress: Progress) -> tuple[list["Metric"], list[dict[str, Any]]]:
        from core.evaluation.speed import measure

        model, tokenizer = models.judged()
        # A metric's stage is its model's name; the first evaluation of any run, a dense one too, is `pruned`.
        both = {"pruned": model}
        if setting.experiment.pruning is not None:
            both["dense"] = models.dense()
        sparse = _with_sparse_kernels(setting, models, model)
        if sparse is not None:
            both[SPARSE] = sparse
        return [_of_sparse(each) for each in measure(both, tokenizer, device=setting.device, progress=progress)], []

    return work


def _with_sparse_kernels(setting: "Setting", models: _Models, model: Any) -> Any:
    """The judged model on 2:4 kernels, where the run made a 2:4 mask on a GPU that has them."""
    pruning = setting.experiment.pruning
    if pruning is None or pruning.pattern != "2:4" or not setting.device.startswith("cuda"):
        return None
    from core.errors import NotAvailableError
    from core.evaluation.sparse_kernels import with_sparse_kernels

    try:
        return with_sparse_kernels(model)[0]
    except NotAvailableError as error:
        models.journal.warn(str(error))
        return None


def _of_sparse(metric: "Metric") -> "Metric":
    """Speeds on 2:4 kernels are a measurement of their own of the same model."""
    if metric.stage != SPARSE:
        return metric
    protocol = {**metric.protocol, "kernels": "semi-structured 2:4"}
    return dataclasses.replace(metric, stage="pruned", task=f"{metric.task}/2:4", protocol=protocol)


# -------------------------------------------------------------------------------------------------------------- samples


def _samples_file(journal: Journal, part: str) -> Path:
    from urllib.parse import quote

    return journal.directory.stages_dir / f"{quote(part, safe='')}.parquet"


def _write_samples(path: Path, samples: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.Table.from_pylist(samples), temporary)
    temporary.replace(path)


def _join_samples(journal: Journal) -> None:
    """One samples.parquet of all tasks. The parts stay until the stage is finished."""
    parts = sorted(journal.directory.stages_dir.glob("*.parquet"))
    if not parts:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.concat_tables([pq.read_table(path) for path in parts], promote_options="permissive")
    temporary = journal.directory.samples_file.with_name(".samples.parquet.tmp")
    pq.write_table(table, temporary)
    temporary.replace(journal.directory.samples_file)
