"""Exports of a model folder that others load: Hugging Face form, or GGUF for llama.cpp. Each is checked or fails.

The caller stages a folder (`staged`), exports into it, adds the card, and only then the folder takes its place: what
was exported before stays until the new one is whole.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from core.errors import InputError, NumericalError
from core.models.catalogue import read_config
from core.models.engines import as_mistral
from core.models.gguf_layout import DTYPES as GGUF_DTYPES
from core.models.gguf_layout import TYPE_NAMES, GgufDtype
from core.models.sizes import PER_LAYER_KEY, Architecture
from core.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HF_DTYPES = ("float32", "float16", "bfloat16")
FORMATS: dict[str, tuple[str, ...]] = {"hf": HF_DTYPES, "gguf": GGUF_DTYPES}
NOT_VERIFIED = "not verified with llama.cpp here: the package xllamacpp is not installed"
_ROOM = 64 << 20  # free bytes that are left beside an export
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Stage = Callable[[str], Progress]


@dataclass(frozen=True)
class Exported:
    """What an export left in its folder. `path` is the GGUF file, or the folder itself; sizes in bytes.

    `checks` and `notes` are sentences without a full stop; `agreement` is `llamacpp.Agreement` as a mapping, or None.
    """

    path: Path
    bytes: int
    format: str
    dtype: str
    architecture: str
    checks: list[str]
    notes: list[str] = field(default_factory=list)
    per_layer_code: bool = False
    agreement: dict[str, Any] | None = None


def silent_stage(_name: str) -> Progress:
    """A Stage that tells nobody."""
    return silent


def require_format(format_: str, dtype: str) -> None:
    """InputError for a format or dtype that there is not."""
    if format_ not in FORMATS:
        raise InputError(f"There is no export format {format_!r}.", f"Known: {', '.join(FORMATS)}.")
    if dtype not in FORMATS[format_]:
        raise InputError(f"{format_} cannot be written in {dtype!r}.", f"Choose one of {', '.join(FORMATS[format_])}.")


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A private folder beside `destination` that takes its place at the end, and is gone if anything fails.

    InputError if something is there that is no export.
    """
    if destination.is_symlink() or (destination.exists() and not _ours(destination)):
        raise InputError(f"{destination} is there already, and is no export.", "Choose another folder with --out.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise InputError(f"{destination} cannot be written: {error.strerror}.", "Choose another --out.") from error
    try:
        yield partial
        partial.chmod(0o755)
        old = destination.with_name(f".{destination.name}-old-{partial.name[-8:]}")
        if destination.exists():
            destination.replace(old)
        partial.replace(destination)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _ours(folder: Path) -> bool:
    """Whether a folder may be replaced: an export of before, or empty."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or MANIFEST in names


MANIFEST = "espalier_export.json"


def write_manifest(folder: Path, exported: Exported) -> None:
    """The small file by which a later export knows this folder as one of its kind."""
    content = {key: value for key, value in asdict(exported).items() if key != "path"}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def require_room(folder: Path, needed: int) -> None:
    """InputError if the disk has no room for `needed` bytes. `folder` or one above it exists."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed + _ROOM:
        raise InputError(
            f"The export needs {needed / 1e9:.1f} GB, and {there} has {free / 1e9:.1f} GB left.",
            "Make room, or choose another --out.",
        )


# ------------------------------------------------------------------------------------------------------------------- hf


def export_hf(source: Path, folder: Path, dtype: str, stage: Stage = silent_stage) -> Exported:
    """Export the model folder `source` into the empty `folder` in Hugging Face form, weights in `dtype`.

    A stock class wherever one holds the sizes; else the folder brings the two code files of core/models/saving.py.
    Verified in a fresh process against the source, with the weights rounded to `dtype`. Memory holds the model once, in
    the format it has on disk.
    """
    from core.models.loading import load_directory, stored_dtype
    from core.models.saving import readable, save
    from core.models.verification import verify

    architecture = Architecture.from_config(read_config(source))
    require_room(folder, architecture.params * _BYTES[dtype])
    model, tokenizer = load_directory(source, device="cpu", dtype=stored_dtype(source), progress=stage("load"))
    _require_fit(model, dtype)
    target = folder / "model"  # save makes the folder itself
    saved = save(model, tokenizer, target, stage("write"), dtype=dtype)
    notes = []
    per_layer = saved.layout == "per_layer"
    if per_layer and as_mistral(architecture):
        _become_mistral(target)
        per_layer = False
        notes.append(
            "saved as a Mistral model: the same arithmetic, and its configuration takes head counts that do not divide "
            "the hidden size"
        )
    for path in target.iterdir():
        path.replace(folder / path.name)
    target.rmdir()
    readable(folder)
    report = verify(folder, model, tokenizer, stage("verify"))
    return Exported(
        path=folder,
        bytes=_size(folder),
        format="hf",
        dtype=dtype,
        architecture=report.model_class,
        checks=[
            f"reloaded in a fresh process with transformers {report.transformers}: the logits of {report.tokens} "
            f"positions differ by at most {report.max_abs_difference:.2g} (allowed: {report.tolerance:g})"
        ],
        notes=notes,
        per_layer_code=per_layer,
    )


def _require_fit(model: "PreTrainedModel", dtype: str) -> None:
    import torch

    if dtype != "float16":
        return
    for name, weight in model.named_parameters():
        largest = float(weight.detach().abs().max()) if weight.numel() else 0.0
        if largest > torch.finfo(torch.float16).max:
            raise NumericalError(
                f"{name} holds {largest:.3g}, and float16 ends at 65504.", "Export it as bfloat16 or float32."
            )


def _become_mistral(folder: Path) -> None:
    """Rewrite a per-layer Llama folder whose layers are alike as a stock Mistral one: weights have the same names."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    sizes = config.pop(PER_LAYER_KEY)[0]
    for name in ("auto_map", "attention_bias", "mlp_bias", "pretraining_tp"):
        config.pop(name, None)
    config |= sizes
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for code in folder.glob("*.py"):
        code.unlink()


# ----------------------------------------------------------------------------------------------------------------- gguf


def export_gguf(
    source: Path,
    folder: Path,
    dtype: GgufDtype,
    name: str,
    about: dict[str, str] | None = None,
    stage: Stage = silent_stage,
    threads: int = 1,
) -> Exported:
    """Export the model folder `source` as `<name>-<FORMAT>.gguf` in the empty `folder`.

    The file is read again and compared with the source; where xllamacpp is installed, llama.cpp also runs it and must
    agree with transformers. VerificationError otherwise. `threads` are llama.cpp's.
    """
    from core.models import llamacpp
    from core.models.gguf_export import plan_gguf, write_gguf

    layout = plan_gguf(source, dtype)
    require_room(folder, layout.bytes)
    written = write_gguf(source, folder / f"{name}-{TYPE_NAMES[dtype]}.gguf", dtype, about, stage("write"))
    checks = [
        f"read again: {written.tensors} tensors by checksum, {written.compared:,} weights compared with the source"
    ]
    notes = list(written.notes)
    agreement = None
    if llamacpp.installed():
        agreement = _agreement(source, written.path, dtype, stage, threads)
        checks.append(
            f"run by llama.cpp ({agreement.engine}): text is cut into the same tokens, and {agreement.agree:.1%} of "
            f"{agreement.positions} next tokens are those of transformers ({agreement.near:.1%} within "
            f"{agreement.near_nats:g} nats of its best)"
        )
        if agreement.chat_ids_equal is False:
            notes.append("llama.cpp cuts a chat, framed by the template, into other tokens than transformers does")
    else:
        checks.append(NOT_VERIFIED)
    return Exported(
        path=written.path,
        bytes=written.bytes,
        format="gguf",
        dtype=dtype,
        architecture=written.architecture,
        checks=checks,
        notes=notes,
        agreement=None if agreement is None else asdict(agreement),
    )


def _agreement(source: Path, path: Path, dtype: GgufDtype, stage: Stage, threads: int) -> Any:
    """transformers first; its model is gone before llama.cpp maps the file."""
    import torch

    from core.models.llamacpp import compare, reference
    from core.models.loading import load_directory, stored_dtype

    stored = stored_dtype(source)
    model, tokenizer = load_directory(source, device="cpu", dtype=stored, progress=stage("load"))
    said = reference(model, tokenizer, getattr(torch, stored), progress=stage("verify"))
    del model
    return compare(path, said, dtype, stage("verify"), threads)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
