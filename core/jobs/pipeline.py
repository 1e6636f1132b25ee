"""One run: load → calibrate → prune → save and verify → evaluate [→ recover, save and verify → evaluate].

Or, where the experiment says `scan`: load → calibrate → scan.

Every stage leaves a file when it is finished. A run whose model is saved and verified goes on from there, and parts of
the evaluation that are finished are not repeated; before that everything is done again from the seed, to the same end.
Nothing large is imported before a stage has said that it began.
"""

import gc
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from core.errors import ExperimentError, ModelError, Problem, RunError
from core.experiment import Experiment, Resolved, experiment_hash
from core.jobs import stages
from core.jobs.events import EventWriter
from core.jobs.journal import Journal
from core.jobs.results import results_of
from core.jobs.rundir import RunDirectory
from core.progress import while_it_lasts
from core.settings import cache

if TYPE_CHECKING:
    from core.models.catalogue import ModelSource
    from core.models.loading import LoadedModel
    from core.models.saving import SavedModel, VerifyReport
    from core.models.streaming import Streamed
    from core.pruning.prune import PruneOutcome


@dataclass(frozen=True)
class Setting:
    """An experiment with everything that `auto` and a model's name turned out to be."""

    experiment: Experiment
    source: "ModelSource"
    device: str
    dtype: str
    hash: str

    @property
    def resolved(self) -> dict[str, Any]:
        """As state.json and results.json hold it."""
        return {"model": self.source.fingerprint, "device": self.device, "dtype": self.dtype}


def settle(experiment: Experiment) -> Setting:
    """Find out what the experiment means on this machine, and refuse what cannot work. Loads no torch, no weights."""
    from core.checks import require
    from core.device import resolve_device, resolve_dtype
    from core.models.catalogue import resolve

    source = resolve(experiment.model)
    require(experiment, source.architecture, foreign_code=source.foreign_code)
    device = resolve_device(experiment.device)
    dtype = resolve_dtype(experiment.model.dtype, device)
    resolved = Resolved(source.fingerprint, dtype, device.partition(":")[0], source.architecture.n_layers)
    return Setting(experiment, source, device, dtype, experiment_hash(experiment, resolved))


def require_data(experiment: Experiment) -> None:
    """Refuse an experiment whose texts or tasks cannot be had; asks no network and loads nothing heavy."""
    from core.data.corpora import check_corpus
    from core.data.tasks import check_tasks
    from core.recovery.offered import check_data

    evaluation, pruning = experiment.evaluation, experiment.pruning
    problems: list[Problem] = list(check_tasks(evaluation.tasks))
    for place, choice in enumerate(evaluation.perplexity):
        problems += check_corpus(choice, f"evaluation.perplexity.{place}")
    if pruning is not None and pruning.reads_text:
        problems += check_corpus(pruning.calibration, "pruning.calibration")
    if experiment.recovery is not None:
        problems += check_data(experiment.recovery)
    if problems:
        raise ExperimentError.of(problems)


def run(directory: RunDirectory, events: EventWriter, check: Callable[[], None]) -> None:
    """Do the run, from what earlier attempts finished. The caller writes the states before and after.

    `check` raises Cancelled when the run was asked to stop, as does every progress call. Errors say why a run fails.
    """
    journal = Journal(directory, events, check)
    try:
        _run(journal, directory.experiment())
    finally:
        journal.use.close()


