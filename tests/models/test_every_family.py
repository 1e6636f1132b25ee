"""What must hold for every family: one suite over all adapters, on tiny random models with each family's oddities."""

import copy
import json

import pytest
import torch
from torch import nn

from core.errors import ModelError, UnknownNameError
from core.experiment import ModelChoice
from core.models.catalogue import resolve
from core.models.families import brings_code, families, family, titles
from core.models.loading import load, load_directory
from core.models.saving import save, verify
from core.models.sizes import MATRICES, Architecture, LayerSizes
from core.models.surgery import Kept, cut_layer, expand, finish

ALL = sorted(families())
EVERY_FAMILY = pytest.mark.parametrize("model_type", ALL)
HEAD_DIM = {"qwen3": 8, "gemma2": 8, "gemma3_text": 8}
KEPT = (
    Kept(kv_heads=torch.tensor([1]), channels=torch.arange(0, 48, 3)),
    Kept(query_heads=torch.tensor([1, 2])),
    Kept(channels=torch.tensor([0, 5, 6, 47])),
    Kept(query_heads=torch.tensor([1]), kv_heads=torch.tensor([0]), channels=torch.arange(40)),
)


def logits(model, tokens=30):
    ids = torch.randint(3, model.config.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(ids).logits


def decoded(model, tokens=30):
    """The same logits, token by token with a cache (longer than the sliding windows)."""
    ids = torch.randint(3, model.config.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(1))
    cache, found = None, []
    with torch.inference_mode():
        for step in range(tokens):
            output = model(ids[:, step : step + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
    return torch.cat(found, dim=1)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def cut(model, *, per_layer):
    """Every layer another way, or all alike (one KV group and two thirds of the channels go)."""
    adapter = family(model.config.model_type)
    for index, kept in enumerate(KEPT if per_layer else KEPT[:1] * 4):
        cut_layer(model, adapter, index, kept)
    return finish(model, adapter)


def silence(model):
    """What KEPT must be equal to: heads and channels that go write nothing, by zeros in o and down."""
    adapter = family(model.config.model_type)
    hd = adapter.head_dim(model.config)
    for layer, kept in zip(adapter.layers(model), KEPT, strict=True):
        matrices = adapter.matrices(layer)
        heads = kept.query_heads
        if heads is None and kept.kv_heads is not None:
            heads = expand(kept.kv_heads, 2)
        for role, stays, unit in (("o", heads, hd), ("down", kept.channels, 1)):
            if stays is not None:
                weight = matrices[role].weight
                for each in set(range(weight.shape[1] // unit)) - set(stays.tolist()):
                    weight[:, each * unit : (each + 1) * unit] = 0


@EVERY_FAMILY
def test_parameters_counted_from_the_config_are_torchs_before_and_after_a_cut(tiny_model, model_type):
    for changes in ({}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}):
        model = tiny_model(model_type, **changes)
        assert Architecture.from_config(model.config.to_dict()).params == count(model)
    for per_layer in (False, True):
        model = tiny_model(model_type, tie_word_embeddings=False)
        assert cut(model, per_layer=per_layer).params == count(model)


@EVERY_FAMILY
def test_what_a_config_leaves_out_is_what_its_class_takes_for_granted(model_type):
    from transformers import AutoConfig

    given = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    if not model_type.startswith("gemma"):  # published configs of the others name these
        given |= {"num_attention_heads": 32, "vocab_size": 40000}
    full = AutoConfig.for_model(model_type, **given).to_dict()
    assert Architecture.from_config({"model_type": model_type, **given}) == Architecture.from_config(
        full | {"dtype": None}
    )


@EVERY_FAMILY
def test_matrices_are_views_that_make_up_the_linear_layers_of_a_layer(tiny_model, model_type):
    model = tiny_model(model_type)
    adapter = family(model_type)
    for index in (0, 1):
        cut_layer(model, adapter, 0, KEPT[0])  # the second time nothing is left to cut but rows follow the new sizes
        layer = adapter.layers(model)[index]
        matrices = adapter.matrices(layer)
        assert tuple(matrices) == MATRICES
        hd = HEAD_DIM.get(model_type, 4)
        heads, kv, mlp = (2, 1, 16) if index == 0 else (4, 2, 48)
        assert {role: tuple(m.weight.shape) for role, m in matrices.items()} == {
            "q": (heads * hd, 16), "k": (kv * hd, 16), "v": (kv * hd, 16), "o": (16, heads * hd),
            "gate": (mlp, 16), "up": (mlp, 16), "down": (16, mlp),
        }  # fmt: skip
        assert adapter.sizes(layer, hd) == LayerSizes(heads, kv, mlp)
        linears = {m for m in layer.modules() if isinstance(m, nn.Linear)}
        assert {matrix.linear for matrix in matrices.values()} == linears
        for linear in linears:
            parts = [matrix.weight for matrix in matrices.values() if matrix.linear is linear]
            assert torch.equal(torch.cat(parts), linear.weight)
            assert all(part.untyped_storage().data_ptr() == linear.weight.data_ptr() for part in parts)
        if index == 0:
            with pytest.raises(ValueError, match="0–0"):
                cut_layer(model, adapter, 0, Kept(kv_heads=torch.tensor([1])))
            model = tiny_model(model_type)


def test_rows_of_a_fused_layer_are_those_that_the_forward_pass_takes(tiny_model):
    """Each role of Phi-3's shared layers, silenced alone, does to the output what it must."""
    model = tiny_model("phi3")
    layer = model.model.layers[0]
    seen = {}
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.update(o=args[0]))
    layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(down=args[0]))
    matrices = family("phi3").matrices(layer)
    for role, reader in (("v", "o"), ("up", "down"), ("gate", "down")):
        kept = matrices[role].weight.clone()
        matrices[role].weight.zero_()
        logits(model)
        assert float(seen[reader].abs().max()) == 0, role
        matrices[role].weight.copy_(kept)
    logits(model)
    before = seen["o"].clone()
    matrices["v"].weight[:4] = 0  # the first KV head: query heads 0 and 1
    logits(model)
    assert float(seen["o"][..., :8].abs().max()) == 0
    assert torch.equal(seen["o"][..., 8:], before[..., 8:])


@EVERY_FAMILY
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cutting_heads_and_channels_equals_silencing_them(tiny_model, model_type, attention):
    if attention == "sdpa" and family(model_type).attention != "sdpa":
        pytest.skip("transformers has no such kernel for this family")
    model = tiny_model(model_type)
    masked = copy.deepcopy(model)
    adapter = family(model_type)
    for index, kept in enumerate(KEPT):
        cut_layer(model, adapter, index, kept)
    silence(masked)
    model.set_attn_implementation(attention)
    masked.set_attn_implementation(attention)
    unfinished = logits(model)
    torch.testing.assert_close(unfinished, logits(masked), rtol=0, atol=2e-5)
    assert (logits(tiny_model(model_type)) - unfinished).abs().max() > 0.1, "the cut must matter"
    finish(model, adapter)
    assert torch.equal(logits(model), unfinished)
    assert torch.equal(logits(copy.deepcopy(model)), unfinished)


@EVERY_FAMILY
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_cut_model_reloads_with_the_same_logits(tiny_model, tiny_tokenizer, tmp_path, model_type, per_layer):
    model = tiny_model(model_type)
    architecture = cut(model, per_layer=per_layer)
    saved = save(model, tiny_tokenizer(), tmp_path / "model")
    assert saved.layout == ("per_layer" if per_layer else "stock")
    again, _ = load_directory(saved.directory, device="cpu", dtype="float32")
    assert torch.equal(logits(again), logits(model))
    adapter = family(model_type)
    assert type(again).__name__ == (adapter.per_layer_class if per_layer else adapter.stock_class)
    read = Architecture.from_config(json.loads((saved.directory / "config.json").read_text()))
    assert (read.layers, read.head_dim, read.params) == (architecture.layers, HEAD_DIM.get(model_type, 4), count(again))


@pytest.mark.parametrize(
    ("model_type", "per_layer"),
    [*((each, True) for each in ALL if each != "llama"), ("gemma2", False), ("gemma3_text", False), ("phi3", False)],
)
def test_a_stranger_finds_the_same_model(tiny_model, tiny_tokenizer, tmp_path, model_type, per_layer):
    """In a fresh process; from half precision, where Gemma holds the scale of its embedding, here √24, rounded."""
    model = tiny_model(model_type, hidden_size=24)
    source = save(model, tiny_tokenizer(), tmp_path / "source", dtype="bfloat16").directory
    model, tokenizer = load_directory(source, device="cpu", dtype="bfloat16")
    cut(model, per_layer=per_layer)
    saved = save(model, tokenizer, tmp_path / "model", dtype="bfloat16")
    report = verify(saved.directory, model, tokenizer)
    assert report.max_abs_difference <= 1e-5
    assert report.trust_remote_code is per_layer


@EVERY_FAMILY
def test_a_model_cut_twice_from_a_per_layer_folder_becomes_stock_again(
    tiny_model, tiny_tokenizer, tmp_path, model_type
):
    model = tiny_model(model_type)
    adapter = family(model_type)
    cut_layer(model, adapter, 1, KEPT[0])
    first = save(model, tiny_tokenizer(), tmp_path / "first")
    assert first.layout == "per_layer"
    model, tokenizer = load_directory(first.directory, device="cpu", dtype="float32")
    for index in (0, 2, 3):
        cut_layer(model, adapter, index, KEPT[0])
    second = save(model, tokenizer, tmp_path / "second")
    assert second.layout == "stock"
    again, _ = load_directory(second.directory, device="cpu", dtype="float32")
    assert type(again).__name__ == adapter.stock_class
    assert torch.equal(logits(again), logits(model))


@EVERY_FAMILY
def test_decoding_with_a_cache_sees_what_a_pass_over_everything_sees(tiny_model, model_type):
    model = tiny_model(model_type)
    cut(model, per_layer=True)
    torch.testing.assert_close(decoded(model), logits(model), rtol=0, atol=1e-4)
    ids = torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    assert torch.equal(
        model.generate(ids, use_cache=True, **settings), model.generate(ids, use_cache=False, **settings)
    )


@EVERY_FAMILY
def test_changing_the_attention_kernel_reaches_every_layer_of_a_cut_model(tiny_model, model_type):
    if family(model_type).attention != "sdpa":
        pytest.skip("this family has one kernel")
    model = tiny_model(model_type)
    cut(model, per_layer=True)
    model.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in model.model.layers} == {"eager"}


@EVERY_FAMILY
def test_zeros_written_through_matrices_survive_on_disk(tiny_model, tiny_tokenizer, tmp_path, model_type):
    model = tiny_model(model_type)
    adapter = family(model_type)
    for role, matrix in adapter.matrices(adapter.layers(model)[0]).items():
        matrix.weight[:, :: 2 if role in "qku" else 3] = 0
    directory = save(model, tiny_tokenizer(), tmp_path / "model", dtype="float16").directory
    again, _ = load_directory(directory, device="cpu", dtype="float32")
    for role, matrix in adapter.matrices(adapter.layers(again)[0]).items():
        step = 2 if role in "qku" else 3
        assert int((matrix.weight == 0).all(dim=0).sum()) == -(-matrix.weight.shape[1] // step), role


@EVERY_FAMILY
def test_norms_of_heads_and_other_norms_stay_whole_when_heads_go(tiny_model, model_type):
    model = tiny_model(model_type)
    norms = {name: each.clone() for name, each in model.named_parameters() if "norm" in name}
    assert any("q_norm" in name for name in norms) is (model_type in ("qwen3", "gemma3_text"))
    cut(model, per_layer=True)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], each) for name, each in norms.items())
    adapter = family(model_type)
    over_hidden = [norm.weight for layer in adapter.layers(model) for norm in adapter.norms(layer)]
    assert {tuple(weight.shape) for weight in over_hidden} == {(16,)}
    heads = sum("q_norm" in name or "k_norm" in name for name in norms)
    assert len(over_hidden) == len(norms) - heads - 1, "all but the final norm"


