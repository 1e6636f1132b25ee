"""Writing a pruned model as a folder that `AutoModelForCausalLM.from_pretrained` loads.

| sizes | layout | what others need |
|---|---|---|
| the same in every layer | stock class, `head_dim` explicit | nothing |
| different per layer | stock config, `espalier_layers`, two small code files, `auto_map` | `trust_remote_code=True` |

Both agree between transformers 5 and 4.57, which reads `rope_theta` and `rope_scaling` at the top level and needs
`PreTrainedTokenizerFast` in tokenizer_config.json. Whatever is written is verified by `verify` before it counts.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from core.errors import ModelError
from core.files import sync_tree
from core.models.families import Family, Layout, family, loads_in
from core.models.sizes import PER_LAYER_KEY
from core.models.surgery import finish, layer_entry
from core.models.verification import VerifyReport, verify
from core.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SavedModel", "VerifyReport", "readable", "save", "save_tokenizer", "verify"]

SHARD_BYTES = 2**30
_CODE = Path(__file__).parent
_MIXIN = "per_layer"


@dataclass(frozen=True)
class SavedModel:
    """A model folder: its size in bytes (all files), layout, and where it loads, in words for people."""

    directory: Path
    bytes: int
    layout: Layout
    loads_in: list[str]


def save(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    directory: Path,
    progress: Progress = silent,
    *,
    dtype: str | None = None,
    weights: Path | None = None,
) -> SavedModel:
    """Write weights, config, tokenizer and, where sizes differ per layer, the code that holds them.

    `dtype` is the format of the weights on disk (the source's, `LoadedModel.source_dtype`); None keeps the model's.
    `weights`: a folder of finished safetensors files, which are moved; `model` may then be a skeleton without weights.
    The folder appears whole or not at all; an older one of that name is replaced. progress counts bytes of weights.
    """
    import torch

    adapter = family(model.config.model_type)
    foreign = type(model).__module__.startswith("transformers_modules.")
    if foreign or type(model).__name__ not in (adapter.stock_class, adapter.per_layer_class):
        raise ModelError(
            f"A {type(model).__name__} brings its own code, and cannot be saved as a {adapter.title} model.",
            "Choose a model that transformers' own classes load.",
        )
    architecture = finish(model, adapter)
    layout = adapter.layout(architecture)
    stored = getattr(torch, dtype) if dtype else model.dtype
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        if weights is None:
            _write_weights(model, adapter, partial, stored, progress)
        else:
            for path in sorted(weights.glob("model*")):
                path.replace(partial / path.name)
        config = _config(model, adapter, layout, stored)
        if layout == "per_layer":
            config[PER_LAYER_KEY] = [layer_entry(sizes) for sizes in architecture.layers]
        _write_json(partial / "config.json", config)
        if layout == "per_layer":
            for name in (_MIXIN, adapter.per_layer_module):
                shutil.copyfile(_CODE / f"{name}.py", partial / f"{name}.py")
        if model.generation_config is not None:
            # not save_pretrained: it refuses what some published models carry (a temperature without sampling)
            _write_json(partial / "generation_config.json", model.generation_config.to_diff_dict())
        save_tokenizer(tokenizer, partial)
        readable(partial)
        sync_tree(partial)
        shutil.rmtree(directory, ignore_errors=True)
        partial.replace(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return SavedModel(directory, size, layout, loads_in(architecture))


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Write tokenizer and chat template so that transformers 5 and 4.57 read the same tokenizer.json."""
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "name_or_path", "auto_map"):
        config.pop(name, None)  # true of this machine only, or code that is not shipped
    if (directory / "tokenizer.json").is_file():
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    _write_json(path, config)


def _config(model: "PreTrainedModel", adapter: Family, layout: Layout, dtype: "torch.dtype") -> dict[str, Any]:
    from transformers import PreTrainedConfig

    # everything that the family's config class says, also its defaults (they change between versions); of what all
    # config classes share only what differs
    shared = PreTrainedConfig().to_dict()
    config: dict[str, Any] = {
        key: value
        for key, value in model.config.to_dict().items()
        if not key.startswith("_") and (key not in shared or value != shared[key])
    }
    for name in ("quantization_config", "auto_map", "torch_dtype", PER_LAYER_KEY):
        config.pop(name, None)
    config |= _older_rope(config.get("rope_parameters") or {}, adapter)
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["tie_word_embeddings"] = adapter.tied(model)
    config["architectures"] = [adapter.stock_class if layout == "stock" else adapter.per_layer_class]
    if layout == "per_layer":
        config["auto_map"] = {"AutoModelForCausalLM": f"{adapter.per_layer_module}.{adapter.per_layer_class}"}
    return config


def _older_rope(rope: dict[str, Any], adapter: Family) -> dict[str, Any]:
    """Positions as transformers 4.57 reads them, at the top level; transformers 5 reads both alike."""
    found: dict[str, Any] = {}
    if isinstance(rope.get("sliding_attention"), dict):  # one set for each kind of layer
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if isinstance(rope.get("full_attention"), dict):
        rope = rope["full_attention"]
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            found[name] = rope[name]
    kind = rope.get("rope_type", "default")
    if kind != "default":
        elsewhere = {"rope_theta", "partial_rotary_factor", "rope_type", "type"}
        if adapter.rope_type_key == "type":  # Phi3Config knows three keys, and has this one at the top level
            elsewhere.add("original_max_position_embeddings")
        rest = {key: value for key, value in rope.items() if key not in elsewhere}
        found["rope_scaling"] = {adapter.rope_type_key: kind, **rest}
    return found


def _write_weights(
    model: "PreTrainedModel", adapter: Family, directory: Path, dtype: "torch.dtype", progress: Progress
) -> None:
    from safetensors.torch import save_file

    tensors = dict(model.state_dict())
    if adapter.tied(model):
        del tensors[f"{adapter.head_path}.weight"]  # one parameter, stored once, as the embedding
    sizes = {name: each.numel() * dtype.itemsize for name, each in tensors.items()}
    shards = list(_shards(sizes))
    done, total, where = 0, sum(sizes.values()), {}
    progress(0, total, "bytes")
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        part = {name: tensors[name].detach().to("cpu", dtype).contiguous() for name in names}
        save_file(part, directory / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(names, file))
        done += sum(sizes[name] for name in names)
        progress(done, total, "bytes")
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(directory / "model.safetensors.index.json", index)


def _shards(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Names in order, cut into groups of at most SHARD_BYTES; a larger tensor has a file of its own."""
    names: list[str] = []
    held = 0
    for name, size in sizes.items():
        if names and held + size > SHARD_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def readable(directory: Path) -> None:
    """Give a temporary folder, private by nature, and its files the usual permissions."""
    directory.chmod(0o755)
    for path in directory.iterdir():
        path.chmod(0o644)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
