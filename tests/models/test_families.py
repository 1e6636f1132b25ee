import subprocess
import sys

import pytest
import torch

from core.errors import ModelError, UnknownNameError
from core.models.families import families, family, loads_in
from core.models.sizes import Architecture, LayerSizes


def test_roles_are_the_modules_that_the_forward_pass_uses(tiny_llama):
    model = tiny_llama(num_key_value_heads=1)
    adapter = family("llama")
    layer = adapter.layers(model)[1]
    linears = adapter.linears(layer)
    shapes = {role: tuple(linear.weight.shape) for role, linear in linears.items()}
    assert shapes == {
        "q": (16, 16), "k": (4, 16), "v": (4, 16), "o": (16, 16), "gate": (48, 16), "up": (48, 16), "down": (16, 48),
    }  # fmt: skip
    assert linears["gate"] is model.model.layers[1].mlp.gate_proj
    assert adapter.sizes(layer, 4) == LayerSizes(4, 1, 48)


def test_the_parts_outside_the_layers_make_the_whole_forward_pass(tiny_llama):
    model = tiny_llama()
    adapter = family("llama")
    ids = torch.arange(10)[None]
    hidden = adapter.backbone(model)(ids).last_hidden_state
    assert torch.equal(adapter.head(model)(hidden), model(ids).logits)
    assert adapter.embedding(model).weight.shape == (96, 16)
    assert adapter.final_norm(model).weight.shape == (16,)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_tells_whether_embedding_and_head_are_one_parameter(tiny_llama, tied):
    assert family("llama").tied(tiny_llama(tie_word_embeddings=tied)) is tied


def test_parameters_counted_from_the_config_are_those_of_the_model(tiny_llama, tiny_config):
    for changes in ({}, {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}):
        architecture = Architecture.from_config(tiny_config(**changes))
        assert architecture.params == sum(p.numel() for p in tiny_llama(**changes).parameters())


def test_an_unknown_family_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="llama, mistral"):
        family("lama")


def test_a_model_without_the_modules_of_its_family_says_what_was_looked_for(tiny_llama):
    model = tiny_llama()
    del model.model.layers[0].mlp.up_proj
    with pytest.raises(ModelError, match=r"no module 'mlp\.up_proj'.*self_attn\.q_proj"):
        family("llama").linears(model.model.layers[0])


@pytest.mark.parametrize(
    ("model_type", "sizes", "layout"),
    [
        ("llama", [(4, 2, 48)] * 2, "stock"),
        ("llama", [(2, 1, 32)] * 2, "stock"),
        ("llama", [(4, 2, 48), (4, 2, 32)], "per_layer"),
        ("llama", [(3, 1, 48)] * 2, "per_layer"),  # 16 % 3: LlamaConfig rejects it
        ("mistral", [(3, 1, 48)] * 2, "stock"),
    ],
)
def test_layout_is_stock_exactly_where_the_stock_class_holds_the_sizes(tiny_config, model_type, sizes, layout):
    architecture = Architecture.from_config(tiny_config(model_type=model_type))
    architecture = architecture.with_layers(tuple(LayerSizes(*each) for each in sizes))
    assert family(model_type).layout(architecture) == layout
    assert ("transformers" in loads_in(architecture)) is (layout == "stock")


def test_every_family_names_classes_that_exist():
    import importlib

    import transformers

    for adapter in families().values():
        stock = getattr(transformers, adapter.stock_class)
        own = getattr(importlib.import_module(f"core.models.{adapter.per_layer_module}"), adapter.per_layer_class)
        assert issubclass(own, stock)
        assert own.config_class.model_type == adapter.model_type


def test_asking_for_a_family_or_a_model_loads_no_torch():
    code = (
        "import sys; from core.models import catalogue, families; from core.experiment import ModelChoice\n"
        "families.family('llama'); catalogue.entries(); catalogue.resolve(ModelChoice()).fingerprint\n"
        "bad = {'torch', 'transformers', 'peft', 'lm_eval', 'datasets'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
