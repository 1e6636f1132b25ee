"""Gemma 2 whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import Gemma2Config, Gemma2ForCausalLM

from .per_layer import PerLayerSizes


class PerLayerGemma2ForCausalLM(PerLayerSizes, Gemma2ForCausalLM):  # type: ignore[misc]
    """Gemma2ForCausalLM whose layers have the sizes that `config.espalier_layers` gives."""

    config_class = Gemma2Config
