"""Exports in Hugging Face form: stock classes, code only where it is needed, other versions of transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import InputError, NumericalError, VerificationError
from core.models import export
from core.models.export import Exported, export_hf, require_format, require_room, staged, write_manifest

UNEVEN = [(4, 2, 96), (2, 1, 64), (4, 2, 40)]
SEVEN = {"num_attention_heads": 3, "num_key_value_heads": 3}  # 3 heads do not divide a hidden size of 64


def exported(source: Path, tmp_path: Path, dtype: str = "float32") -> tuple[Path, Exported]:
    target = tmp_path / "out"
    with staged(target) as folder:
        made = export_hf(source, folder, dtype)
    return target, made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_layers_alike_become_a_stock_class_in_the_chosen_format(dtype: str, saved: Any, tmp_path: Path) -> None:
    from core.models.loading import stored_dtype

    folder, made = exported(saved(), tmp_path, dtype)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config
    assert list(folder.glob("*.py")) == []
    assert stored_dtype(folder) == dtype == config["dtype"]
    assert "reloaded in a fresh process" in made.checks[0]
    assert made.bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_layers_that_differ_bring_their_code_and_nothing_else(saved: Any, tmp_path: Path) -> None:
    folder, made = exported(saved(layers=UNEVEN), tmp_path)
    assert made.per_layer_code
    assert {path.name for path in folder.glob("*.py")} == {"per_layer.py", "per_layer_llama.py"}


def test_head_counts_that_llama_refuses_are_saved_as_mistral_without_code(saved: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from core.models.loading import load_directory

    source = saved(layers=[(3, 3, 96)] * 3)
    assert (source / "per_layer_llama.py").is_file()  # as the run saved it
    folder, made = exported(source, tmp_path)
    assert (made.architecture, made.per_layer_code) == ("MistralForCausalLM", False)
    assert list(folder.glob("*.py")) == []
    ids = torch.arange(60).reshape(2, 30)
    before, _ = load_directory(source, device="cpu", dtype="float32")
    after = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.equal(before(ids).logits, after(ids).logits)


def test_weights_that_float16_cannot_hold_are_refused(saved: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = saved()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 7e4
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.up_proj\.weight holds 7e\+04"):
        exported(source, tmp_path, "float16")
    assert not (tmp_path / "out").exists()


def test_a_failed_verification_leaves_what_was_there(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = exported(saved(), tmp_path)
    write_manifest(folder, made)
    monkeypatch.setattr("core.models.verification.TOLERANCE", -1.0)
    with pytest.raises(VerificationError):
        exported(saved(name="again"), tmp_path, "bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "home", "model", "out"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter.tex").write_text("x")
    with pytest.raises(InputError, match="is no export"), staged(target):
        pytest.fail("not reached")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(InputError, match="is no export"), staged(link):
        pytest.fail("not reached")
    assert (target / "chapter.tex").read_text() == "x"


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export.shutil, "disk_usage", lambda _path: usage(10, 9, 1_000_000_000))
    require_room(tmp_path / "new", 900_000_000)
    with pytest.raises(InputError, match=r"needs 2\.0 GB, and .* has 1\.0 GB left"):
        require_room(tmp_path / "new", 2_000_000_000)


def test_formats_that_there_are_not_are_refused() -> None:
    with pytest.raises(InputError, match="hf, gguf"):
        require_format("onnx", "float32")
    with pytest.raises(InputError, match="float32, float16, bfloat16"):
        require_format("hf", "q8_0")


# ---------------------------------------------------------------------------------------------------- other versions

STRANGER = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
folder, ids, answer, trusted, text = sys.argv[1:]
trust = {"trust_remote_code": True} if trusted == "1" else {}
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **trust).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
with torch.inference_mode():
    save_file({"logits": model(load_file(ids)["ids"], use_cache=False).logits.contiguous()}, answer)
print(json.dumps([transformers.__version__, tokenizer(text)["input_ids"], tokenizer.chat_template]))
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with transformers 4.57.3 and nothing of this program."""
    folder = tmp_path_factory.mktemp("transformers-4.57")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "transformers==4.57.3"]
    try:
        result = subprocess.run([*install, "torch==2.13.0", "numpy"], capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        pytest.skip("pip took more than 15 minutes")
    if result.returncode != 0:
        pytest.skip(f"pip could not install transformers 4.57.3: {result.stderr.strip().splitlines()[-1:]}")
    return python


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("options", [{}, {"layers": UNEVEN}, {"layers": [(3, 3, 96)] * 3}], ids=["stock", "own", "odd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_4_57_gives_the_same_logits(
    options: dict[str, Any], dtype: str, older: Path, saved: Any, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from core.models.loading import load_directory
    from core.models.verification import TEXT

    folder, made = exported(saved(rope_theta=5000.0, **options), tmp_path, dtype)
    model, tokenizer = load_directory(folder, device="cpu", dtype="float32")
    ids = torch.randint(0, 384, (2, 64), generator=torch.Generator().manual_seed(0))
    save_file({"ids": ids}, tmp_path / "ids")
    arguments = [str(folder), str(tmp_path / "ids"), str(tmp_path / "logits"), str(int(made.per_layer_code)), TEXT]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [str(older), "-I", "-c", STRANGER, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    version, text_ids, template = json.loads(result.stdout.splitlines()[-1])
    assert version == "4.57.3"
    assert text_ids == tokenizer(TEXT)["input_ids"]
    assert template == tokenizer.chat_template
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
    assert (load_file(tmp_path / "logits")["logits"] - expected).abs().max() <= 1e-4
