"""Writing a model folder as one GGUF file, and reading it again before it counts.

Tensors pass through one at a time, so that memory holds one of them, never the model. The file appears whole or not at
all. What llama.cpp then computes from it is another question: core/models/llamacpp.py.
"""

import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ModelError, NumericalError, VerificationError
from core.models.catalogue import read_config
from core.models.gguf_layout import (
    TYPE_NAMES,
    GgufDtype,
    GgufLayout,
    GgufTensor,
    gguf_layout,
    rope_parameters,
)
from core.models.gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from core.progress import Progress, silent

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter

# Largest error of a weight that each format allows, as a share of the largest weight of its block (of itself for
# floats): half a step of Q8_0 is 1/254, plus its scale in float16; Q4_0 has 8 steps below and 7 above zero.
ALLOWED = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 1 / 254 + 2.0**-11, "Q4_0": 1 / 8 + 2.0**-10}
_TINY = 2.0**-24  # what float16 cannot tell from zero
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufFile:
    """A written and checked file. `compared` weights were read back and compared one by one, all bytes by checksum."""

    path: Path
    bytes: int
    architecture: str
    tensors: int
    compared: int
    notes: tuple[str, ...]


class Weights:
    """The safetensors files of a folder, opened but not read; tensors come one at a time as float32."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        from safetensors import SafetensorError, safe_open

        self._where: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(directory.glob("*.safetensors")):
            try:
                handle = stack.enter_context(safe_open(str(path), framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{path.name} cannot be read: {error}", "Copy or download the folder again."
                ) from error
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                self._where[name] = handle
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def read(self, name: str) -> "np.ndarray[Any, Any]":
        """One tensor in float32."""
        values: np.ndarray[Any, Any] = self._where[name].get_tensor(name).float().numpy()
        return values


@contextmanager
def opened(directory: Path) -> Iterator[Weights]:
    """The folder's weights, closed at the end."""
    with ExitStack() as stack:
        yield Weights(directory, stack)


def plan_gguf(directory: Path, dtype: GgufDtype) -> GgufLayout:
    """What the file of this folder would hold. ModelError says what llama.cpp could not compute."""
    with opened(directory) as weights:
        return gguf_layout(read_config(directory), weights.shapes, dtype)


def write_gguf(
    directory: Path,
    destination: Path,
    dtype: GgufDtype,
    about: dict[str, str] | None = None,
    progress: Progress = silent,
) -> GgufFile:
    """Write the model in `directory` to the file `destination`, then read it again and compare.

    `about`: values of `general.*` (name, license, …). progress counts bytes of weights, written and then read.
    ModelError for what llama.cpp could not compute; NumericalError if a weight does not fit the format;
    VerificationError if the file is not what was to be written, and then there is no file.
    """
    from transformers import AutoTokenizer

    config = read_config(directory)
    tokenizer = gguf_tokenizer(AutoTokenizer.from_pretrained(str(directory)), int(config["vocab_size"]))
    with opened(directory) as weights:
        layout = gguf_layout(config, weights.shapes, dtype)
        factors = _rope_factors(directory) if layout.rope_factors else None
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(f".{destination.name}.partial")
        try:
            sums = _write(partial, layout, config, tokenizer, weights, factors, dtype, about or {}, progress)
            compared = check(partial, layout, weights, sums, progress)
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)
    notes = (*layout.notes, *tokenizer.notes)
    return GgufFile(destination, destination.stat().st_size, layout.architecture, len(sums), compared, notes)


# ---------------------------------------------------------------------------------------------------------------- write


