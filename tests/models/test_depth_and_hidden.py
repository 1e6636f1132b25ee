"""Whole layers and hidden channels, for every family."""

import copy
import json

import pytest
import torch
from torch import nn

from core.errors import ModelError
from core.models.families import families, family
from core.models.loading import load_directory
from core.models.saving import save, verify
from core.models.sizes import Architecture
from core.models.surgery import Kept, cut_hidden, cut_layer, drop_layers, finish

ALL = sorted(families())
EVERY_FAMILY = pytest.mark.parametrize("model_type", ALL)
HEAD_DIM = {"qwen3": 8, "gemma2": 8, "gemma3_text": 8}
KEPT = torch.tensor([0, 2, 3, 5, 6, 7, 9, 10, 11, 12, 14, 15])  # 12 of 16, a multiple of the 4 heads


def token_ids(model, tokens):
    return torch.randint(3, model.config.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(1))


def logits(model, tokens=30):
    with torch.inference_mode():
        return model(token_ids(model, tokens)).logits


def decoded(model, tokens=30):
    """The same logits, token by token with a cache."""
    cache, found = None, []
    with torch.inference_mode():
        for ids in token_ids(model, tokens).split(1, dim=1):
            output = model(ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
    return torch.cat(found, dim=1)


def without(model, removed):
    """The dense model whose removed layers are stepped over: what dropping them must be equal to."""
    skipped = copy.deepcopy(model)
    for index in removed:
        skipped.model.layers[index].forward = lambda hidden, **_rest: hidden
    return skipped


def read_back(model, tokenizer, directory):
    saved = save(model, tokenizer, directory)
    again, _ = load_directory(saved.directory, device="cpu", dtype="float32")
    return saved, again, json.loads((saved.directory / "config.json").read_text())


# --- layers


@EVERY_FAMILY
@pytest.mark.parametrize("removed", [[1], [0, 3], [3, 1, 2], [0, 1, 2], [2]])
def test_dropping_layers_equals_stepping_over_them(tiny_model, tiny_tokenizer, tmp_path, model_type, removed):
    model = tiny_model(model_type)
    expected = logits(without(model, removed))
    adapter, n = family(model_type), 4 - len(removed)
    drop_layers(model, adapter, removed)
    architecture = finish(model, adapter)
    assert torch.equal(logits(model), expected)
    torch.testing.assert_close(decoded(model), expected, rtol=0, atol=1e-4)
    assert architecture.n_layers == model.config.num_hidden_layers == len(adapter.layers(model)) == n
    assert architecture.params == sum(parameter.numel() for parameter in model.parameters())
    saved, again, config = read_back(model, tiny_tokenizer(), tmp_path / "model")
    assert (saved.layout, type(again).__name__) == ("stock", adapter.stock_class)
    assert torch.equal(logits(again), expected)
    torch.testing.assert_close(decoded(again), expected, rtol=0, atol=1e-4)
    assert config["num_hidden_layers"] == n
    numbers = [module.layer_idx for module in model.modules() if hasattr(module, "layer_idx")]
    assert numbers == [module.layer_idx for module in again.modules() if hasattr(module, "layer_idx")]
    assert sorted(set(numbers)) == list(range(n))


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "gemma3_text"])
def test_a_layer_keeps_its_kind_when_those_before_it_go(tiny_model, model_type):
    model = tiny_model(model_type)
    before = list(model.config.layer_types)
    windows = [layer.self_attn.sliding_window for layer in model.model.layers]
    assert len(set(before)) == 2
    drop_layers(model, family(model_type), [0, 2])
    assert model.config.layer_types == [before[1], before[3]]
    assert [layer.self_attn.sliding_window for layer in model.model.layers] == [windows[1], windows[3]]


def test_the_number_of_layers_without_a_window_follows_the_layers(tiny_model):
    model = tiny_model("qwen2")  # layers 0 and 1 see everything, 2 and 3 a window
    drop_layers(model, family("qwen2"), [0])
    assert model.config.max_window_layers == 1
    drop_layers(model, family("qwen2"), [1, 2])
    assert (model.config.max_window_layers, model.config.layer_types) == (1, ["full_attention"])
    assert not model.model.has_sliding_layers


