"""The dense model with its weights rounded to a GGUF format: what a quantised file holds, judged like any other model.

The file is written and checked by core/models/gguf_export.py. Its values are put back into the model's own class, so
that the same evaluation judges them; arithmetic stays that of the run's dtype, only the weights are the file's.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ModelError
from core.models.gguf_export import dequantised, plan_gguf, write_gguf
from core.models.gguf_layout import TYPE_NAMES, GgufDtype
from core.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from core.experiment import ModelChoice


@dataclass(frozen=True)
class RoundedFile:
    """A written and checked file: bytes on disk, bits a weight on average, notes in sentences without a full stop."""

    path: Path
    bytes: int
    architecture: str
    bits: float
    compared: int
    notes: tuple[str, ...]


def write_rounded(source: Path, folder: Path, dtype: GgufDtype, name: str, progress: Progress = silent) -> RoundedFile:
    """Write the model folder `source` as `folder/<name>-<FORMAT>.gguf`. Errors are those of `write_gguf`."""
    from core.models.export import require_room

    layout = plan_gguf(source, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    require_room(folder, layout.bytes)
    written = write_gguf(source, folder / f"{name}-{TYPE_NAMES[dtype]}.gguf", dtype, {"name": name}, progress)
    weights = sum(math.prod(each.shape) for each in layout.tensors)
    bits = 8 * layout.bytes / weights
    return RoundedFile(written.path, written.bytes, written.architecture, bits, written.compared, written.notes)


def the_file(folder: Path) -> Path:
    """The GGUF file that `write_rounded` left in a folder. ModelError if it is gone."""
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise ModelError(f"{folder} holds {len(found)} GGUF files, not one.", "Start the run again as a new run.")
    return found[0]


def load_rounded(
    choice: "ModelChoice", folder: Path, *, device: str, dtype: str, progress: Progress = silent
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The dense model that `choice` names, with the weights that the GGUF file in the run's `folder` holds, and its
    tokenizer.

    device and dtype as in core.models.loading.load. ModelError where either cannot be had, or the two do not fit.
    """
    from core.models.loading import load, weights_directory

    assert choice.quantised is not None
    path = the_file(folder)
    loaded = load(choice, device=device, dtype=dtype, progress=progress)
    source = weights_directory(loaded.source, choice.trust_remote_code)
    put_rounded(loaded.model, source, path, choice.quantised, progress)
    return loaded.model, loaded.tokenizer


def put_rounded(
    model: "PreTrainedModel", source: Path, path: Path, dtype: GgufDtype, progress: Progress = silent
) -> None:
    """Replace the weights of `model`, loaded from the folder `source`, by those of the file, in the model's dtype.

    `progress` counts tensors. ModelError if a weight of the model is not in the file, or that is damaged.
    """
    import torch

    layout = plan_gguf(source, dtype)
    parameters = dict(model.named_parameters())
    left = set(parameters)
    found = _tensors(path, {each.name for each in layout.tensors})
    with torch.no_grad():
        for done, each in enumerate(layout.tensors):
            progress(done, len(layout.tensors), "tensors")
            if each.source is None:
                continue
            if each.source not in parameters:
                raise ModelError(f"The model has no weight {each.source}, which the GGUF file holds.")
            read = dequantised(each, found[each.name])
            values = torch.from_numpy(read[tuple(slice(size) for size in each.held)].copy())
            parameters[each.source].copy_(values)
            left.discard(each.source)
    progress(len(layout.tensors), len(layout.tensors), "tensors")
    if left:
        raise ModelError(f"The GGUF file lacks {len(left)} weights of the model, {sorted(left)[0]} among them.")


def _tensors(path: Path, wanted: set[str]) -> dict[str, Any]:
    """The file's tensors by name. ModelError if it cannot be read, or lacks one that is wanted."""
    from gguf import GGUFReader

    again = "Make the model again on the run's page, or start the run again as a new run."
    try:
        found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f"The GGUF file {path} is damaged: {error}.", again) from error
    if missing := wanted - set(found):
        raise ModelError(f"The GGUF file {path} lacks {len(missing)} tensors, {min(missing)} among them.", again)
    return found
