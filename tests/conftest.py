"""Fixtures that every test may use. Nothing here talks to a hub; nothing is written outside temporary folders."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["ESPALIER_REFERENCE"] = "0"  # homes of tests are empty; tests/test_reference.py takes it in
os.environ["ESPALIER_CPU_RUNS"] = "1"  # however many cores there are, tests know which run comes next
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads do not spin: several processes share two cores

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forks

REPOSITORY = Path(__file__).resolve().parent.parent

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# What a tiny model of each family has besides, or in place of, TINY: its own oddities, all switched on.
TINY_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"head_dim": None, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 11, "sliding_window": 5, "attn_logit_softcapping": 2.0},
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 11,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
        },
    },
    "phi3": {"head_dim": None, "tie_word_embeddings": False, "rope_parameters": {"partial_rotary_factor": 0.5}},
}


@pytest.fixture(autouse=True, scope="session")
def fork_server() -> Iterator[None]:
    """What tests/forks.py started goes with the tests."""
    yield
    forks.stop()


@pytest.fixture(autouse=True)
def forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Workers and the process that verifies a saved model are forks of one that has loaded everything already.

    Tests marked `fresh` start them as the app does. Says whether they are forks.
    """
    if request.node.get_closest_marker("fresh"):
        return False
    monkeypatch.setattr("core.jobs.processes.subprocess", forks.Subprocess)
    monkeypatch.setattr("core.models.verification.subprocess", forks.Subprocess)
    return True


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ESPALIER_HOME of the test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("ESPALIER_HOME", str(folder))
    return folder


@pytest.fixture
def tiny_config() -> Callable[..., dict[str, Any]]:
    """config.json of a tiny GQA Llama, as a mapping; keywords replace entries."""

    def make(**changes: Any) -> dict[str, Any]:
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **TINY, **changes}

    return make


@pytest.fixture
def tiny_llama() -> Callable[..., Any]:
    """A tiny GQA Llama with seeded random weights, float32, eval mode; keywords replace config entries."""

    def make(seed: int = 0, **changes: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(**{**TINY, **changes})
        model = LlamaForCausalLM(config).to(torch.float32).eval()
        with torch.no_grad():  # the library's own init is so small that every logit looks alike
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
        return model

    return make


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """A tiny GQA model of any family, four layers, all weights random (biases and norms, too), float32, eval mode.

    Keywords replace config entries; None leaves one out.
    """

    def make(model_type: str, seed: int = 0, **changes: Any) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(seed)
        entries = {**TINY, "num_hidden_layers": 4, **TINY_FAMILIES[model_type], **changes}
        config = AutoConfig.for_model(model_type, **{key: each for key, each in entries.items() if each is not None})
        model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.3)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
        return model

    return make


@pytest.fixture
def tiny_tokenizer() -> Callable[..., Any]:
    """A word-level tokenizer of 96 entries with bos, eos, pad and a chat template."""

    def make() -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = ["<pad>", "<s>", "</s>", "<unk>", *(chr(c) for c in range(33, 125))]
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words[:96])}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
        )
        fast.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
        return fast

    return make


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any) -> Callable[..., Path]:
    """A folder in Hugging Face form that holds a tiny model and its tokenizer."""

    def make(name: str = "tiny", **changes: Any) -> Path:
        folder = tmp_path / name
        tiny_llama(**changes).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """The built-in model, really loaded (float32, CPU), once a session. Do not change its weights: deepcopy first."""
    from core.experiment import ModelChoice
    from core.models.loading import load

    return load(ModelChoice(), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of WikiText-2 that ESPALIER_TEST_DATA names; tests that need it are skipped where it is not set."""
    folder = os.environ.get("ESPALIER_TEST_DATA", "")
    if not folder or not (Path(folder) / "wikitext2").is_dir():
        pytest.skip("ESPALIER_TEST_DATA names no folder with wikitext2/")
    return Path(folder)
