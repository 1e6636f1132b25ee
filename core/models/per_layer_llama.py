"""Llama whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import LlamaConfig, LlamaForCausalLM

from .per_layer import PerLayerSizes


class PerLayerLlamaForCausalLM(PerLayerSizes, LlamaForCausalLM):
    """LlamaForCausalLM with `config.espalier_layers`: [{num_attention_heads, num_key_value_heads, intermediate_size}]."""

    config_class = LlamaConfig
