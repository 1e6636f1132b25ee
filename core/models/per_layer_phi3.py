"""Phi-3 whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import Phi3Config, Phi3ForCausalLM

from .per_layer import PerLayerSizes


class PerLayerPhi3ForCausalLM(PerLayerSizes, Phi3ForCausalLM):  # type: ignore[misc]
    """Phi3ForCausalLM whose layers have the sizes that `config.espalier_layers` gives."""

    config_class = Phi3Config
    attention_reads_heads = True
