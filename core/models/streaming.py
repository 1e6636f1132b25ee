"""Pruning a model that is never in memory whole: each layer is read from safetensors files, cut, and written.

Peak memory is what one layer, the tables outside the layers and one shard of the result take. The result is the folder
that `core.models.saving` would have written from memory.
"""

import ctypes
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.errors import ModelError, NotAvailableError, RunError
from core.models.body import outside_modules
from core.models.catalogue import ModelSource, read_config, resolve
from core.models.families import family
from core.progress import Progress, silent
from core.settings import always_stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from core.experiment import ModelChoice
    from core.models.loading import LoadedModel

STREAM_SHARD_BYTES = 2**28
_M_MMAP_THRESHOLD = -3  # of mallopt, in malloc.h
INDEX = "model.safetensors.index.json"


class Source:
    """Tensors of a model folder by name, read when asked for."""

    def __init__(self, directory: Path) -> None:
        from safetensors import safe_open

        self.directory = directory
        index = directory / INDEX
        if index.is_file():
            found: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            found = {}
            for path in sorted(directory.glob("*.safetensors")):
                with safe_open(path, "pt") as file:
                    found |= dict.fromkeys(file.keys(), path.name)
        self.files = found

    def read(self, names: list[str], device: torch.device) -> dict[str, Tensor]:
        """These tensors, in memory of their own. ModelError where one is missing."""
        from safetensors import safe_open

        missing = [name for name in names if name not in self.files]
        if missing:
            raise ModelError(
                f"The model in {self.directory} has no tensor {missing[0]!r} in its files.",
                "It can be pruned in memory only, or its files are incomplete.",
            )
        tensors: dict[str, Tensor] = {}
        for file in sorted({self.files[name] for name in names}):
            with safe_open(self.directory / file, "pt") as held:
                for name in names:
                    if self.files[name] == file:
                        # a copy: a mapped file's pages would count as ours for as long as the tensor lives
                        tensors[name] = held.get_tensor(name).clone().to(device)
        return tensors


class Writer:
    """Safetensors shards of a result, written as tensors arrive; `close` names them and writes the index."""

    def __init__(self, directory: Path, shard_bytes: int = STREAM_SHARD_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._limit = shard_bytes
        self._held: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        self._shards: list[list[str]] = []
        self.sums: dict[str, float] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one finished tensor."""
        if name in self.sums:
            raise RunError(f"{name} was written twice.", "This is a fault in Espalier: please report it.")
        tensor = tensor.detach().to("cpu").contiguous()
        self.sums[name] = checksum(tensor)
        size = tensor.numel() * tensor.element_size()
        if self._held and self._bytes + size > self._limit:
            self._flush()
        self._held[name] = tensor
        self._bytes += size

    def _flush(self) -> None:
        from safetensors.torch import save_file

        if self._held:
            save_file(self._held, self._part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._held))
            self._total += self._bytes
        self._held, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.directory / f".part-{number:05}.safetensors"

    def close(self) -> None:
        """Write what is left, and give the shards their names."""
        self._flush()
        count = len(self._shards)
        where: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._part(number).replace(self.directory / file)
            where |= dict.fromkeys(names, file)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": where}
            (self.directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def checksum(tensor: Tensor) -> float:
    """A number that a changed tensor hardly keeps: the sum of its values in float64."""
    return float(tensor.sum(dtype=torch.float64))


def return_memory_at_once() -> None:
    """Have the C library give freed tensors back to the system instead of keeping pieces of them (glibc only).

    By default it learns to keep blocks of up to 32 MB, and a walk over layers ends with twice the memory in pieces.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**20)


