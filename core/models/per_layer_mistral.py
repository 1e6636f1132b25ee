"""Mistral whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import MistralConfig, MistralForCausalLM

from .per_layer import PerLayerSizes


class PerLayerMistralForCausalLM(PerLayerSizes, MistralForCausalLM):
    """MistralForCausalLM with `config.espalier_layers`: [{num_attention_heads, num_key_value_heads, intermediate_size}]."""

    config_class = MistralConfig
