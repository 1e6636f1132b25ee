"""What a pruned model learns from: documents in tokens, packed into rows of one length.

Several documents share a row and do not see each other: positions start again at 0 with each of them, and transformers
makes the attention mask from that. The first token of a document is never learned.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import settings
from core.data import texts
from core.data.corpora import resolve_split
from core.errors import DataError
from core.recovery.conversations import chat, conversation, instruction, text_of

if TYPE_CHECKING:
    import torch

    from core.experiment import RecoveryData

GENERATED = "generated"
INSTRUCTIONS = {"alpaca-cleaned": "yahma/alpaca-cleaned"}
"""Instruction sets by the names that people know, and where the hub has them."""
_MESSAGES = {"instructions": instruction, "chat": chat}
_OPEN_ROWS = 64  # rows that a document may still be put into


@dataclass(frozen=True)
class Document:
    """Tokens, and which of them are learned, in the same order."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    source: int = 0
    """Number of the text or the row that it is of, or a part of."""


@dataclass(frozen=True)
class Rows:
    """Packed documents, all (rows, length): token ids, positions within each document, and which tokens are learned."""

    ids: "torch.Tensor"
    positions: "torch.Tensor"
    learned: "torch.Tensor"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> "dict[str, torch.Tensor]":
        return {"input_ids": self.ids[index], "position_ids": self.positions[index], "learned": self.learned[index]}

    @property
    def tokens(self) -> int:
        """How many tokens are learned in one pass."""
        return int(self.learned.sum())


@dataclass(frozen=True)
class Material:
    """Rows to train on and rows to validate on, which share no document, and what is needed to make them again."""

    train: Rows
    validation: Rows | None
    info: dict[str, Any]


def material(
    choice: "RecoveryData",
    tokenizer: Any,
    *,
    length: int,
    validation: float,
    seed: int,
    generated: Sequence[Sequence[int]] | None = None,
) -> Material:
    """Read, tokenise, split and pack. length: tokens in a row; validation: share of the documents kept for judging.

    generated: token ids of documents that the dense model wrote, for corpus `generated`. DataError where the data
    cannot be had or hold nothing to learn.
    """
    documents = list(_documents(choice, tokenizer, length, generated))
    if not documents:
        raise DataError(
            f"{_name(choice)} holds nothing to learn: no answer, or no second token, fits into {length} tokens.",
            "Choose other data, or raise recovery.cutoff.",
        )
    order = random.Random(seed)
    order.shuffle(documents)
    if choice.max_samples is not None:
        documents = documents[: choice.max_samples]
    learned, judged = _split(documents, validation)
    pad = next((each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id) if each is not None), 0)
    train = pack(learned, length, pad)
    held = pack(judged, length, pad) if judged else None
    digest = hashlib.sha256(train.ids.numpy().tobytes() + train.learned.numpy().tobytes()).hexdigest()
    info = {
        "data": _name(choice),
        "format": choice.format,
        "documents": len(learned),
        "validation_documents": len(judged),
        "rows": len(train),
        "length": length,
        "tokens": train.tokens,
        "seed": seed,
        "sha256": digest,
    }
    return Material(train, held, info)


