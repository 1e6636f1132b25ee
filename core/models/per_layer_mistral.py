"""Mistral whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import MistralConfig, MistralForCausalLM

from .per_layer import PerLayerSizes


class PerLayerMistralForCausalLM(PerLayerSizes, MistralForCausalLM):  # type: ignore[misc]
    """MistralForCausalLM whose layers have the sizes that `config.espalier_layers` gives."""

    config_class = MistralConfig
