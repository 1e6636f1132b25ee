"""Small models with real subword tokenizers, saved as runs save them: what exports start from."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

TEXT = """The old gardener walked along the wall in the early morning. He cut back the weak branches of the pear tree,
tied the strong ones to the wires, and told the children that a tree bears more fruit when it has less wood.
Water boils at 100 degrees Celsius at sea level; 2024 was a warm year. I've, you're, it's, WE'LL. «été» naïve über
def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)
"""
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST
VOCAB = 384
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def _trained(kind: str) -> Any:
    """A BPE tokenizer trained on TEXT whose words are cut as those of the named family are."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<|begin|>", "<|end|>", "<pad>", "<|im_start|>", "<|im_end|>"]
    if kind == "llama-2":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = [entry for entry in data["added_tokens"] if not entry["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(data))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return tokenizer
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cutters = {
        "gpt-2": words,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words]),
        "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), bytes_alone]),
        "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), bytes_alone]),
    }
    tokenizer.pre_tokenizer = cutters[kind]
    tokenizer.decoder = decoders.ByteLevel()
    special += ["<|endoftext|>"] if kind == "qwen2" else []  # transformers adds it to every Qwen tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    if kind == "llama-bpe":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
        )
    return tokenizer


@pytest.fixture(scope="session")
def bpe() -> Callable[[str], Any]:
    """`bpe(kind)`: gpt-2, smollm, llama-bpe, qwen2 (byte-level), llama-2 (with byte fallback)."""
    from transformers import PreTrainedTokenizerFast

    def make(kind: str = "gpt-2") -> Any:
        names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<pad>"}
        if kind == "llama-2":
            names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_trained(kind), **names)
        if kind != "llama-2":
            tokenizer.chat_template = TEMPLATE
        return tokenizer

    return make


@pytest.fixture
def saved(tmp_path: Path, bpe: Any) -> Callable[..., Path]:
    """`saved(family, layers=[(heads, kv_heads, mlp), …], tokenizer=…, dtype=…, **config)`: a folder as a run saves it.

    Random weights, seeded; logits far enough apart that an engine's rounding does not change the likeliest token.
    """

    def make(
        family: str = "llama",
        layers: Sequence[tuple[int, int, int]] | None = None,
        *,
        tokenizer: str = "gpt-2",
        name: str = "model",
        dtype: str = "float32",
        **changes: Any,
    ) -> Path:
        import torch
        import transformers

        from core.models import families, saving
        from core.models.loading import per_layer_class

        torch.manual_seed(0)
        known = families.family(family)
        config_class = getattr(transformers, known.stock_class.replace("ForCausalLM", "Config"))
        values = {**SIZES, **changes}
        if family == "mistral":
            values.setdefault("sliding_window", None)
        config = config_class(**values)
        cls = getattr(transformers, known.stock_class)
        if layers is not None:
            config.num_hidden_layers = len(layers)
            names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
            config.espalier_layers = [dict(zip(names, sizes, strict=True)) for sizes in layers]
            cls = per_layer_class({"model_type": family})
        model = cls(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.25) if parameter.dim() > 1 else parameter.normal_(1, 0.2)
        folder = tmp_path / name
        saving.save(model, bpe(tokenizer), folder, dtype=dtype)
        return folder

    return make
