"""Where a model that is chosen by its key comes from, and how many weights it has: known without torch, from files."""

import json
from pathlib import Path

from core.chat.protocol import Source
from core.errors import ModelError
from core.experiment import ModelChoice
from core.jobs.rundir import RunDirectory
from core.models import catalogue
from core.models.sizes import Architecture

DENSE = "dense:"
PRUNED = ":pruned"
"""Behind a run's id: its model before recovery."""


def source(home: Path, key: str, title: str = "") -> Source:
    """Where the model `key` comes from.

    `dense:<model name>`, a run's id (the model after recovery, if it has that; of a run that rounded the dense model to
    a GGUF format that file), `<run's id>:pruned` (before recovery), a hub id or a folder. ModelError if nowhere.
    """
    if key.startswith(DENSE):
        name = key.removeprefix(DENSE)
        return Source(key=key, title=title or name, name=name)
    run = home / "runs" / key.removesuffix(PRUNED)
    if Path(key).name == key and run.is_dir():
        found = [run / "model"] if key.endswith(PRUNED) else [run / "recovered", run / "model"]
        folder = next((each for each in found if (each / "config.json").is_file()), None)
        if folder is not None:
            return Source(key=key, title=title or key, directory=str(folder))
        if any((run / "model").glob("*.gguf")):
            return _rounded(RunDirectory(run), key, title)
        raise ModelError(f"Run {key} has no saved model.", "Its weights were not kept, or it has not finished.")
    if not key.strip():
        raise ModelError("No model is chosen.", "Choose one from the list, or give a folder.")
    path = Path(key).expanduser()
    return Source(key=key, title=title or path.name, name=str(path) if path.is_dir() else key)


def _rounded(run: RunDirectory, key: str, title: str) -> Source:
    """The dense model of a run with the weights of the run's GGUF file, at the revision that the run met."""
    model = run.experiment().model
    met = ((run.stage("load") or {}).get("model") or {}).get("revision")
    return Source(
        key=key,
        title=title or key,
        name=model.name,
        directory=str(run.model_dir),
        revision=met or model.revision,
        trust_remote_code=model.trust_remote_code,
        quantised=model.quantised,
    )


def choice(source: Source) -> ModelChoice:
    """The source as an Experiment names it."""
    return ModelChoice.model_validate(
        {
            "name": source.name,
            "revision": source.revision,
            "dtype": source.dtype,
            "trust_remote_code": source.trust_remote_code,
            "quantised": source.quantised,
        }
    )


def params(source: Source) -> int:
    """Weights of the model once loaded, from its config alone. Raises what reading that raises."""
    if source.directory is not None and source.quantised is None:
        config = json.loads((Path(source.directory) / "config.json").read_text(encoding="utf-8"))
        return Architecture.from_config(config).params
    return catalogue.resolve(choice(source)).architecture.params