@EVERY_FAMILY
def test_the_names_in_a_saved_file_are_those_outside_the_layers_and_those_of_each_layer(
    tiny_model, tiny_tokenizer, tmp_path, model_type
):
    from safetensors import safe_open

    adapter = family(model_type)
    for tied in (True, False):
        model = tiny_model(model_type, tie_word_embeddings=tied)
        with safe_open(save(model, tiny_tokenizer(), tmp_path / str(tied)).directory / "model.safetensors", "pt") as f:
            names = set(f.keys())
        inside = {n for i in range(4) for n in names if n.startswith(adapter.layer_prefix(i))}
        assert names - inside == set(adapter.outside_names(tied=tied))
        layer = adapter.layers(model)[3]
        assert {adapter.layer_prefix(3) + n for n in layer.state_dict()} == {
            n for n in names if n.startswith(adapter.layer_prefix(3))
        }


# --- single families


def test_biases_of_qwen2_go_with_their_heads(tiny_model):
    model = tiny_model("qwen2")
    before = {name: each.clone() for name, each in model.model.layers[0].self_attn.named_parameters()}
    cut_layer(model, family("qwen2"), 0, Kept(kv_heads=torch.tensor([1])))
    attention = model.model.layers[0].self_attn
    assert torch.equal(attention.q_proj.bias, before["q_proj.bias"][8:])
    assert torch.equal(attention.k_proj.bias, before["k_proj.bias"][4:])
    assert torch.equal(attention.v_proj.bias, before["v_proj.bias"][4:])
    assert attention.o_proj.bias is None