@EVERY_FAMILY
def test_layers_of_different_sizes_keep_their_own_when_others_go(tiny_model, tiny_tokenizer, tmp_path, model_type):
    model = tiny_model(model_type)
    adapter = family(model_type)
    for index in range(3):
        kept = Kept(kv_heads=torch.tensor([index % 2]), channels=torch.arange(8 * index + 8))
        cut_layer(model, adapter, index, kept)
    finish(model, adapter)
    expected = logits(without(model, [1]))
    drop_layers(model, adapter, [1])
    assert [entry["intermediate_size"] for entry in model.config.espalier_layers] == [8, 24, 48]
    saved, again, config = read_back(model, tiny_tokenizer(), tmp_path / "model")
    assert saved.layout == "per_layer"
    assert [entry["num_attention_heads"] for entry in config["espalier_layers"]] == [2, 2, 4]
    assert torch.equal(logits(again), expected)
    drop_layers(again, adapter, [0, 1])
    saved, again, _ = read_back(again, tiny_tokenizer(), tmp_path / "one")
    assert saved.layout == "stock"
    assert torch.equal(logits(again), logits(without(model, [0, 1])))


@pytest.mark.parametrize("removed", [[4], [-1], [1, 1], [0, 1, 2, 3]])
def test_layers_that_cannot_go_are_refused_before_anything_is_dropped(tiny_model, removed):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="different numbers in 0–3, not all"):
        drop_layers(model, family("llama"), removed)
    assert len(model.model.layers) == model.config.num_hidden_layers == 4


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen2"])
def test_a_stranger_finds_the_same_shallower_model(tiny_model, tiny_tokenizer, tmp_path, model_type):
    """Also where only one of the two kinds of layers is left."""
    model = tiny_model(model_type)
    drop_layers(model, family(model_type), [2] if model_type == "gemma3_text" else [0, 1])
    assert set(model.config.layer_types) == {"sliding_attention"}
    saved = save(model, tiny_tokenizer(), tmp_path / "model")
    _, tokenizer = load_directory(saved.directory, device="cpu", dtype="float32")  # Qwen2's differs from what was saved
    report = verify(saved.directory, model, tokenizer)
    assert report.max_abs_difference <= 1e-6
    assert not report.trust_remote_code


# --- hidden channels


class NormOver(nn.Module):
    """RMSNorm over some of the channels, worked by hand: the others are zero after it and count for nothing."""

    def __init__(self, norm, kept, offset):
        super().__init__()
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps
        self.gain, self.kept = offset + norm.weight.detach(), kept

    def forward(self, x):
        out = torch.zeros_like(x)
        for channel in self.kept.tolist():
            mean = sum(x[..., each] ** 2 for each in self.kept.tolist()) / self.kept.numel()
            out[..., channel] = x[..., channel] / torch.sqrt(mean + self.eps) * self.gain[channel]
        return out


def silenced(model, kept):
    """The dense model, at its full width, in which the other channels carry nothing."""
    model = copy.deepcopy(model)
    offset = 1.0 if model.config.model_type.startswith("gemma") else 0.0
    gone = [channel for channel in range(model.config.hidden_size) if channel not in kept.tolist()]
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for table in (model.model.embed_tokens, model.lm_head):
            table.weight[:, gone] = 0
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight[gone] = 0
                if writer.bias is not None:
                    writer.bias[gone] = 0
            for name, module in list(layer.named_children()):
                if name.endswith("layernorm"):
                    setattr(layer, name, NormOver(module, kept, offset))
        model.model.norm = NormOver(model.model.norm, kept, offset)
    return model


@EVERY_FAMILY
@pytest.mark.parametrize("tied", [True, False])
def test_cutting_hidden_channels_equals_a_model_in_which_they_carry_nothing(
    tiny_model, tiny_tokenizer, tmp_path, model_type, tied
):
    model = tiny_model(model_type, tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    expected, adapter = logits(silenced(model, KEPT)), family(model_type)
    dense = logits(model)
    cut_hidden(model, adapter, KEPT)
    architecture = finish(model, adapter)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=5e-5)
    assert (logits(model) - dense).abs().max() > 0.1, "the cut must matter"
    assert adapter.tied(model) is tied
    assert architecture.hidden_size == model.config.hidden_size == 12
    assert architecture.head_dim == model.config.head_dim == HEAD_DIM.get(model_type, 4)
    assert architecture.params == sum(parameter.numel() for parameter in model.parameters())
    saved, again, config = read_back(model, tiny_tokenizer(), tmp_path / "model")
    assert (saved.layout, config["hidden_size"]) == ("stock", 12)
    assert torch.equal(logits(again), logits(model))
    assert Architecture.from_config(config).params == architecture.params


