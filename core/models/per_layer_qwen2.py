"""Qwen2 whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import Qwen2Config, Qwen2ForCausalLM

from .per_layer import PerLayerSizes


class PerLayerQwen2ForCausalLM(PerLayerSizes, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2ForCausalLM whose layers have the sizes that `config.espalier_layers` gives."""

    config_class = Qwen2Config