def test_a_qwen2_with_fewer_heads_is_no_model_for_vllm_which_divides_the_hidden_size_by_them(tiny_model):
    adapter = family("qwen2")
    model = tiny_model("qwen2")
    assert adapter.loads_in(finish(model, adapter)) == ["transformers", "vLLM"]
    assert adapter.loads_in(cut(model, per_layer=False)) == ["transformers"]
    for other in ("qwen3", "gemma2", "phi3"):
        assert family(other).loads_in(cut(tiny_model(other), per_layer=False)) == ["transformers", "vLLM"]


LONGROPE = {
    "rope_parameters": {"rope_type": "longrope", "short_factor": [1.1, 1.3], "long_factor": [2.0, 3.0]},
    "original_max_position_embeddings": 20,
}


@pytest.mark.parametrize("heads", [True, False])
def test_a_phi3_with_longrope_keeps_its_factors_and_the_config_class_accepts_it(
    tiny_model, tiny_tokenizer, tmp_path, heads
):
    """Phi3Config counts the factors by hidden_size / heads: with fewer heads it takes only the layout per layer."""
    model = tiny_model("phi3", **LONGROPE)
    for index in range(4):
        cut_layer(model, family("phi3"), index, KEPT[0 if heads else 2])
    saved = save(model, tiny_tokenizer(), tmp_path / "model")
    assert saved.layout == ("per_layer" if heads else "stock")
    config = json.loads((saved.directory / "config.json").read_text())
    assert config["rope_scaling"] == {"type": "longrope", "short_factor": [1.1, 1.3], "long_factor": [2.0, 3.0]}
    assert config["original_max_position_embeddings"] == 20
    again, _ = load_directory(saved.directory, device="cpu", dtype="float32")
    for tokens in (10, 30):  # short and long factors
        assert torch.equal(logits(again, tokens), logits(model, tokens))
    assert verify(saved.directory, model, tiny_tokenizer()).max_abs_difference <= 1e-5


