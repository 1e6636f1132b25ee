"""Gemma 3 whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from .per_layer import PerLayerSizes


class PerLayerGemma3ForCausalLM(PerLayerSizes, Gemma3ForCausalLM):  # type: ignore[misc]
    """Gemma3ForCausalLM whose layers have the sizes that `config.espalier_layers` gives."""

    config_class = Gemma3TextConfig