def _run(journal: Journal, experiment: Experiment) -> None:
    directory = journal.directory
    setting, loaded, streamed = _load(journal, experiment)
    if experiment.scan is not None:
        assert loaded is not None
        _scan(journal, setting, loaded, streamed)
        directory.write_results(results_of(directory, setting))
        return
    saved = None
    if experiment.pruning is not None:
        saved = journal.reuse(stages.SAVE)
        if saved is None:
            assert loaded is not None
            saved = _prune_and_save(journal, setting, loaded, streamed)
            loaded = streamed = None
            _free()
    elif experiment.model.quantised is not None:
        loaded = None  # what follows reads the file
        _free()
        saved = journal.reuse(stages.SAVE) or _quantise(journal, setting)
    if journal.reuse(stages.EVALUATE) is None:
        from core.jobs.judging import evaluate

        evaluate(journal, setting, loaded)
    if experiment.recovery is not None:
        loaded = None
        directory.write_results(results_of(directory, setting))  # a recovery that fails costs nothing
        _recover(journal, setting)
    _clear(directory)
    if saved is not None and not directory.keeps_weights():
        for folder in (directory.model_dir, directory.recovered_dir):
            shutil.rmtree(folder, ignore_errors=True)
    directory.write_results(results_of(directory, setting))


# --------------------------------------------------------------------------------------------------------------- stages


def _load(journal: Journal, experiment: Experiment) -> "tuple[Setting, LoadedModel | None, Streamed | None]":
    """Settle the experiment, and load the model unless its pruned form is saved already.

    A model that is to be pruned is loaded into the host's memory, and its layers come to the device as there is room;
    one that is larger than that stays in its files.
    """
    before = journal.directory.stage(stages.LOAD)
    journal.begin(stages.LOAD)
    progress = journal.progress()
    progress(0, 1, "checks")
    setting = settle(experiment)
    if before is not None and before.get("hash") != setting.hash:
        raise ModelError(
            "The model, the device or the settings changed since this run began, so it cannot go on from where it was.",
            "Start it again as a new run.",
        )
    require_data(experiment)
    journal.work_on(setting.device)
    progress(1, 1, "checks")
    loaded, streamed = None, None
    if experiment.dense or journal.directory.stage(stages.SAVE) is None:
        _prepare_tasks(journal, experiment)
        loaded, streamed = _open(journal, setting)
    model = while_it_lasts(lambda: _model_of(setting, loaded, streamed, before), journal.tick)
    found = {"hash": setting.hash, "resolved": setting.resolved, "model": model, "streamed": streamed is not None}
    journal.finish(found, hash=setting.hash)
    return setting, loaded, streamed


def _open(journal: Journal, setting: Setting) -> "tuple[LoadedModel, Streamed | None]":
    from core.models.loading import load
    from core.models.streaming import must_stream, open_streamed
    from core.pruning.registry import get

    choice, pruning = setting.experiment.model, setting.experiment.pruning
    if pruning is not None and must_stream(setting.source, get(pruning.method).kind):
        scratch = journal.directory.path / ".weights"
        shutil.rmtree(scratch, ignore_errors=True)
        return open_streamed(choice, setting.device, scratch, journal.progress())
    device = setting.device if setting.experiment.dense else "cpu"
    return load(choice, device=device, dtype=setting.dtype, progress=journal.progress()), None


def _prepare_tasks(journal: Journal, experiment: Experiment) -> None:
    """Have the tasks' data before hours are spent on a model that then cannot be judged."""
    from core.data.tasks import OFFLINE_TASKS

    remote = [name for name in experiment.evaluation.tasks if name not in OFFLINE_TASKS]
    if remote:
        from core.evaluation.tasks import prepare_tasks

        prepare_tasks(remote, journal.progress())


def _model_of(
    setting: Setting, loaded: "LoadedModel | None", streamed: "Streamed | None", before: dict[str, Any] | None
) -> dict[str, Any]:
    """What the run's files say of the dense model."""
    if loaded is None:
        return dict((before or {}).get("model", {}))
    source = setting.source
    parameters = list(loaded.model.parameters())
    nonzero = (
        sum(int(parameter.count_nonzero().item()) for parameter in parameters)
        if streamed is None
        else streamed.count_nonzero()
    )
    return {
        "name": setting.experiment.model.name,
        "title": source.title,
        "revision": source.revision,
        "fingerprint": source.fingerprint,
        "source_dtype": loaded.source_dtype,
        "params": sum(parameter.numel() for parameter in parameters),
        "nonzero": nonzero,
        "bytes": _weight_bytes(loaded),
    }


