"""A Hugging Face tokenizer as llama.cpp's metadata, so that both cut the same text into the same ids.

| tokenizer.json | llama.cpp |
|---|---|
| byte-level BPE | `gpt2` with merges, and the name of the rule that cuts text into words before merging (`pre`) |
| BPE with byte fallback and `▁` for spaces | `llama` with a score a token, from the rank of the merge that makes it |

Anything else is refused: a file with another tokenizer would load, and answer nonsense. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
_SPACE = "▁"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# what cuts text into words, and whether a whole word that is a token is taken without merging → llama.cpp's name
_SPLITS = {
    (f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}", True): "llama-bpe",
    (f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}", False): "dbrx",
    (f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}|{_REST}", False): "qwen2",
    (_TEKKEN, True): "tekken",
}


@dataclass(frozen=True)
class GgufTokenizer:
    """What goes under `tokenizer.*`. `tokens` has one entry for each row of the embedding."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    special: dict[str, int]
    """Ids by role: bos, eos, unk, pad."""
    flags: dict[str, bool]
    """add_bos_token, add_eos_token, and for `llama` add_space_prefix."""
    chat_template: str | None
    notes: list[str]


def gguf_tokenizer(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> GgufTokenizer:
    """The metadata for a loaded tokenizer and a model with `vocab_size` embeddings. ModelError says what has no place
    in llama.cpp."""
    import json

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal("it has no tokenizer.json")
    data: dict[str, Any] = json.loads(backend.to_str())
    model = data["model"]
    if model.get("type") != "BPE":
        raise _refusal(f"it is a {model.get('type')} tokenizer, and only BPE is known to come out right")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    # where bytes are letters nothing falls back to them, whatever the file says (transformers 5.17 says so of a GGUF's)
    spaced = bool(model.get("byte_fallback")) and not _byte_level(data)
    notes: list[str] = []
    if spaced:
        kind, pre, flags = "llama", "default", {"add_space_prefix": _space_prefix(data)}
    else:
        kind, pre, flags = "gpt2", _pre(data, notes), {}
    tokens, types = _tokens(model["vocab"], data.get("added_tokens") or [], vocab_size, spaced, model.get("unk_token"))
    flags |= _framing(tokenizer)
    special = {
        role: int(value)
        for role in ("bos", "eos", "unk", "pad")
        if isinstance(value := getattr(tokenizer, f"{role}_token_id", None), int)
    }
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    scores = _scores(tokens, types, merges) if spaced else []
    return GgufTokenizer(kind, pre, tokens, types, [] if spaced else merges, scores, special, flags, template, notes)


def _refusal(why: str) -> ModelError:
    return ModelError(
        f"This model's tokenizer cannot be written for llama.cpp: {why}.",
        "Export it in Hugging Face form (--to hf) instead.",
    )


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """A normalizer or pre-tokenizer as its list of steps."""
    if not part:
        return []
    if part["type"] == "Sequence":
        return [step for each in part[key] for step in _steps(each, key)]
    return [part]


def _byte_level(data: Mapping[str, Any]) -> bool:
    """Whether its last step before merging writes text as bytes, each of them a letter."""
    steps = _steps(data.get("pre_tokenizer"), "pretokenizers")
    return bool(steps) and steps[-1]["type"] == "ByteLevel"


def _pre(data: Mapping[str, Any], notes: list[str]) -> str:
    """llama.cpp's name of the rule by which a byte-level tokenizer cuts text into words."""
    normalizers = [step["type"] for step in _steps(data.get("normalizer"), "normalizers")]
    if normalizers == ["NFC"]:
        notes.append("llama.cpp does not compose accents first (NFC): text that writes them apart is cut differently")
    elif normalizers:
        raise _refusal(f"it changes text first ({', '.join(normalizers)})")
    steps = _steps(data.get("pre_tokenizer"), "pretokenizers")
    if not _byte_level(data) or steps[-1].get("add_prefix_space"):
        raise _refusal("its words are not cut by plain byte-level rules")
    *before, last = steps
    if last.get("use_regex", True):
        if not before:
            return "gpt-2"
        if [step["type"] for step in before] == ["Digits"] and before[0].get("individual_digits"):
            return "smollm"
    elif len(before) == 1 and before[0]["type"] == "Split" and before[0].get("behavior") == "Isolated":
        rule = (before[0]["pattern"].get("Regex", ""), bool(data["model"].get("ignore_merges")))
        if not before[0].get("invert") and rule in _SPLITS:
            return _SPLITS[rule]
    raise _refusal("llama.cpp has no rule that cuts words as it does")


def _space_prefix(data: Mapping[str, Any]) -> bool:
    """Whether a space is put before text, for tokenizers that write spaces as ▁."""
    normalizers = _steps(data.get("normalizer"), "normalizers")
    steps = _steps(data.get("pre_tokenizer"), "pretokenizers")
    if [step["type"] for step in steps] == ["Metaspace"] and not normalizers:
        step = steps[0]
        if step.get("replacement") == _SPACE and not step.get("split", True):
            return str(step.get("prepend_scheme", "always")) != "never"
    if not steps and normalizers:
        *before, last = normalizers
        spaces = last["type"] == "Replace" and last.get("content") == _SPACE and last["pattern"].get("String") == " "
        prefix = [step.get("prepend") for step in before if step["type"] == "Prepend"]
        if spaces and len(before) == len(prefix) and prefix in ([], [_SPACE]):
            return bool(prefix)
    raise _refusal("it prepares text in a way that llama.cpp has no rule for")


def _tokens(
    vocab: Mapping[str, int], added: list[Mapping[str, Any]], size: int, spaced: bool, unknown: str | None
) -> tuple[list[str], list[int]]:
    """Text and type of each id below `size`; ids that no token has are named and marked as unused."""
    texts = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    last = max([*vocab.values(), *(entry["id"] for entry in added)], default=-1)
    if last >= size:
        raise _refusal(f"it has the id {last}, but the model only {size} embeddings")
    for text, i in vocab.items():
        byte = spaced and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        texts[i], types[i] = text, BYTE if byte else NORMAL
    for entry in added:
        texts[entry["id"]] = entry["content"]
        types[entry["id"]] = CONTROL if entry.get("special") else USER_DEFINED
    if spaced and unknown is not None and unknown in vocab:
        types[vocab[unknown]] = UNKNOWN
    return texts, types


def _scores(tokens: list[str], types: list[int], merges: list[str]) -> list[float]:
    """llama.cpp merges the pair with the highest score first: minus the rank of the first merge that makes a token."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault(pair.replace(" ", ""), rank)
    lowest = float(len(merges))
    return [
        -float(ranks.get(text, lowest)) if kind == NORMAL else 0.0 for text, kind in zip(tokens, types, strict=True)
    ]


def _framing(tokenizer: "PreTrainedTokenizerBase") -> dict[str, bool]:
    """Which special tokens are put around a text."""
    inner = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    framed = list(tokenizer("a")["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for add_bos in (False, True):
        for add_eos in (False, True):
            if framed == [bos] * add_bos + inner + [eos] * add_eos:
                return {"add_bos_token": add_bos, "add_eos_token": add_eos}
    raise _refusal("it puts other tokens around a text than one for its beginning and one for its end")
