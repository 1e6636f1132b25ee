"""`anatomy.parquet` of a run: what the method saw when it chose. Written once by the worker, whole or not at all.

One row a scored part or matrix; what a row does not have is null.

    kind          scores (one number a unit) | weights (a histogram of one matrix, and an image of its density)
    layer         decoder layer of the dense model, from 0; −1: the whole model (layers that go, channels of the stream)
    name          attention | mlp | layers | stream, or the role of a matrix: q k v o gate up down
    unit          what one number stands for: KV group, query head, MLP channel, decoder layer, hidden channel, weight
    what          what the numbers are: importance, magnitude, …
    values        scores: one a unit, in the order of the dense model · weights: edges of the histogram's bins
    members       scores of `layers`: which decoder layer each value is of
    kept          scores: whether the unit stays
    stayed, removed   weights: counts in each bin, of what stays and of what goes
    scale         linear | log10 (then the edges are exponents)
    least_kept, most_removed   the two scores around the cut; most_removed above least_kept: each row has its own line
    rows, columns     weights: shape of the matrix (out, in)
    image         weights: density of blocks, 0 (all zeros) to 255 (none), row by row, image_rows × image_columns bytes

Nothing here loads torch. Readers take what is there: a damaged file is none.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "anatomy.parquet"
COLUMNS = (
    *("kind", "layer", "name", "unit", "what", "values", "members", "kept", "stayed", "removed", "scale"),
    *("least_kept", "most_removed", "rows", "columns", "image", "image_rows", "image_columns"),
)
MOST_BYTES = 256 << 20
"""Larger files are not read into a page: a run of the largest models leaves a few megabytes."""


def write_anatomy(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `COLUMNS`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([{name: row.get(name) for name in COLUMNS} for row in rows], schema=_schema())
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_anatomy(path: Path, *, images: bool = False) -> list[dict[str, Any]]:
    """All rows, without the images unless asked for; none where the file is missing, damaged or of another kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [name for name in COLUMNS if images or name != "image"]
    try:
        if path.is_symlink() or path.stat().st_size > MOST_BYTES:
            return []
        table = pq.read_table(path, columns=wanted).cast(pa.schema([_schema().field(name) for name in wanted]))
        found: list[dict[str, Any]] = table.to_pylist()
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return []
    return [row for row in found if row["kind"] in ("scores", "weights") and row["layer"] is not None and row["name"]]


def _schema() -> "pa.Schema":
    import pyarrow as pa

    kinds = {
        "layer": pa.int32(),
        "values": pa.list_(pa.float32()),
        "members": pa.list_(pa.int32()),
        "kept": pa.list_(pa.bool_()),
        "stayed": pa.list_(pa.int64()),
        "removed": pa.list_(pa.int64()),
        "least_kept": pa.float64(),
        "most_removed": pa.float64(),
        "image": pa.binary(),
        **dict.fromkeys(("rows", "columns", "image_rows", "image_columns"), pa.int32()),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
