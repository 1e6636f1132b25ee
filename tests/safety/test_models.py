"""A hostile model folder: pickles, code, links, names; nothing of it is run, and nothing of it leads out."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import ModelError
from core.experiment import ModelChoice
from core.models.catalogue import resolve

ROOT = Path(__file__).resolve().parents[2]
MARK = "executed"


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / MARK


@pytest.fixture
def hostile(tiny_folder: Any, mark: Path) -> Callable[..., Path]:
    """A whole tiny model with a code file and pickles that leave a mark; keywords go into config.json."""

    def make(**config: Any) -> Path:
        folder: Path = tiny_folder("hostile")
        code = f"open({str(mark)!r}, 'w').close()\n"
        for name in ("modeling_evil", "tokenization_evil", "configuration_evil", "espalier_llama", "__init__"):
            (folder / f"{name}.py").write_text(code)
        for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "adapter_model.bin"):
            (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        return folder

    return make


def loaded(folder: Path, *, trust: bool = False) -> "subprocess.CompletedProcess[str]":
    """Load it in a process of its own, as a worker does."""
    code = (
        "from core.experiment import ModelChoice\nfrom core.models.loading import load\n"
        f"m = load(ModelChoice(name={str(folder)!r}, trust_remote_code={trust}), device='cpu', dtype='float32')\n"
        "print(type(m.model).__module__)"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_pickles_and_code_beside_good_weights_are_not_touched(hostile: Any, mark: Path) -> None:
    done = loaded(hostile())
    assert done.returncode == 0, done.stderr[-1500:]
    assert "transformers.models.llama" in done.stdout
    assert not mark.exists()


def test_the_code_of_a_folder_of_ours_is_never_run_even_with_trust(hostile: Any, mark: Path) -> None:
    rows = [{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}] * 2
    folder = hostile(espalier_layers=rows, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    for trust in (False, True):
        done = loaded(folder, trust=trust)
        assert done.returncode == 0, done.stderr[-1500:]
        assert "core.models.per_layer_llama" in done.stdout
    assert not mark.exists()


AUTO = {"AutoModelForCausalLM": "modeling_evil.Evil"}


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": AUTO},
        {"auto_map": {"AutoConfig": "configuration_evil.Evil"}},
        {"auto_map": {"AutoModelForCausalLM": "org/elsewhere--modeling_evil.Evil"}},
        {"auto_map": "modeling_evil.Evil"},
        {"auto_map": AUTO, "model_type": "evil"},
        {"auto_map": AUTO, "model_type": "phi3"},
        {"auto_map": AUTO, "espalier_layers": [], "model_type": "evil"},
    ],
)
def test_a_folder_that_brings_code_needs_the_tick(hostile: Any, config: dict[str, Any], mark: Path) -> None:
    folder = hostile(**config)
    with pytest.raises(ModelError):
        resolve(ModelChoice(name=str(folder)))
    assert not mark.exists()


def test_code_of_a_tokenizer_alone_is_not_run_without_the_tick(hostile: Any, mark: Path) -> None:
    folder = hostile()
    path = folder / "tokenizer_config.json"
    changed = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    loaded(folder)  # it may load with the stock class, or be refused
    assert not mark.exists()


def test_pickles_are_refused_and_not_opened(hostile: Any, mark: Path) -> None:
    folder = hostile()
    for file in folder.glob("*.safetensors"):
        file.unlink()
    done = loaded(folder)
    assert done.returncode != 0
    assert "pickles only" in done.stderr
    assert not mark.exists()


def test_an_index_that_names_a_pickle_does_not_open_it(hostile: Any, mark: Path) -> None:
    folder = hostile()
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    done = loaded(folder)
    assert done.returncode != 0
    assert "ModelError" in done.stderr
    assert not mark.exists()
