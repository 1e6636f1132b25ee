import json
import time
from pathlib import Path

import pytest

from core.errors import ModelError, UnknownNameError
from core.experiment import ModelChoice
from core.models import fingerprints
from core.models.catalogue import entries, resolve
from core.models.fingerprints import file_hash


@pytest.fixture(autouse=True)
def own_caches(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def folder(tmp_path, tiny_config):
    """Folder in Hugging Face form with a config and a file of weights that nobody reads here."""

    def make(name="model", weights="model.safetensors", **changes):
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(tiny_config(**changes)))
        if weights:
            (path / weights).write_bytes(b"weights")
        return path

    return make


def test_the_built_in_model_is_known_at_once_without_having_been_converted():
    source = resolve(ModelChoice())
    assert source.directory is None
    assert source.architecture.params == 134_515_008
    assert (source.architecture.n_layers, source.architecture.layers[0].kv_heads) == (30, 3)
    assert len(source.fingerprint) == 64


def test_the_form_offers_the_built_in_model_as_usable_without_a_network():
    offered = {entry.name: entry for entry in entries()}
    assert offered["builtin:smollm2-135m-instruct"].offline
    assert not offered["TinyLlama/TinyLlama-1.1B-Chat-v1.0"].offline
    for name in offered:
        assert ModelChoice(name=name).name == name


def test_a_folder_shows_its_architecture_from_the_config_alone(folder):
    path = folder(num_key_value_heads=1)
    source = resolve(ModelChoice(name=str(path)))
    assert source.directory == path
    assert source.title == "model"
    assert source.architecture.layers[0].kv_heads == 1
    assert not source.own_per_layer


def test_a_folder_of_ours_with_sizes_per_layer_needs_no_trust(folder):
    rows = [{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": size} for size in (48, 32)]
    source = resolve(ModelChoice(name=str(folder(espalier_layers=rows, auto_map={"AutoModelForCausalLM": "x.Y"}))))
    assert source.own_per_layer
    assert [layer.mlp for layer in source.architecture.layers] == [48, 32]


def test_a_folder_with_code_of_its_own_needs_the_tick(folder):
    path = folder(auto_map={"AutoModelForCausalLM": "modeling.Strange"})
    with pytest.raises(ModelError, match="trust_remote_code"):
        resolve(ModelChoice(name=str(path)))
    assert not resolve(ModelChoice(name=str(path), trust_remote_code=True)).own_per_layer


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_a_folder_with_pickles_only_is_refused(folder, pickle):
    with pytest.raises(ModelError, match="pickles"):
        resolve(ModelChoice(name=str(folder(weights=pickle))))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[1]", "holds a list"),
        ("[" * 100_000, "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (" " * 4_000_001, "no model configuration"),
        ('{"model_type": "llama"}', "no usable 'num_attention_heads'"),
    ],
)
def test_a_damaged_config_is_a_clear_error(folder, content, words):
    path = folder()
    (path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=words):
        resolve(ModelChoice(name=str(path)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/model", "switched off"),
        ("/no/such/folder", "is no model"),
        ("just-a-word", "is no model"),
        ("../../etc", r"is no model|no config\.json"),
        ("org/model/extra", "is no model"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_was_tried(name, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=words):
        resolve(ModelChoice(name=name))


def test_an_unknown_built_in_name_lists_the_known_one():
    with pytest.raises(UnknownNameError, match="smollm2-135m-instruct"):
        resolve(ModelChoice(name="builtin:smollm3"))


def test_an_empty_folder_and_one_without_weights_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(ModelChoice(name=str(tmp_path / "empty")))
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        resolve(ModelChoice(name=str(folder(weights=None))))


def test_a_quantised_folder_is_refused(folder):
    with pytest.raises(ModelError, match="quantised"):
        resolve(ModelChoice(name=str(folder(quantization_config={"quant_method": "gptq"}))))


def test_a_hub_model_in_the_local_cache_is_known_by_its_commit_without_a_network(tmp_path, tiny_config):
    commit, repository = "a" * 40, tmp_path / "hub" / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text(json.dumps(tiny_config()))
    source = resolve(ModelChoice(name="org/model"))
    assert (source.hub_id, source.revision, source.directory) == ("org/model", commit, None)
    assert source.fingerprint == f"org/model@{commit}"
    assert resolve(ModelChoice(name="org/model", revision=commit)).fingerprint == source.fingerprint
    with pytest.raises(ModelError, match="switched off"):
        resolve(ModelChoice(name="org/model", revision="b" * 40))


def test_the_fingerprint_follows_the_content_not_the_place(folder):
    first, second = folder("first"), folder("second")
    one, two = (resolve(ModelChoice(name=str(path))).fingerprint for path in (first, second))
    assert one == two
    (second / "model.safetensors").write_bytes(b"others!")
    assert resolve(ModelChoice(name=str(second))).fingerprint != one
    (first / "README.md").write_text("words")
    assert resolve(ModelChoice(name=str(first))).fingerprint == one


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    import hashlib

    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    assert file_hash(path) == expected
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self) or real(self, *a, **k))
    assert file_hash(path) == expected
    assert path not in opened
    time.sleep(0.01)
    path.write_bytes(b"abd")
    assert file_hash(path) == hashlib.sha256(b"abd").hexdigest()
    assert path in opened


def test_a_damaged_cache_of_hashes_costs_time_and_nothing_else(tmp_path):
    path, store = tmp_path / "weights", tmp_path / "cache" / "fingerprints.json"
    path.write_bytes(b"abc")
    first = file_hash(path)
    store.write_text("{damaged")
    assert file_hash(path) == first
    assert fingerprints._read(store)
