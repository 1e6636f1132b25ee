"""Llama whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import LlamaConfig, LlamaForCausalLM

from .per_layer import PerLayerSizes


class PerLayerLlamaForCausalLM(PerLayerSizes, LlamaForCausalLM):  # type: ignore[misc]
    """LlamaForCausalLM whose layers have the sizes that `config.espalier_layers` gives."""

    config_class = LlamaConfig
