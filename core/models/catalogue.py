"""Which models can be chosen, and what a choice stands for. No torch, no transformers: config.json is read as JSON.

A name is `builtin:…`, a folder in Hugging Face form, or a hub id `organisation/name`.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import settings
from core.errors import GatedModelError, ModelError, UnknownNameError
from core.models import builtin
from core.models.families import brings_code, families
from core.models.fingerprints import file_hash
from core.models.sizes import PER_LAYER_KEY, Architecture

if TYPE_CHECKING:
    from core.experiment import ModelChoice

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_CONFIG_BYTES = 4_000_000
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Entry:
    """A model that the form offers. `offline`: it is usable now, without a network."""

    name: str
    title: str
    license: str
    note: str
    offline: bool


@dataclass(frozen=True)
class ModelSource:
    """What a choice stands for. `directory` is None for a hub model, and for a built-in one not converted yet.

    `revision` is the hub's commit; `own_per_layer` says that the folder was written by this program, with sizes that
    differ per layer: it loads through this program's class, never through the code file in it.
    """

    name: str
    title: str
    directory: Path | None
    hub_id: str | None
    revision: str | None
    architecture: Architecture
    config: dict[str, Any] = field(repr=False)
    own_per_layer: bool = False

    @property
    def foreign_code(self) -> bool:
        """Whether the model brings Python code of its own."""
        return brings_code(self.config) and not self.own_per_layer

    @cached_property
    def fingerprint(self) -> str:
        """What identifies the weights: the hub's commit, or a SHA-256 over the files (cached by size and time)."""
        if self.hub_id is not None:
            return f"{self.hub_id}@{self.revision}"
        if self.name == builtin.NAME:
            return hashlib.sha256(f"{file_hash(builtin.gguf_file())} v{builtin.VERSION}".encode()).hexdigest()
        assert self.directory is not None
        files = [*self.directory.glob("*.json"), *self.directory.glob("*.safetensors"), *self.directory.glob("*.jinja")]
        lines = "".join(f"{path.name} {file_hash(path)}\n" for path in sorted(files))
        return hashlib.sha256(lines.encode()).hexdigest()


_HUB = (
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama 1.1B Chat", "Apache-2.0", "22 layers, 32 query and 4 KV heads."),
    (
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        "SmolLM2 360M Instruct",
        "Apache-2.0",
        "32 layers, 15 query and 5 KV heads.",
    ),
    ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2 1.7B Instruct", "Apache-2.0", "24 layers, 32 heads."),
    (
        "mistralai/Mistral-7B-Instruct-v0.3",
        "Mistral 7B Instruct v0.3",
        "Apache-2.0",
        "32 layers, 32 query and 8 KV heads.",
    ),
)


def entries() -> list[Entry]:
    """Models that the form offers by name; any other hub id or folder can be typed."""
    note = "30 layers, 9 query and 3 KV heads. Comes in a package; dequantised from Q4_1."
    found = [Entry(builtin.NAME, "SmolLM2 135M Instruct", "Apache-2.0", note, builtin.installed())]
    for name, title, licence, note in _HUB:
        found.append(Entry(name, title, licence, f"{note} From the hub.", _cached_config(name, None) is not None))
    return found


