"""Tokenizers in llama.cpp's words: which rule is recognised, and that llama.cpp cuts awkward text into the same ids."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import ModelError
from core.models import llamacpp
from core.models.gguf_export import write_gguf
from core.models.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, gguf_tokenizer

AWKWARD = [
    "Hello world", " two  spaces   three", "line\n\nline\r\n\ttab", "3 33 333 3333 33333.5", "I'VE you'Re it's",
    "«été» naïve über straße", "日本語 テスト",
    "🚀 (emoji) 👩‍👩‍👧", "a\u0301 e\u0308", "x=y+1;\nfor(i=0;i<10;i++){}", "", " ",
    "<|im_start|>user\nhi<|im_end|>\n", "trailing space ",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_byte_level_rules_are_recognised(kind: str, bpe: Any) -> None:
    found = gguf_tokenizer(bpe(kind), 400)
    assert (found.model, found.pre) == ("gpt2", kind)
    assert found.flags == {"add_bos_token": kind == "llama-bpe", "add_eos_token": False}
    assert found.types[3] == CONTROL
    assert found.tokens[3] == "<|im_start|>"
    assert found.tokens[399] == "[PAD399]"
    assert found.types[399] == UNUSED
    assert found.special == {"bos": 0, "eos": 1, "pad": 2}
    assert found.scores == []


def test_a_llama_3_rule_that_merges_whole_words_has_another_name(bpe: Any) -> None:
    tokenizer = bpe("llama-bpe")
    tokenizer.backend_tokenizer.model.ignore_merges = False
    assert gguf_tokenizer(tokenizer, 400).pre == "dbrx"


def test_a_byte_level_tokenizer_that_says_byte_fallback_is_one_all_the_same(bpe: Any) -> None:
    """transformers 5.17 writes so of what it reads from a GGUF file, with an empty sequence of normalizers."""
    from tokenizers import normalizers

    plain, told = bpe("gpt-2"), bpe("gpt-2")
    told.backend_tokenizer.model.byte_fallback = True
    told.backend_tokenizer.normalizer = normalizers.Sequence([])
    assert [told(text)["input_ids"] for text in AWKWARD] == [plain(text)["input_ids"] for text in AWKWARD]
    assert gguf_tokenizer(told, 400) == gguf_tokenizer(plain, 400)


def test_byte_fallback_becomes_scores(bpe: Any) -> None:
    found = gguf_tokenizer(bpe("llama-2"), 384)
    assert (found.model, found.merges) == ("llama", [])
    assert found.types[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert found.flags["add_space_prefix"] is True
    assert found.flags["add_bos_token"] is True
    ranked = [score for score, kind in zip(found.scores, found.types, strict=True) if kind == NORMAL]
    assert max(ranked) == 0.0  # the first merge
    assert found.scores.count(0.0) == 1 + 259  # it, the bytes and the three named tokens


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"type": "Unigram"}}, "Unigram"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "plain byte-level"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "plain byte-level"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False},
                        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                    ],
                }
            },
            "no rule",
        ),
    ],
)
def test_everything_else_is_refused(change: dict[str, Any], said: str, bpe: Any) -> None:
    import json
    from types import SimpleNamespace

    tokenizer = bpe()
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data |= {"model": {**data["model"], **change["model"]}} if "model" in change else change
    tokenizer = SimpleNamespace(backend_tokenizer=SimpleNamespace(to_str=lambda: json.dumps(data)))
    with pytest.raises(ModelError, match=said):
        gguf_tokenizer(tokenizer, 400)  # type: ignore[arg-type]


def test_more_ids_than_embeddings_are_refused(bpe: Any) -> None:
    with pytest.raises(ModelError, match="only 300 embeddings"):
        gguf_tokenizer(bpe(), 300)


@pytest.mark.skipif(not llamacpp.installed(), reason="the package xllamacpp is not installed")
@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "llama-2"])
def test_llama_cpp_cuts_awkward_text_into_the_same_ids(kind: str, saved: Any, bpe: Any, tmp_path: Path) -> None:
    file = write_gguf(saved(tokenizer=kind), tmp_path / "x.gguf", "float16").path
    texts = AWKWARD if kind != "llama-2" else [text for text in AWKWARD if text]  # it puts a space before nothing
    answer = llamacpp.ask(file, {"texts": texts, "prompts": [], "continue": None})
    tokenizer = bpe(kind)
    for text, ids in zip(texts, answer["token_ids"], strict=True):
        assert ids == tokenizer(text)["input_ids"], text