def _split(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """(documents to learn from, documents to judge by): about that share, at least one, in whole texts.

    Pieces of one text stay on one side, unless there is no other text.
    """
    if share <= 0 or len(documents) < 2:
        return list(documents), []
    wanted = min(max(1, round(share * len(documents))), len(documents) - 1)
    sizes = Counter(each.source for each in documents)  # in the order of the shuffled documents
    if len(sizes) == 1:
        return list(documents[wanted:]), list(documents[:wanted])
    judged, room = set(), wanted
    for source, size in sizes.items():
        if size <= room:
            judged.add(source)
            room -= size
    judged = judged or {min(sizes, key=sizes.__getitem__)}
    return (
        [each for each in documents if each.source not in judged],
        [each for each in documents if each.source in judged],
    )


def pack(documents: Sequence[Document], length: int, pad: int) -> Rows:
    """Put documents of at most `length` tokens into rows, each whole into the first row that has room for it."""
    import torch

    rows: list[list[Document]] = []
    room: list[int] = []
    first_open = 0
    for document in documents:
        needed = len(document.ids)
        place = next((i for i in range(first_open, len(rows)) if room[i] >= needed), None)
        if place is None:
            rows.append([])
            room.append(length)
            place = len(rows) - 1
            first_open = max(first_open, len(rows) - _OPEN_ROWS)
        rows[place].append(document)
        room[place] -= needed
    ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    positions = torch.zeros((len(rows), length), dtype=torch.int64)
    learned = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        start = 0
        for document in row:
            stop = start + len(document.ids)
            ids[i, start:stop] = torch.tensor(document.ids)
            positions[i, start:stop] = torch.arange(len(document.ids))
            learned[i, start:stop] = torch.tensor(document.learned)
            learned[i, start] = False  # nothing predicts the first token of a document
            start = stop
        positions[i, start:] = torch.arange(length - start)
    return Rows(ids, positions, learned)


# ----------------------------------------------------------------------------------------------------------- documents


def _name(choice: "RecoveryData") -> str:
    return Path(choice.path).name if choice.path is not None else choice.corpus or "passages"


def _documents(
    choice: "RecoveryData", tokenizer: Any, length: int, generated: Sequence[Sequence[int]] | None
) -> Iterator[Document]:
    if choice.corpus == GENERATED:
        if generated is None:
            raise DataError("The corpus `generated` is sampled from the dense model, and none was given.", "")
        yield from _pieces(generated, length)
    elif choice.format == "text":
        tokens = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in _texts(choice))
        yield from _pieces(tokens, length)
    else:
        for number, row in enumerate(_rows(choice), start=1):
            where = f"Row {number} of {_name(choice)}"
            for ids, learned in conversation(_MESSAGES[choice.format](row, where), tokenizer, where):
                if any(learned[1:length]):
                    yield Document(tuple(ids[:length]), tuple(learned[:length]), number)


def _pieces(documents: Iterable[Sequence[int]], length: int) -> Iterator[Document]:
    """Documents cut into pieces of at most `length` tokens; a piece of one token holds nothing to learn."""
    for number, ids in enumerate(documents):
        for start in range(0, len(ids), length):
            piece = tuple(ids[start : start + length])
            if len(piece) > 1:
                yield Document(piece, (True,) * len(piece), number)


def _texts(choice: "RecoveryData") -> list[str]:
    if choice.path is not None:
        if Path(choice.path).suffix.lower() in {".jsonl", ".ndjson"}:
            return [text_of(row, f"Row {n} of {_name(choice)}", "text") for n, row in enumerate(_rows(choice), start=1)]
        return [texts.file_text(choice.path, texts.file_bytes(choice.path))]
    name = choice.corpus or "passages"
    if name == "passages":
        documents = texts.passage_documents()
        return ["\n\n".join(found) for key, found in documents.items() if not texts.is_held_out(key)]
    return [texts.hub_text(name, resolve_split(name, "train"))]


def _rows(choice: "RecoveryData") -> Iterator[Mapping[str, Any]]:
    if choice.path is not None:
        for number, line in enumerate(texts.file_bytes(choice.path).split(b"\n"), start=1):  # \u2028 ends no line
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"Line {number} of {_name(choice)} is no UTF-8 text.", "Convert the file to UTF-8."
                ) from error
            except json.JSONDecodeError as error:
                raise DataError(
                    f"Line {number} of {_name(choice)} is no JSON: {error.msg}.", "Write one JSON object a line."
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"Line {number} of {_name(choice)} is no JSON object.", "Write one JSON object a line.")
            yield row
        return
    yield from _hub_rows(choice.corpus or "alpaca-cleaned")


def _hub_rows(name: str) -> Iterator[Mapping[str, Any]]:
    import datasets

    place = INSTRUCTIONS.get(name, name)
    try:
        yield from datasets.load_dataset(place, split="train")
    except texts.hub_failures() as error:
        where = "this machine is set to work offline" if settings.offline() else "the hub did not give it"
        raise DataError(
            f"The data set {name} cannot be had: {where} ({type(error).__name__}).",
            "Give a local JSONL file by path, or use text: the built-in passages, or `generated`.",
        ) from error


def row_check(row: Mapping[str, Any], format_: str, where: str) -> None:
    """DataError where a row is not of its format."""
    if format_ == "text":
        text_of(row, where, "text")
    else:
        _MESSAGES[format_](row, where)