def _weight_bytes(loaded: "LoadedModel") -> int:
    """Bytes of the dense model's weights in the format of its files."""
    import torch

    size = int(getattr(torch, loaded.source_dtype).itemsize)
    return size * sum(int(parameter.numel()) for parameter in loaded.model.parameters())


def _prune_and_save(
    journal: Journal, setting: Setting, loaded: "LoadedModel", streamed: "Streamed | None"
) -> dict[str, Any]:
    from core.models.saving import save, verify

    _prune(journal, setting, loaded, streamed)
    directory = journal.directory.model_dir
    journal.begin(stages.SAVE)
    if streamed is None:
        saved = save(loaded.model, loaded.tokenizer, directory, journal.progress(), dtype=loaded.source_dtype)
        report = verify(directory, loaded.model, loaded.tokenizer, journal.progress(task="verify"))
    else:
        saved, report = _save_streamed(journal, loaded, streamed)
    found = {"bytes": saved.bytes, "layout": saved.layout, "loads_in": saved.loads_in, "verify": asdict(report)}
    journal.finish(found)
    return found


def _quantise(journal: Journal, setting: Setting) -> dict[str, Any]:
    """Write the dense model as a GGUF file in the format asked for; its values are what is judged."""
    from core.jobs.export_facts import slug
    from core.models.gguf_rounded import write_rounded
    from core.models.loading import weights_directory

    choice = setting.experiment.model
    assert choice.quantised is not None
    journal.begin(stages.SAVE)
    shutil.rmtree(journal.directory.model_dir, ignore_errors=True)
    source = weights_directory(setting.source, choice.trust_remote_code, journal.progress())
    name = slug(setting.source.title)
    made = write_rounded(source, journal.directory.model_dir, choice.quantised, name, journal.progress())
    found = {
        "bytes": made.bytes,
        "layout": "gguf",
        "loads_in": [f"llama.cpp ({made.architecture})"],
        "bits_per_weight": round(made.bits, 3),
        "notes": list(made.notes),
        "verify": {"file": made.path.name, "compared": made.compared},
    }
    journal.finish(found)
    return found


def _save_streamed(journal: Journal, loaded: "LoadedModel", streamed: "Streamed") -> "tuple[SavedModel, VerifyReport]":
    """Finish the files that pruning wrote, and verify what is in them, a layer at a time on both sides."""
    from core.models.saving import save, verify
    from core.models.streaming import Streamed

    directory, writer = journal.directory.model_dir, streamed.writer
    streamed.finish()
    saved = save(
        loaded.model,
        loaded.tokenizer,
        directory,
        journal.progress(),
        dtype=loaded.source_dtype,
        weights=writer.directory,
    )
    shutil.rmtree(writer.directory, ignore_errors=True)
    result = Streamed(directory, "cpu")
    while_it_lasts(lambda: result.check(writer.sums), journal.tick)
    with result.on_the_fly() as model:
        report = verify(directory, model, loaded.tokenizer, journal.progress(task="verify"), offload=True)
    return saved, report


