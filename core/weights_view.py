"""Where the zeros of one matrix are, read from a run's safetensors on demand: no torch, and never a whole model.

A safetensors file begins with 8 bytes (length of the header, little-endian) and a JSON header that names each tensor's
dtype, shape and bytes; only the rows that are asked for are mapped. Everything that a header says is checked first.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import InputError

BLOCKS = 96  # along each side of an image at most
MOST_HEADER = 64 << 20
_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
}
_MODULES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
_JOINED = {"q": "self_attn.qkv_proj", "k": "self_attn.qkv_proj", "v": "self_attn.qkv_proj"}
_JOINED |= {"gate": "mlp.gate_up_proj", "up": "mlp.gate_up_proj"}


@dataclass(frozen=True)
class Region:
    """Rows and columns of a matrix, half open."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Image:
    """Density of blocks of a region of a matrix: `values` (rows, columns) in 0…1, 1 = no zeros.

    shape: of the whole matrix (out, in). exact: read from the weights; otherwise as noted down when it was pruned.
    """

    values: "np.ndarray[Any, np.dtype[np.float64]]"
    region: Region
    shape: tuple[int, int]
    exact: bool

    @property
    def zeros(self) -> float:
        """Share of zeros in the region, as the image has it."""
        return float(1 - self.values.mean()) if self.values.size else 0.0


def zeros_of(
    folder: Path, layer: int, role: str, shape: tuple[int, int], before: int = 0, region: Region | None = None
) -> Image | None:
    """The density of a matrix of `shape` (out, in) in the model folder; None where its files do not hold it.

    before: where families join matrices, how many rows of the joined one stand above this one's. InputError for a file
    whose header contradicts itself.
    """
    for module, offset in ((_MODULES[role], 0), (_JOINED.get(role, ""), before)):
        found = _find(folder, f".layers.{layer}.{module}.weight") if module else None
        if found is None:
            continue
        path, entry, start = found
        kind, rows, columns = _entry(path, entry)
        if columns != shape[1] or offset + shape[0] > rows:
            return None
        area = region or Region(0, shape[0], 0, shape[1])
        area = Region(max(area.top, 0), min(area.bottom, shape[0]), max(area.left, 0), min(area.right, shape[1]))
        if area.top >= area.bottom or area.left >= area.right:
            raise InputError("The region of the matrix is empty.", "Choose at least one row and one column.")
        offset_bytes = start + int(entry["data_offsets"][0]) + (offset + area.top) * columns * kind.itemsize
        data = np.memmap(path, dtype=kind, mode="r", offset=offset_bytes, shape=(area.bottom - area.top, columns))
        part = data[:, area.left : area.right]
        there = (part & 0x7FFF) != 0 if kind.itemsize == 2 else part != 0
        return Image(blocks(there), area, shape, exact=True)
    return None


def blocks(there: "np.ndarray[Any, Any]", most: int = BLOCKS) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Mean of blocks of a matrix of booleans, at most `most` along each side, as even as they can be."""
    result: Any = there
    for axis in (0, 1):
        length = there.shape[axis]
        starts = np.linspace(0, length, min(most, length) + 1).round().astype(int)
        result = np.add.reduceat(result, starts[:-1], axis=axis, dtype=np.float64)
        widths = np.diff(starts).astype(np.float64)
        result = result / (widths[:, None] if axis == 0 else widths[None, :])
    return np.asarray(result, dtype=np.float64)


def _find(folder: Path, ending: str) -> tuple[Path, Mapping[str, Any], int] | None:
    """The file, the header's entry and the start of the data of the tensor whose name ends so."""
    for path in sorted(folder.glob("*.safetensors")):
        if path.is_symlink() or not path.is_file():
            continue
        header, start = _header(path)
        for name, entry in header.items():
            if name.endswith(ending) and isinstance(entry, Mapping):
                return path, entry, start
    return None


def _header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER, size - 8):
                raise ValueError
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError
    except ValueError:
        raise _damaged(path) from None
    return header, 8 + length


def _entry(path: Path, entry: Mapping[str, Any]) -> tuple["np.dtype[Any]", int, int]:
    """dtype, rows and columns of a tensor whose bytes are all in the file."""
    kind, shape, offsets = _TYPES.get(str(entry.get("dtype"))), entry.get("shape"), entry.get("data_offsets")
    whole = all(
        isinstance(each, list) and len(each) == 2 and all(type(one) is int and one >= 0 for one in each)
        for each in (shape, offsets)
    )
    if kind is None or not whole:
        raise _damaged(path)
    assert isinstance(shape, list)
    assert isinstance(offsets, list)
    _, start = _header(path)
    if offsets[1] - offsets[0] != shape[0] * shape[1] * kind.itemsize or start + offsets[1] > path.stat().st_size:
        raise _damaged(path)
    return kind, shape[0], shape[1]


def _damaged(path: Path) -> InputError:
    return InputError(f"{path.name} is no safetensors file that can be read.", "Make the model again.")