@EVERY_FAMILY
def test_all_channels_kept_changes_no_logit(tiny_model, model_type):
    model = tiny_model(model_type)
    expected, weight = logits(model), model.model.layers[0].self_attn.o_proj.weight
    cut_hidden(model, family(model_type), torch.arange(16))
    assert torch.equal(logits(model), expected)
    assert model.model.layers[0].self_attn.o_proj.weight is weight


@EVERY_FAMILY
def test_all_kinds_of_cuts_go_together(tiny_model, tiny_tokenizer, tmp_path, model_type):
    model = tiny_model(model_type)
    adapter = family(model_type)
    for index in range(4):
        cut_layer(model, adapter, index, Kept(kv_heads=torch.tensor([1]), channels=torch.arange(20)))
    finish(model, adapter)
    cut_hidden(model, adapter, KEPT)
    drop_layers(model, adapter, [1, 2])
    cut_layer(model, adapter, 0, Kept(channels=torch.arange(10)))
    architecture = finish(model, adapter)
    assert architecture.params == sum(parameter.numel() for parameter in model.parameters())
    saved, again, _ = read_back(model, tiny_tokenizer(), tmp_path / "model")
    assert saved.layout == "per_layer"
    assert torch.equal(logits(again), logits(model))
    torch.testing.assert_close(decoded(again), logits(again), rtol=0, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_gemma_keeps_the_scale_of_its_embedding_through_a_reload(
    tiny_model, tiny_tokenizer, tmp_path, model_type, tied
):
    """A reload multiplies by √12, the dense model by √16: the table makes up for it."""
    model = tiny_model(model_type, tie_word_embeddings=tied)
    ids = torch.arange(3, 40)
    with torch.no_grad():
        expected = model.model.embed_tokens(ids)[:, KEPT]
    cut_hidden(model, family(model_type), KEPT)
    _, again, _ = read_back(model, tiny_tokenizer(), tmp_path / "model")
    for each in (model, again):
        assert each.model.embed_tokens.embed_scale == pytest.approx(12**0.5)
        torch.testing.assert_close(each.model.embed_tokens(ids).detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model_type", ["gemma2", "phi3", "qwen2"])
def test_a_stranger_finds_the_same_narrower_model(tiny_model, tiny_tokenizer, tmp_path, model_type):
    source = save(tiny_model(model_type), tiny_tokenizer(), tmp_path / "source", dtype="bfloat16").directory
    model, tokenizer = load_directory(source, device="cpu", dtype="bfloat16")
    cut_hidden(model, family(model_type), KEPT)
    saved = save(model, tokenizer, tmp_path / "model", dtype="bfloat16")
    assert verify(saved.directory, model, tokenizer).max_abs_difference <= 1e-5


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
def test_a_hidden_size_that_the_config_class_rejects_is_refused_with_the_next_ones(tiny_model, model_type):
    model = tiny_model(model_type)
    expected = logits(model)
    with pytest.raises(ModelError, match=r"10 hidden channels.*multiple of the 4 query heads.*Keep 8 or 12"):
        cut_hidden(model, family(model_type), torch.arange(10))
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "qwen3", "phi3"])
def test_families_whose_config_class_does_not_mind_take_any_number_of_channels(
    tiny_model, tiny_tokenizer, tmp_path, model_type
):
    model = tiny_model(model_type)
    cut_hidden(model, family(model_type), torch.arange(10))
    saved, again, _ = read_back(model, tiny_tokenizer(), tmp_path / "model")
    assert saved.layout == "stock"
    assert torch.equal(logits(again), logits(model))


def test_longrope_ties_the_hidden_size_of_phi3_to_its_heads(tiny_model):
    rope = {"rope_type": "longrope", "short_factor": [1.1, 1.3], "long_factor": [2.0, 3.0]}
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=20)
    with pytest.raises(ModelError, match=r"longrope.*12 with 4 heads: only 16–19"):
        cut_hidden(model, family("phi3"), KEPT)


@pytest.mark.parametrize("kept", [[3, 1], [0, 0], [], [0, 16], [-1, 2]])
def test_a_set_of_channels_that_is_none_is_refused(tiny_model, kept):
    with pytest.raises(ValueError, match="hidden channels must be ascending indices in 0–15"):
        cut_hidden(tiny_model("mistral"), family("mistral"), torch.tensor(kept, dtype=torch.int64))