def _write(
    path: Path,
    layout: GgufLayout,
    config: dict[str, Any],
    tokenizer: GgufTokenizer,
    weights: Weights,
    factors: "np.ndarray[Any, Any] | None",
    dtype: GgufDtype,
    about: dict[str, str],
    progress: Progress,
) -> dict[str, int]:
    """Header first, then one tensor after another; returns the checksum of each tensor's bytes."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, layout.architecture)
    try:
        _metadata(writer, layout, config, dtype, about)
        _vocabulary(writer, tokenizer)
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        total = 0
        for each in layout.tensors:
            kind = GGMLQuantizationType[each.type]
            block, size = GGML_QUANT_SIZES[kind]
            held = int(np.prod(each.shape)) // block * size
            writer.add_tensor_info(each.name, each.shape, np.dtype(np.float32), held, raw_dtype=kind)
            total += held
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        sums: dict[str, int] = {}
        done = 0
        if factors is not None:
            writer.write_tensor_data(factors)
            sums[ROPE_FACTORS] = _sum(factors)
        progress(0, 2 * total, "bytes")
        for each in layout.tensors:
            data = encoded(each, values_of(each, weights))
            writer.write_tensor_data(data)
            sums[each.name] = _sum(data)
            done += data.nbytes
            progress(done, 2 * total, "bytes")
        return sums
    finally:
        writer.close()


def _sum(data: Any) -> int:
    """Checksum of an array's bytes, without a copy of them."""
    return zlib.crc32(data.reshape(-1).view("uint8"))


def values_of(each: GgufTensor, weights: Weights) -> "np.ndarray[Any, Any]":
    """The float32 values of a tensor as llama.cpp wants them: filled up with zeros, rows of q and k interleaved."""
    import numpy as np

    if each.source is None:
        return np.zeros(each.shape, dtype=np.float32)
    values = weights.read(each.source)
    if values.shape != each.shape:
        missing = [(0, want - have) for have, want in zip(values.shape, each.shape, strict=True)]
        values = np.pad(values, missing)
    if each.heads:
        values = interleaved(values, each.heads)
    return np.ascontiguousarray(values)


def interleaved(values: "np.ndarray[Any, Any]", heads: int) -> "np.ndarray[Any, Any]":
    """Rows of q or k: transformers turns channels i and i + head_dim/2 together, llama.cpp the neighbours 2i, 2i+1."""
    half = values.shape[0] // heads // 2
    split = values.reshape(heads, 2, half, *values.shape[1:])  # (heads, half of the head, channel, in)
    return split.swapaxes(1, 2).reshape(values.shape)


