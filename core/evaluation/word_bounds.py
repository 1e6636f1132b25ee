"""Where a text may be cut so that its parts have the tokens of the whole.

Byte-level tokenizers cut a text into words by a regular expression before they merge anything, and none of the known
expressions takes a space together with what stands before it. So a continuation that begins with one space and a word,
after a context that ends in anything but white space, can be tokenised by itself: a context that several continuations
share is then tokenised once.
"""

import json
from typing import Any

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_KNOWN = (_LLAMA3, _QWEN2)
_HARMLESS = {None, "NFC"}  # normalizers: a space is composed with nothing


def words_stand_alone(tokenizer: Any) -> bool:
    """Whether a text that begins with a space and a word has the same tokens by itself as behind other words.

    False where that is not known: another kind of tokenizer, an added token that takes spaces, an end token after every
    text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE":
        return False
    if any(" " in token.content or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return False
    if _state(backend.normalizer).get("type") not in _HARMLESS or not _cuts_at_spaces(_state(backend.pre_tokenizer)):
        return False
    plain, dressed = (backend.encode("a b", add_special_tokens=special).ids for special in (False, True))
    return bool(dressed[-len(plain) :] == plain)


def separable(context: str, continuation: str) -> bool:
    """Whether the cut between these is one where words stand alone."""
    between = continuation[:1] == " " and continuation[1:2].strip() != ""
    return context[-1:].strip() != "" and between


def _cuts_at_spaces(state: dict[str, Any]) -> bool:
    """Whether one step of a pre-tokenizer cuts before every space behind a word, and no other moves that cut."""
    steps = state.get("pretokenizers", [state])
    certain = [_is_known(step) for step in steps]
    return any(certain) and all(
        sure or step.get("type") == "Digits" or (step.get("type") == "ByteLevel" and not step.get("add_prefix_space"))
        for sure, step in zip(certain, steps, strict=True)
    )


def _is_known(step: dict[str, Any]) -> bool:
    if step.get("type") == "ByteLevel":
        return bool(step.get("use_regex", True)) and not step.get("add_prefix_space")
    known = step.get("type") == "Split" and step.get("pattern", {}).get("Regex") in _KNOWN
    return known and step.get("behavior") == "Isolated" and not step.get("invert")


def _state(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as its file describes it; {} for none."""
    found: dict[str, Any] = {} if part is None else json.loads(part.__getstate__())
    return found