def resolve(choice: "ModelChoice") -> ModelSource:
    """What a choice stands for, without loading weights. ModelError says what is missing or refused, and what to do.

    A hub model's config.json is taken from the local hub cache, else fetched (only that file).
    """
    if choice.name.startswith("builtin:"):
        return _builtin(choice.name)
    folder = Path(choice.name).expanduser()
    if (folder / "config.json").is_file():
        return _folder(choice, folder.resolve())
    if _HUB_ID.fullmatch(choice.name) and not folder.is_dir():
        return _hub(choice)
    if folder.is_dir():
        raise ModelError(f"The folder {folder} has no config.json.", "Give a model folder in Hugging Face form.")
    raise ModelError(
        f"{choice.name!r} is no model: neither a folder on this machine nor a hub id (organisation/name).",
        "Check the spelling, or choose one from the list.",
    )


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a folder as a mapping. ModelError if it is missing, too large, or no JSON object."""
    return _read_json(directory / "config.json")


def require_safetensors(directory: Path) -> None:
    """ModelError if an index of the folder names anything but safetensors files in it: the library would open that."""
    for index in directory.glob("model*.safetensors.index.json"):
        named = _read_json(index).get("weight_map")
        files = set(map(str, named.values())) if isinstance(named, dict) else {""}
        strange = sorted(file for file in files if not re.fullmatch(r"[\w.-]+\.safetensors", file))
        if strange:
            raise ModelError(
                f"{index.name} in {directory} names {strange[0][:80]!r}, which is no safetensors file of that folder.",
                "Convert the model to safetensors, or copy or download the folder again.",
            )


def _builtin(name: str) -> ModelSource:
    if name != builtin.NAME:
        raise UnknownNameError("built-in model", name, [builtin.NAME])
    builtin.gguf_file()  # says how to install it where it is missing
    made = builtin.converted_directory()
    config = dict(builtin.CONFIG)
    architecture = Architecture.from_config(config)
    return ModelSource(name, "SmolLM2 135M Instruct", made if made.is_dir() else None, None, None, architecture, config)


def _folder(choice: "ModelChoice", directory: Path) -> ModelSource:
    config = read_config(directory)
    if not any(directory.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
        if pickles:
            raise ModelError(
                f"{directory} has its weights as pickles only ({pickles[0]}): loading them can run any code.",
                "Convert the model to safetensors first.",
            )
        raise ModelError(f"{directory} has no *.safetensors files.", "Copy or download the whole model folder.")
    require_safetensors(directory)
    return _source(choice, config, title=directory.name, directory=directory)


def _hub(choice: "ModelChoice") -> ModelSource:
    path = _cached_config(choice.name, choice.revision) or _fetched_config(choice)
    commit = path.parent.name  # …/snapshots/<commit>/config.json
    title = choice.name.partition("/")[2]
    return _source(choice, _read_json(path), title=title, hub_id=choice.name, revision=commit)


def _source(
    choice: "ModelChoice",
    config: dict[str, Any],
    *,
    title: str,
    directory: Path | None = None,
    hub_id: str | None = None,
    revision: str | None = None,
) -> ModelSource:
    own = PER_LAYER_KEY in config and config.get("model_type") in families()
    if brings_code(config) and not own and not choice.trust_remote_code:
        raise ModelError(
            f"{choice.name} brings Python code of its own, which would be executed.",
            "Read that code; then allow it for this one model (trust_remote_code).",
        )
    if "quantization_config" in config:
        raise ModelError(
            f"{choice.name} is quantised: there are no plain weights to prune.", "Choose the model it was made from."
        )
    return ModelSource(choice.name, title, directory, hub_id, revision, Architecture.from_config(config), config, own)


def _cached_config(hub_id: str, revision: str | None) -> Path | None:
    """config.json in the local hub cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def gated(name: str) -> GatedModelError:
    """The error for a model that the hub keeps behind its licence."""
    return GatedModelError(
        f"{name} asks for its licence to be accepted.",
        "Accept it on the hub, log in on this machine with `hf auth login`, then retry.",
    )


def _fetched_config(choice: "ModelChoice") -> Path:
    advice = "Choose the built-in model or a local folder, or connect to the network."
    if settings.offline():
        raise ModelError(f"{choice.name} is not on this machine, and asking the hub is switched off.", advice)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(choice.name, "config.json", revision=choice.revision, etag_timeout=5))
    except GatedRepoError as error:
        raise gated(choice.name) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{choice.name} has no revision {choice.revision!r}.", "Check the name on the hub.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"The hub has no model {choice.name!r}.", "Check the spelling; private ones need a login."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{choice.name} is not on this machine, and the hub cannot be reached.", advice) from error
    except EntryNotFoundError as error:
        raise ModelError(f"{choice.name} has no config.json.", "Choose a model in Hugging Face form.") from error
    except OSError as error:
        raise ModelError(f"The hub did not give {choice.name}: {error}", advice) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise ModelError(f"{path} is {path.stat().st_size} bytes long: that is no model configuration.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path} cannot be read: {error}", "Give a model folder in Hugging Face form.") from error
    if not isinstance(data, dict):
        raise ModelError(
            f"{path} holds a {type(data).__name__}, not an object.", "Give a model folder in Hugging Face form."
        )
    return data