def test_positions_are_written_for_older_readers_too(tiny_model, tiny_tokenizer, tmp_path):
    config = save(tiny_model("gemma3_text"), tiny_tokenizer(), tmp_path / "gemma").directory / "config.json"
    found = json.loads(config.read_text())
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1000.0, 100.0)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert not [key for key in found if key.startswith("_")]
    config = save(tiny_model("phi3"), tiny_tokenizer(), tmp_path / "phi").directory / "config.json"
    assert json.loads(config.read_text())["partial_rotary_factor"] == 0.5


def test_code_that_transformers_has_taken_in_needs_no_tick_and_is_never_run(
    tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    """Published Phi-3 folders name code files; with them, they could not even be pruned."""
    folder = save(tiny_model("phi3"), tiny_tokenizer(), tmp_path / "phi").directory
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    }
    for name in ("configuration_phi3", "modeling_phi3"):
        (folder / f"{name}.py").write_text("raise SystemExit('this code must not run')")
    (folder / "config.json").write_text(json.dumps(config))
    for trust in (False, True):
        choice = ModelChoice(name=str(folder), trust_remote_code=trust)
        assert not resolve(choice).foreign_code
        model = load(choice, device="cpu", dtype="float32").model
        assert type(model).__module__ == "transformers.models.phi3.modeling_phi3"
    config["auto_map"]["AutoModelForCausalLM"] = "modeling_phi3.OtherForCausalLM"
    assert brings_code(config)
    assert brings_code(config | {"auto_map": "strange"})
    assert brings_code({**config, "model_type": "llama", "auto_map": dict.fromkeys(config["auto_map"], None)})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="trust_remote_code"):
        resolve(ModelChoice(name=str(folder)))


def test_a_model_of_text_and_images_is_refused_by_its_config(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    config = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"gemma3 model reads more than text: its gemma3_text model"):
        resolve(ModelChoice(name=str(tmp_path)))


def test_an_unknown_family_says_which_families_and_module_names_there_are():
    with pytest.raises(UnknownNameError, match=r"(?s)Known: .*phi3.*self_attn\.q_proj.*mlp\.gate_up_proj"):
        family("mamba")
    assert list(titles()) == list(families())


def test_roles_that_share_a_linear_layer_are_never_handed_out_as_if_each_had_its_own(tiny_model):
    with pytest.raises(ModelError, match="matrices"):
        family("phi3").linears(tiny_model("phi3").model.layers[0])
