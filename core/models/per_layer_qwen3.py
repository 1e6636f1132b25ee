"""Qwen3 whose layers differ in heads, KV heads and MLP width. Copied into saved models: see per_layer.py."""

from transformers import Qwen3Config, Qwen3ForCausalLM

from .per_layer import PerLayerSizes


class PerLayerQwen3ForCausalLM(PerLayerSizes, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3ForCausalLM whose layers have the sizes that `config.espalier_layers` gives."""

    config_class = Qwen3Config