def _prune(journal: Journal, setting: Setting, loaded: "LoadedModel", streamed: "Streamed | None") -> "PruneOutcome":
    from core.anatomy_file import FILE, write_anatomy
    from core.pruning.anatomy import Anatomy
    from core.pruning.prune import prune
    from core.pruning.scores import ScoreCache

    experiment, pruning = setting.experiment, setting.experiment.pruning
    assert pruning is not None
    windows, calibration, anatomy = None, None, Anatomy()
    if pruning.reads_text:
        journal.begin(stages.CALIBRATE)
        windows, calibration = _calibration(journal, experiment, loaded)
    else:
        journal.begin(stages.PRUNE)

    def cut(done: float, total: float, unit: str) -> None:
        if journal.stage == stages.CALIBRATE:  # the engine calibrates before it cuts the first layer
            journal.finish(calibration or {})
            journal.begin(stages.PRUNE)
        journal.progress()(done, total, unit)

    outcome = prune(
        streamed or loaded.model,
        pruning,
        architecture=setting.source.architecture,
        windows=windows,
        seed=experiment.seed,
        device=setting.device,
        calibrate_progress=journal.progress(),
        progress=cut,
        cache=ScoreCache(cache() / "scores", _identity(setting, loaded)),
        anatomy=anatomy,
        tick=journal.tick,
    )
    if journal.stage != stages.PRUNE:
        raise RunError("The method finished without saying what it cut.", "This is a fault in Espalier: report it.")
    for warning in outcome.warnings:
        journal.warn(warning)
    write_anatomy(journal.directory.path / FILE, anatomy.rows)
    journal.finish({**asdict(outcome), "model_layers": setting.source.architecture.n_layers})
    return outcome


def _scan(journal: Journal, setting: Setting, loaded: "LoadedModel", streamed: "Streamed | None") -> None:
    """Prune each layer by itself and judge it; no model comes of it."""
    from core.jobs.scanning import scan_stage
    from core.pruning.scores import ScoreCache

    if journal.reuse(stages.SCAN) is not None:
        return
    pruning, windows = setting.experiment.pruning, None
    assert pruning is not None
    if pruning.reads_text:
        journal.begin(stages.CALIBRATE)
        windows, found = _calibration(journal, setting.experiment, loaded)
        journal.finish(found)
    scan_stage(journal, setting, loaded, streamed, windows, ScoreCache(cache() / "scores", _identity(setting, loaded)))
    shutil.rmtree(journal.directory.path / ".weights", ignore_errors=True)


def _identity(setting: Setting, loaded: "LoadedModel") -> dict[str, Any]:
    """What scores are kept under, besides what the method asked."""
    return {"model": setting.source.fingerprint, "dtype": loaded.dtype, "device": setting.device.partition(":")[0]}


def _calibration(journal: Journal, experiment: Experiment, loaded: "LoadedModel") -> tuple[Any, dict[str, Any]]:
    """The calibration windows, and what is needed to make them again."""
    from core.data.corpora import calibration_windows, label, leakage
    from core.data.tokens import tokens_sha256

    assert experiment.pruning is not None
    choice = experiment.pruning.calibration
    journal.progress()(0, choice.samples, "windows")
    windows = while_it_lasts(lambda: calibration_windows(choice, loaded.tokenizer, experiment.seed), journal.tick)
    found = {
        "corpus": label(choice),
        "split": choice.split,
        "samples": choice.samples,
        "length": choice.length,
        "seed": experiment.calibration_seed,
        "tokens_sha256": tokens_sha256(windows),
    }
    sentences = [leakage(choice, text) for text in experiment.evaluation.perplexity]
    warnings = list(dict.fromkeys(filter(None, sentences)))
    for warning in warnings:
        journal.warn(warning)
    return windows, {**found, "warnings": warnings}


def _recover(journal: Journal, setting: Setting) -> None:
    """Train the pruned model, save and verify what comes out, and judge it as the pruned one was judged."""
    from core.jobs.judging import evaluate

    if journal.reuse(stages.RECOVER) is None:
        from core.jobs.recovering import recovery_stage

        _free()
        recovery_stage(journal, setting)
        _free()
    if journal.reuse(stages.JUDGE_RECOVERED) is None:
        evaluate(journal, setting, None, stages.JUDGE_RECOVERED)


def _clear(directory: RunDirectory) -> None:
    """Remove what was needed only to go on: rows of parts that are joined by now, checkpoints of the training.

    Only here, when every stage has its file: a worker that is killed before would have to do them again.
    """
    for path in directory.stages_dir.glob("*.parquet"):
        path.unlink()
    shutil.rmtree(directory.recovery_dir / "checkpoints", ignore_errors=True)


def _free() -> None:
    """Give the memory of what is no longer used back to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
