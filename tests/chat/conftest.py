"""Tiny models in folders and one real inference worker for the tests that can share it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.chat.client import ChatClient

LETTERS = "abcdefghijklmnopqrstuvwxyz .,:?!<>/=\"'ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def write_model(folder: Path, seed: int, **changes: Any) -> Path:
    """A Llama of two layers over single characters that never ends its answer by itself; keywords change its config."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, **{letter: i + 1 for i, letter in enumerate(LETTERS)}}
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 8192,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    from tokenizers import decoders

    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}. {% endfor %}assistant: "
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys of local models: `one` and `two` to talk to, `short` (holds 40 tokens), `large`, `nan` (ruined weights)."""
    base = tmp_path_factory.mktemp("models")
    found = {name: write_model(base / name, seed) for seed, name in enumerate(("one", "two"))}
    found["short"] = write_model(base / "short", 2, max_position_embeddings=40)
    found["large"] = write_model(base / "large", 4, hidden_size=64, intermediate_size=128)
    found["nan"] = write_model(base / "nan", 3)
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "nan" / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * float("nan")
    save_file(tensors, base / "nan" / "model.safetensors", metadata={"format": "pt"})
    return {name: str(folder) for name, folder in found.items()}


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def client(shared_home: Path) -> Iterator[ChatClient]:
    """A client with a real worker on the CPU. Tests that end the worker make their own."""
    made = ChatClient(shared_home, device="cpu")
    yield made
    made.close()