def encoded(each: GgufTensor, values: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Values in the tensor's format. NumericalError for nan and inf, also where float16 makes them."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    if not np.isfinite(values).all():
        raise NumericalError(f"{each.source} holds nan or inf.", "This model cannot be used; make it again.")
    if each.type == "F32":
        return values
    largest = float(np.abs(values).max(initial=0.0))
    if each.type == "F16" and largest > 65504:
        raise NumericalError(
            f"{each.source} holds {largest:.3g}, and float16 ends at 65504.", "Export it as bfloat16 or float32."
        )
    data: np.ndarray[Any, Any] = quants.quantize(values, GGMLQuantizationType[each.type])
    return np.ascontiguousarray(data)


def _metadata(
    writer: "GGUFWriter", layout: GgufLayout, config: dict[str, Any], dtype: GgufDtype, about: dict[str, str]
) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    writer.add_type("model")
    for name, value in about.items():
        writer.add_string(f"general.{name}", value)
    kind = TYPE_NAMES[dtype]
    writer.add_file_type(LlamaFileType.ALL_F32 if kind == "F32" else LlamaFileType[f"MOSTLY_{kind}"])
    if kind.startswith("Q"):
        writer.add_quantization_version(GGML_QUANT_VERSION)
    rows = layout.layers
    columns = [[r.heads for r in rows], [r.kv_heads for r in rows], [r.mlp for r in rows]]
    heads, kv_heads, mlp = columns if layout.per_layer else [column[0] for column in columns]
    writer.add_block_count(len(rows))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_feed_forward_length(mlp)
    writer.add_context_length(layout.context_length)
    writer.add_embedding_length(layout.hidden_size)
    writer.add_key_length(layout.head_dim)
    writer.add_value_length(layout.head_dim)
    writer.add_rope_dimension_count(layout.head_dim)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    rope = rope_parameters(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _vocabulary(writer: "GGUFWriter", tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.model == "gpt2":
        writer.add_token_merges(tokenizer.merges)
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for role, value in tokenizer.special.items():
        writer.add_uint32(f"tokenizer.ggml.{names[role]}_token_id", value)
    for name, flag in tokenizer.flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _rope_factors(directory: Path) -> "np.ndarray[Any, Any]":
    """(head_dim/2,) float32: by how much llama3's rule slows each rotation, as transformers itself computes it."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.from_pretrained(str(directory))
    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    theta = float(rope_parameters(config.to_dict())["rope_theta"])
    import torch

    plain = theta ** -(torch.arange(0, 2 * len(slowed), 2, dtype=torch.float32) / (2 * len(slowed)))
    factors: np.ndarray[Any, Any] = (plain / slowed).float().numpy()
    return factors


# ---------------------------------------------------------------------------------------------------------------- check


def check(path: Path, layout: GgufLayout, weights: Weights, sums: dict[str, int], progress: Progress = silent) -> int:
    """Read the file again: names, shapes, formats, every byte by checksum, and some tensors value by value.

    Returns the number of weights compared with the source. VerificationError says what differs.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if set(found) != set(sums):
        odd = sorted(set(found) ^ set(sums))
        raise VerificationError(f"The GGUF file does not hold the tensors that were written: {', '.join(odd[:3])}.")
    total = sum(int(tensor.n_bytes) for tensor in found.values())
    done = compared = 0
    sampled = _sample(layout)
    for name, tensor in found.items():
        if _sum(tensor.data) != sums[name]:
            raise VerificationError(f"{name} in the GGUF file is not what was written.", "Check the disk.")
        done += int(tensor.n_bytes)
        progress(total + done, 2 * total, "bytes")
    for each in layout.tensors:
        tensor = found[each.name]
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if shape != each.shape or tensor.tensor_type.name != each.type:
            raise VerificationError(
                f"{each.name} in the GGUF file is {tensor.tensor_type.name} {shape}, not {each.type} {each.shape}."
            )
        if each.name in sampled and each.source is not None:
            compared += _compare(each, tensor, weights)
    return compared


def _sample(layout: GgufLayout) -> set[str]:
    """Tensors compared value by value: the first, middle and last layer, norms, and the embedding."""
    last = len(layout.layers) - 1
    layers = tuple(f"blk.{i}." for i in {0, last // 2, last})
    return {e.name for e in layout.tensors if e.name.startswith(layers) or len(e.shape) == 1 or "blk" not in e.name}


def dequantised(each: GgufTensor, tensor: Any) -> "np.ndarray[Any, Any]":
    """The float32 values of a tensor of the file, of the shape it has there, rows in the source's order."""
    import numpy as np
    from gguf import quants

    read: np.ndarray[Any, Any] = quants.dequantize(tensor.data, tensor.tensor_type).reshape(each.shape)
    if each.heads:  # back into halves, by indices, so that a slip in `interleaved` shows
        head_dim = each.shape[0] // each.heads
        own = np.arange(each.shape[0])
        place, within = own // head_dim * head_dim, own % head_dim
        read = read[place + within % (head_dim // 2) * 2 + within // (head_dim // 2)]
    return read


def _compare(each: GgufTensor, tensor: Any, weights: Weights) -> int:
    """Compare a tensor of the file with the source in the source's own order of rows."""
    import numpy as np

    assert each.source is not None
    read = dequantised(each, tensor)
    wanted = weights.read(each.source)
    kept = read[tuple(slice(size) for size in wanted.shape)]
    largest = np.abs(wanted)
    if each.type in ("Q8_0", "Q4_0"):
        blocks = np.abs(np.pad(wanted, [(0, 0), (0, -wanted.shape[1] % 32)]))
        blocks = blocks.reshape(wanted.shape[0], -1, 32).max(axis=2, keepdims=True)
        largest = np.broadcast_to(blocks, (*blocks.shape[:2], 32)).reshape(wanted.shape[0], -1)[:, : wanted.shape[1]]
    slack = _TINY if each.type in ("F16", "Q8_0", "Q4_0") else 0.0
    off = np.abs(kept - wanted) > ALLOWED[each.type] * largest + slack * (127 if each.type.startswith("Q") else 1)
    if off.any() or np.abs(read).sum(dtype=np.float64) > np.abs(kept).sum(dtype=np.float64) * (1 + 1e-9):
        raise VerificationError(
            f"{each.name} in the GGUF file is not {each.source}: {int(off.sum())} of {wanted.size} weights differ by "
            f"more than {each.type} allows."
        )
    return int(wanted.size)
