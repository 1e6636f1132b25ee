"""Decoder layers of different sizes in one stock transformers model.

This file is also copied into saved models, beside the one of the model's family: it may import nothing but the standard
library and transformers. config.json gives the sizes under `espalier_layers`, one mapping a layer; everything else, the
forward pass above all, is the stock class.
"""

import copy
from typing import Any


class OwnHeads:
    """The model's config as one attention module sees it: with a number of query heads of the module's own."""

    def __init__(self, shared: Any, num_attention_heads: int) -> None:
        self.shared = shared
        self.num_attention_heads = num_attention_heads

    def __getattr__(self, name: str) -> Any:
        if name == "shared" or name.startswith("__"):  # asked for while a copy is being made
            raise AttributeError(name)
        return getattr(self.shared, name)


class PerLayerSizes:
    """Put before a stock `...ForCausalLM` among the bases: builds each decoder layer from its own sizes.

    attention_reads_heads: the stock forward pass takes the number of query heads from the config.
    """

    attention_reads_heads = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        layers = self.model.layers  # type: ignore[attr-defined]
        for index, sizes in enumerate(config.espalier_layers):
            own = copy.deepcopy(config)
            for name, value in sizes.items():
                setattr(own, name, value)
            layer = type(layers[index])(own, index)
            # one config for all, so that set_attn_implementation reaches every layer
            for module in layer.modules():
                if hasattr(module, "config"):
                    module.config = config
            if self.attention_reads_heads:
                layer.self_attn.config = OwnHeads(config, own.num_attention_heads)
            layers[index] = layer
        self.post_init()  # type: ignore[attr-defined]
