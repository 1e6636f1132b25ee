import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.models.families import family
from core.models.sizes import LayerSizes
from core.models.surgery import Kept, cut_layer, expand, finish

LLAMA = family("llama")
BIASES = {"attention_bias": True, "mlp_bias": True}


def fill_biases(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
    return model


def zero_removed(model, index, kept, *, head_dim):
    """What cutting must be equal to, by a naive loop: removed heads write nothing, removed channels write nothing."""
    attention, mlp = model.model.layers[index].self_attn, model.model.layers[index].mlp
    with torch.no_grad():
        for head in set(range(attention.q_proj.out_features // head_dim)) - set(kept.query_heads.tolist()):
            attention.o_proj.weight[:, head * head_dim : (head + 1) * head_dim] = 0
        for channel in set(range(mlp.gate_proj.out_features)) - set(kept.channels.tolist()):
            mlp.down_proj.weight[:, channel] = 0


def logits(model, seed=1):
    ids = torch.randint(0, model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model(ids).logits


@st.composite
def layers(draw, n_kv=4, rep=2, channels=24):
    kv_heads = sorted(draw(st.sets(st.integers(0, n_kv - 1), min_size=1)))
    share = draw(st.integers(1, rep))
    groups = [sorted(draw(st.permutations(range(rep)))[:share]) for _ in kv_heads]
    query_heads = [kv * rep + head for kv, group in zip(kv_heads, groups, strict=True) for head in group]
    kept_channels = sorted(draw(st.sets(st.integers(0, channels - 1), min_size=1)))
    return Kept(torch.tensor(query_heads), torch.tensor(kv_heads), torch.tensor(kept_channels))


@pytest.mark.parametrize("tied", [True, False])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(first=layers(), second=layers())
def test_cutting_heads_and_channels_equals_silencing_them(tiny_llama, tied, first, second):
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 24, "tie_word_embeddings": tied}
    cut, masked = (fill_biases(tiny_llama(**sizes, **BIASES)) for _ in range(2))
    masked.load_state_dict(cut.state_dict())
    for index, kept in enumerate((first, second)):
        cut_layer(cut, LLAMA, index, kept)
        zero_removed(masked, index, kept, head_dim=4)
    finish(cut, LLAMA)
    torch.testing.assert_close(logits(cut), logits(masked), rtol=0, atol=2e-5)


def test_a_kv_group_takes_its_own_query_heads_along_worked_by_hand(tiny_llama):
    # 4 query heads, 2 KV heads, head_dim 4: KV head 1 owns query heads 2 and 3, that is channels 8 … 15
    model = fill_biases(tiny_llama(**BIASES))
    before = {name: each.clone() for name, each in model.model.layers[0].state_dict().items()}
    cut_layer(model, LLAMA, 0, Kept(kv_heads=torch.tensor([1])))
    attention = model.model.layers[0].self_attn
    assert torch.equal(attention.q_proj.weight, before["self_attn.q_proj.weight"][8:])
    assert torch.equal(attention.q_proj.bias, before["self_attn.q_proj.bias"][8:])
    assert torch.equal(attention.k_proj.weight, before["self_attn.k_proj.weight"][4:])
    assert torch.equal(attention.v_proj.bias, before["self_attn.v_proj.bias"][4:])
    assert torch.equal(attention.o_proj.weight, before["self_attn.o_proj.weight"][:, 8:])
    assert torch.equal(attention.o_proj.bias, before["self_attn.o_proj.bias"])
    assert (attention.q_proj.out_features, attention.o_proj.in_features, attention.num_key_value_groups) == (8, 8, 2)


def test_query_heads_within_groups_keep_keys_and_values_whole(tiny_llama):
    model = tiny_llama()
    keys = model.model.layers[0].self_attn.k_proj.weight.clone()
    cut_layer(model, LLAMA, 0, Kept(query_heads=torch.tensor([1, 2])))
    attention = model.model.layers[0].self_attn
    assert torch.equal(attention.k_proj.weight, keys)
    assert attention.num_key_value_groups == 1
    assert attention.q_proj.weight.shape == (8, 16)


def test_keeping_everything_changes_nothing_at_all(tiny_llama):
    model = tiny_llama()
    expected, weight = logits(model), model.model.layers[0].self_attn.q_proj.weight
    cut_layer(model, LLAMA, 0, Kept(torch.arange(4), torch.arange(2), torch.arange(48)))
    cut_layer(model, LLAMA, 1, Kept())
    finish(model, LLAMA)
    assert torch.equal(logits(model), expected)
    assert model.model.layers[0].self_attn.q_proj.weight is weight
    assert not hasattr(model.config, "espalier_layers")


def test_cut_weights_own_their_memory_and_keep_dtype_and_gradients(tiny_llama):
    model = tiny_llama().to(torch.bfloat16)
    cut_layer(model, LLAMA, 0, Kept(channels=torch.arange(16)))
    down = model.model.layers[0].mlp.down_proj.weight
    assert down.dtype == torch.bfloat16
    assert down.requires_grad
    assert down.is_contiguous()
    assert down.untyped_storage().nbytes() == 16 * 16 * 2


def test_uniform_sizes_go_to_the_top_level_of_the_config(tiny_llama):
    model = tiny_llama(tie_word_embeddings=False)
    for index in range(2):
        cut_layer(model, LLAMA, index, Kept(kv_heads=torch.tensor([index]), channels=torch.arange(32)))
    architecture = finish(model, LLAMA)
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 1, 32)
    assert config.head_dim == 4
    assert not hasattr(config, "espalier_layers")
    assert architecture.params == sum(p.numel() for p in model.parameters())


def test_sizes_that_differ_are_listed_and_a_second_cut_starts_from_them(tiny_llama):
    model = tiny_llama()
    cut_layer(model, LLAMA, 1, Kept(kv_heads=torch.tensor([0]), channels=torch.arange(32)))
    architecture = finish(model, LLAMA)
    assert model.config.espalier_layers[1] == {
        "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32,
    }  # fmt: skip
    assert model.config.num_attention_heads == 4
    assert architecture.layers == (LayerSizes(4, 2, 48), LayerSizes(2, 1, 32))
    cut_layer(model, LLAMA, 0, Kept(kv_heads=torch.tensor([1]), channels=torch.arange(32)))
    assert finish(model, LLAMA).uniform
    assert not hasattr(model.config, "espalier_layers")
    assert model.config.intermediate_size == 32


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (Kept(kv_heads=torch.tensor([2])), "0–1"),
        (Kept(kv_heads=torch.tensor([], dtype=torch.int64)), "at least one"),
        (Kept(channels=torch.tensor([3, 1])), "ascending"),
        (Kept(channels=torch.tensor([1, 1])), "ascending"),
        (Kept(channels=torch.tensor([-1, 1])), "0–47"),
        (Kept(query_heads=torch.tensor([0, 1, 2])), "same number"),
        (Kept(query_heads=torch.tensor([0, 1])), "same number"),
        (Kept(query_heads=torch.tensor([0, 2]), kv_heads=torch.tensor([0])), "same number"),
    ],
)
def test_an_impossible_layer_is_refused_before_anything_is_cut(tiny_llama, kept, words):
    model = tiny_llama()
    expected = logits(model)
    with pytest.raises(ValueError, match=words):
        cut_layer(model, LLAMA, 0, kept)
    assert torch.equal(logits(model), expected)


def test_expand_gives_the_channels_of_heads():
    assert expand(torch.tensor([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_with_a_cache_gives_the_tokens_of_generation_without(tiny_llama, attention):
    model = tiny_llama(num_attention_heads=4, num_key_value_heads=2)
    model.set_attn_implementation(attention)
    cut_layer(model, LLAMA, 0, Kept(kv_heads=torch.tensor([1]), channels=torch.arange(0, 48, 2)))
    cut_layer(model, LLAMA, 1, Kept(query_heads=torch.tensor([0, 3])))
    finish(model, LLAMA)
    ids = torch.tensor([[5, 6, 7, 8]])
    settings_ = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids), "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **settings_)
    assert cached.shape == (1, 24)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **settings_))
