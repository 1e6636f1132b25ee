"""Which of a run's models an export is made from: the pruned one, the recovered one, or the dense one. No torch."""

from dataclasses import dataclass
from pathlib import Path

from core.errors import EspalierError, InputError
from core.jobs import stages
from core.jobs.rundir import RunDirectory, list_runs
from core.jobs.states import State
from core.models.export import FORMATS

PRUNED, RECOVERED = "pruned", "recovered"


@dataclass(frozen=True)
class ExportChoice:
    """One form that a run can be exported in. `bytes`: about; `blocked`: why not, in a sentence, or ''."""

    format: str
    dtype: str
    bytes: int
    blocked: str = ""


def find_run(text: str, home: Path) -> RunDirectory:
    """A run by its folder, its id, or the beginning of its id that no other has. InputError lists those that fit."""
    folder = RunDirectory(Path(text).expanduser())
    if ("/" in text or folder.path.is_dir()) and folder.exists():
        return folder
    fitting = [run for run in list_runs(home / "runs") if text and run.id.startswith(text)]
    if len(fitting) == 1 or (fitting and fitting[0].id == text):
        return fitting[0]
    if fitting:
        ids = ", ".join(run.id for run in fitting[:4])
        raise InputError(f"{len(fitting)} runs begin with {text!r}: {ids}.", "Give more of the id.")
    raise InputError(f"There is no run {text!r} in {home / 'runs'}.", "Give a run's id, or its folder.")


def both_stages(run: RunDirectory) -> tuple[str, ...]:
    """(recovered, pruned) where a run keeps both models, the last one first; else nothing: there is no choice."""
    there = run.status().state is State.COMPLETE and all(map(_has_model, (run.model_dir, run.recovered_dir)))
    return (RECOVERED, PRUNED) if there else ()


def stage_of(run: RunDirectory, asked: str = "") -> str:
    """`pruned` or `recovered` of a run that keeps both, by default the last one; else ''. InputError if it has none."""
    both = both_stages(run)
    if both:
        return asked or both[0]
    if asked == RECOVERED:
        raise InputError(f"Run {run.id} has no recovered model.", "Leave the stage out, or choose another run.")
    return ""


def folder_of(run: RunDirectory, stage: str = "") -> Path | None:
    """The folder of the model; None for the dense model that a dense run judged. InputError where it cannot be had.

    A run that failed, or was cancelled, after its pruned model was saved and judged still has that one.
    """
    state, experiment = run.status().state, run.experiment()
    if state is not State.COMPLETE and not (stage != RECOVERED and kept_pruned(run)):
        raise InputError(f"Run {run.id} is {state}, and only complete runs are exported.", "Choose another run.")
    if experiment.model.quantised is not None:
        raise InputError(
            f"Run {run.id} judged the dense model in {experiment.model.quantised}; that file is in {run.model_dir}.",
            "Export the run of the dense model for another form.",
        )
    if experiment.pruning is None:
        if stage:
            raise InputError(f"Run {run.id} judged the dense model: it has no {stage} one.", "Leave the stage out.")
        return None
    recovered = stage_of(run, stage) == RECOVERED
    folder = run.recovered_dir if recovered else run.model_dir
    if not _has_model(folder):
        raise InputError(
            f"Run {run.id} kept no model (save_model was off, or the folder was removed).",
            "Run it again with save_model on.",
        )
    return folder


def kept_pruned(run: RunDirectory) -> bool:
    """Whether a run that ended in or after recovery, without its result, left its pruned model saved and judged."""
    if not run.status().state.finished or run.experiment().recovery is None:
        return False
    return _has_model(run.model_dir) and None not in (run.stage(stages.SAVE), run.stage(stages.EVALUATE))


def choices(run: RunDirectory, stage: str = "") -> list[ExportChoice]:
    """Every form of a run's model, with its size, from config.json alone; none where there is no model to export."""
    from core.models.catalogue import read_config, resolve
    from core.models.gguf_layout import about_bytes, gguf_architecture
    from core.models.sizes import Architecture

    try:
        folder = folder_of(run, stage)
        if folder is not None:
            architecture = Architecture.from_config(read_config(folder))
        else:
            architecture = resolve(run.experiment().model).architecture
    except EspalierError:
        return []
    blocked = ""
    if gguf_architecture(architecture) is None:
        differ = "" if architecture.uniform else " whose layers differ in size"
        blocked = f"llama.cpp has no architecture for a {architecture.model_type} model{differ}."
    found = []
    for format_, dtypes in FORMATS.items():
        for dtype in dtypes:
            size = about_bytes(architecture, dtype)
            found.append(ExportChoice(format_, dtype, size, blocked if format_ == "gguf" else ""))
    return found


def _has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()
