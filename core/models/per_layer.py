"""Decoder layers of different sizes in one stock transformers model.

This file is also copied into saved models, beside the one of the model's family: it may import nothing but the standard
library and transformers. config.json gives the sizes under `espalier_layers`, one mapping a layer; everything else, the
forward pass above all, is the stock class.
"""

import copy
from typing import Any


class PerLayerSizes:
    """Put before a stock `...ForCausalLM` among the bases: builds each decoder layer from its own sizes."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        layers = self.model.layers  # type: ignore[attr-defined]
        for index, sizes in enumerate(config.espalier_layers):
            own = copy.deepcopy(config)
            for name, value in sizes.items():
                setattr(own, name, value)
            layer = type(layers[index])(own, index)
            # one config for all, so that set_attn_implementation reaches every layer
            layer.self_attn.config = config
            if hasattr(layer.mlp, "config"):
                layer.mlp.config = config
            layers[index] = layer
        self.post_init()  # type: ignore[attr-defined]
