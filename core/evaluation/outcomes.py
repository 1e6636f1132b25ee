"""What became of each document, as Parquet: a run's answers beside the run, the documents' texts once for all runs.

A run's rows are compact (a few dozen bytes a document). Texts do not depend on the model, so they stand under
`documents/<harness>/<task>/` of the home, one file for each set of documents that was ever scored, and are found by the
document's hash. Rows of perplexity have a window for a document, and its mean NLL for a score.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from core.files import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "stage",
    "task",
    "doc",
    "doc_hash",
    "target",
    "choice",
    "choice_norm",
    "correct",
    "correct_norm",
    "loglikelihoods",
    "response",
    "score",
)
TEXTS = ("doc_hash", "prompt", "choices", "target")


def write_samples(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of `COLUMNS` (what a row lacks is null), whole or not at all. Log-likelihoods are float32."""
    import pyarrow as pa

    write_table(path, pa.Table.from_pylist([dict(row) for row in samples], schema=_samples_schema()))


def join_samples(parts: Iterable[Path], path: Path, *, keep: str | None = None) -> None:
    """One file of the rows of several, in their order; rows that an earlier version wrote fit in.

    keep: rows that the file has of this stage stay, before the new ones.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(part) for part in parts]
    if keep is not None and path.is_file():
        tables.insert(0, pq.read_table(path, filters=[("stage", "==", keep)]))
    if tables:
        write_table(path, pa.concat_tables(tables, promote_options="permissive"))


def read_samples(path: Path, tasks: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of these tasks; none where the file is not there."""
    import pyarrow.parquet as pq

    wanted = sorted(set(tasks))
    if not path.is_file() or not wanted:
        return []
    rows: list[dict[str, Any]] = pq.read_table(path, filters=[("task", "in", wanted)]).to_pylist()
    return rows


def write_documents(folder: Path, harness: str, task: str, documents: Sequence[Mapping[str, Any]]) -> Path | None:
    """Keep the texts of one task's documents (rows of `TEXTS`) unless a file has them all; returns a file written now.

    Files are named by their content, so that two runs at once write the same file or different ones.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = documents_folder(folder, harness, task)
    wanted = {str(row["doc_hash"]) for row in documents}
    known = (pq.read_table(path, columns=["doc_hash"])["doc_hash"].to_pylist() for path in place.glob("*.parquet"))
    if not wanted or any(wanted <= set(hashes) for hashes in known):
        return None
    rows = sorted(({name: row[name] for name in TEXTS} for row in documents), key=lambda row: str(row["doc_hash"]))
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    path = place / f"{digest}.parquet"
    texts = [("doc_hash", pa.string()), ("prompt", pa.string()), ("choices", pa.list_(pa.string()))]
    write_table(path, pa.Table.from_pylist(rows, schema=pa.schema([*texts, ("target", pa.string())])))
    return path


def documents_folder(folder: Path, harness: str, task: str) -> Path:
    """Where the texts of a task lie, as this version of the harness words them."""
    return folder / quote(harness.replace(" ", "-"), safe="") / quote(task, safe="")


def write_table(path: Path, table: "pa.Table") -> None:
    """Write a Parquet file, whole or not at all."""
    import pyarrow.parquet as pq

    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _samples_schema() -> "pa.Schema":
    import pyarrow as pa

    kinds = {
        "doc": pa.int32(),
        "choice": pa.int16(),
        "choice_norm": pa.int16(),
        "correct": pa.bool_(),
        "correct_norm": pa.bool_(),
        "loglikelihoods": pa.list_(pa.float32()),
        "score": pa.float64(),
    }
    return pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
