import json

import pytest
import torch

from core import device
from core.device import DeviceInfo
from core.errors import Cancelled, DeviceError, ModelError
from core.experiment import ModelChoice
from core.models.loading import load, load_directory, stored_dtype


def test_a_folder_loads_ready_for_judging(tiny_folder):
    folder = tiny_folder()
    loaded = load(ModelChoice(name=str(folder)), device="cpu", dtype="auto")
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    assert (loaded.dtype, loaded.source_dtype, loaded.device) == ("float32", "float32", "cpu")
    assert loaded.source.directory == folder
    assert loaded.tokenizer("ab")["input_ids"] == [68, 69]


def test_the_run_may_compute_in_another_format_than_the_files_have(tiny_folder):
    loaded = load(ModelChoice(name=str(tiny_folder())), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert (loaded.dtype, loaded.source_dtype) == ("bfloat16", "float32")


def test_pickles_are_never_read_even_beside_the_name_that_is_asked_for(tiny_folder):
    folder = tiny_folder()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_directory(folder, device="cpu", dtype="float32")


def test_code_in_a_folder_is_not_run_without_the_tick(tiny_folder, tmp_path):
    folder, mark = tiny_folder(), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "m.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(ModelError):
        load_directory(folder, device="cpu", dtype="float32")
    assert not mark.exists()


def test_missing_weights_are_an_error_not_random_numbers(tiny_folder):
    from safetensors.torch import load_file, save_file

    folder = tiny_folder()
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, model\.layers\.1\.mlp\.up_proj"):
        load_directory(folder, device="cpu", dtype="float32")


def test_weights_of_other_sizes_are_a_clear_error(tiny_folder):
    folder = tiny_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_directory(folder, device="cpu", dtype="float32")


def test_a_damaged_weights_file_is_a_clear_error(tiny_folder):
    folder = tiny_folder()
    whole = (folder / "model.safetensors").read_bytes()
    for content in (whole[: len(whole) // 2], b"garbage that is long enough", b""):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="model"):
            load(ModelChoice(name=str(folder)), device="cpu", dtype="float32")


def test_cancelling_passes_through(tiny_folder):
    def cancel(done, total, unit):
        raise Cancelled

    with pytest.raises(Cancelled):
        load(ModelChoice(name=str(tiny_folder())), device="cpu", dtype="float32", progress=cancel)


def test_the_stored_format_is_that_of_most_bytes(tmp_path):
    from safetensors.torch import save_file

    tensors = {
        "norm": torch.ones(4),
        "w": torch.ones(8, 8, dtype=torch.bfloat16),
        "ids": torch.ones(900, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_dtype(tmp_path) == "bfloat16"


@pytest.fixture
def with_a_driver(monkeypatch):
    """A machine whose driver shows one GPU; torch's choice of attention is as before afterwards."""
    shown = DeviceInfo("cuda", 0, "Tesla T4", 16 * 10**9, 15 * 10**9, (7, 5))
    monkeypatch.setattr(device, "info", lambda _: shown)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_gpu_that_torch_cannot_use_is_an_error(with_a_driver, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="Tesla T4"):
        device.torch_device("cuda:0")
    assert device.torch_device("cpu") == torch.device("cpu")
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_on_a_gpu_attention_makes_no_plan_for_each_length(with_a_driver, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.torch_device("cuda:0") == torch.device("cuda:0")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