class Streamed:
    """A Body whose layers come from files, and go to a writer at their last visit.

    `model` is a skeleton without weights: sizes are right at any time, values only inside `at` and `outside`.
    """

    def __init__(self, directory: Path, device: torch.device | str, writer: Writer | None = None) -> None:
        return_memory_at_once()
        self.model = _skeleton(directory)
        self.family = family(str(self.model.config.model_type))
        self.device = torch.device(device)
        self.source = Source(directory)
        self._writer = writer
        self._places = {id(layer): place for place, layer in enumerate(self.layers())}
        self._prefix = f"{self.family.layers_path}."
        self._tie()

    def layers(self) -> list[nn.Module]:
        """Decoder layers in order, without weights."""
        return self.family.layers(self.model)

    @contextmanager
    def at(self, index: int, *, final: bool = False) -> Iterator[nn.Module]:
        """Decoder layer `index` with its weights on the device; at the final visit it is written and left."""
        layer = self.layers()[index]
        place = f"{self._prefix}{self._places[id(layer)]}."
        names = list(layer.state_dict())
        tensors = self.source.read([place + name for name in names], self.device)
        layer.load_state_dict({name: tensors.pop(place + name) for name in names}, assign=True)
        try:
            yield layer
            if final and self._writer is not None:
                for name, tensor in layer.state_dict().items():
                    self._writer.add(f"{self._prefix}{index}.{name}", tensor)
        finally:
            layer.to("meta")

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Embedding, final norm, head and position tables on the device."""
        modules = outside_modules(self.family, self.model)
        self._load(modules)
        try:
            yield
        finally:
            for module in modules:
                for name, parameter in list(module.named_parameters(recurse=False)):
                    module.register_parameter(name, nn.Parameter(parameter.detach().to("meta"), requires_grad=False))
            self._tie()

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one parameter."""
        return bool(self.model.config.tie_word_embeddings)

    def _load(self, modules: list[nn.Module]) -> None:
        paths = {id(module): path for path, module in self.model.named_modules()}
        head = self.family.head(self.model)
        for module in modules:
            for buffer, value in list(module.named_buffers(recurse=False)):
                module.register_buffer(buffer, value.to(self.device), persistent=False)
            if self.tied and module is head:
                continue
            names = [name for name, _ in module.named_parameters(recurse=False)]
            found = self.source.read([f"{paths[id(module)]}.{name}" for name in names], self.device)
            for name in names:
                value = found[f"{paths[id(module)]}.{name}"]
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        self._tie()

    def _tie(self) -> None:
        if self.tied:
            self.family.head(self.model).weight = self.family.embedding(self.model).weight

    @property
    def writer(self) -> Writer:
        """Where finished layers go."""
        if self._writer is None:
            raise ValueError("this body was opened for reading only")
        return self._writer

    def count_nonzero(self) -> int:
        """Elements that are not zero in all files, read one tensor at a time."""
        cpu = torch.device("cpu")
        return sum(int(torch.count_nonzero(self.source.read([name], cpu)[name])) for name in self.source.files)

    def finish(self) -> None:
        """Write what is outside the layers, and close the files. All layers must have had their final visit."""
        with self.outside():
            inside = {id(each) for layer in self.layers() for each in layer.parameters()}
            seen: set[int] = set()
            for name, parameter in self.model.named_parameters():
                if id(parameter) not in inside and id(parameter) not in seen:
                    seen.add(id(parameter))
                    self.writer.add(name, parameter)
        self.writer.close()

    @contextmanager
    def on_the_fly(self) -> Iterator["PreTrainedModel"]:
        """The model as one that can be called: each layer is there only while it runs."""
        visits: list[Any] = []

        def enter(index: int) -> Any:
            def load(_module: nn.Module, _arguments: Any) -> None:
                visit = self.at(index)
                visit.__enter__()
                visits.append(visit)

            return load

        def leave(_module: nn.Module, _arguments: Any, _output: Any) -> None:
            visits.pop().__exit__(None, None, None)

        hooks = []
        for index, layer in enumerate(self.layers()):
            hooks.append(layer.register_forward_pre_hook(enter(index)))
            hooks.append(layer.register_forward_hook(leave))
        try:
            with self.outside():
                yield self.model
        finally:
            for hook in hooks:
                hook.remove()

    def check(self, sums: dict[str, float]) -> None:
        """RunError unless the files hold exactly the tensors of which these are the checksums."""
        if set(sums) != set(self.source.files):
            odd = sorted(set(sums) ^ set(self.source.files))[0]
            raise RunError(f"{odd} is not both in the result and in its files.", "Run it again; the disk may be full.")
        for name, expected in sums.items():
            found = checksum(self.source.read([name], torch.device("cpu"))[name])
            if found != expected and not (math.isnan(found) and math.isnan(expected)):
                raise RunError(f"{name} was not written as it was in memory.", "Run it again; check the disk.")


def must_stream(source: ModelSource, kind: str) -> bool:
    """Whether a model should be pruned from disk: asked for, or its weights would take most of the free memory.

    NotAvailableError for a kind of pruning that must hold the model in memory.
    """
    import psutil

    architecture = source.architecture
    needed = architecture.params * {"float32": 4}.get(architecture.dtype, 2)
    if not always_stream() and needed < 0.6 * psutil.virtual_memory().available:
        return False
    if kind == "hidden":
        if always_stream():
            return False
        raise NotAvailableError(
            "Hidden-channel pruning touches every matrix at once, and this model does not fit into memory.",
            "Choose a width, depth or mask method, or a machine with more memory.",
        )
    return True


def open_streamed(
    choice: "ModelChoice", device: str, scratch: Path, progress: Progress = silent
) -> "tuple[LoadedModel, Streamed]":
    """A skeleton of what an Experiment names, its tokenizer, and the body that reads its layers.

    scratch: folder for the result's weights. ModelError where the model cannot be had or read.
    """
    from transformers import AutoTokenizer

    from core.models.loading import LoadedModel, stored_dtype, weights_directory

    source = resolve(choice)
    directory = weights_directory(source, progress=progress)
    dtype = stored_dtype(directory)
    body = Streamed(directory, device, Writer(scratch))
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    return LoadedModel(body.model, tokenizer, source, device, dtype, dtype), body


def _skeleton(directory: Path) -> "PreTrainedModel":
    """The model's modules without weights; buffers, which are computed and not stored, are real."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.models.loading import per_layer_class, stored_dtype
    from core.models.sizes import PER_LAYER_KEY

    raw = read_config(directory)
    config = AutoConfig.from_pretrained(str(directory))
    dtype = getattr(torch, stored_dtype(directory))
    attention = family(str(raw.get("model_type", ""))).attention
    with init_empty_weights(include_buffers=False):
        if PER_LAYER_KEY in raw:
            model = per_layer_class(raw)._from_config(config, dtype=dtype, attn_implementation=attention)
        else:
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.config.tie_word_embeddings = bool(raw.get("tie_word_embeddings", model.config.tie_word_embeddings))
    result: PreTrainedModel = model.eval()
    return result
