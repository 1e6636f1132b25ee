"""LoRA matrices on a pruned model, by peft. On a masked model what was zero stays zero.

There the forward pass uses W + M ⊙ (s·B·A), M the places where W is not zero: what training sees is what the merge
writes. The adapter's files are ordinary ones; loaded by peft itself onto a masked model, they would fill its zeros.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from core.models.families import family

if TYPE_CHECKING:
    from core.experiment import Recovery

PARTS = {
    "all-linear": ("q", "k", "v", "o", "gate", "up", "down"),
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
}


class MaskedLinear(Linear):  # type: ignore[misc]
    """peft's LoRA layer whose update is zero wherever the weight is."""

    def get_delta_weight(self, adapter: str) -> Tensor:
        """M ⊙ (s·B·A), (out, in)."""
        delta: Tensor = super().get_delta_weight(adapter)
        kept: Tensor = self.get_base_layer().weight != 0
        return delta * kept

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W·x + (M ⊙ (s·B·A))·dropout(x), for x (…, in)."""
        if self.disable_adapters or self.merged or kwargs.get("adapter_names") is not None:
            found: Tensor = super().forward(x, *args, **kwargs)
            return found
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.active_adapters:
            if name in self.lora_A:
                delta = self.get_delta_weight(name)
                rows = self.lora_dropout[name](x.to(delta.dtype))
                result = result + F.linear(rows, delta).to(result.dtype)
        return result


def linear_names(model: Any, parts: Iterable[str], layers: Iterable[int] | None = None) -> list[str]:
    """Full names of the linear layers behind these roles in the decoder layers (None: all), each once."""
    adapter = family(model.config.model_type)
    chosen = adapter.layers(model) if layers is None else [adapter.layers(model)[i] for i in layers]
    wanted = {
        id(matrix.linear) for layer in chosen for role, matrix in adapter.matrices(layer).items() if role in parts
    }
    return [name for name, module in model.named_modules() if id(module) in wanted]


def attach(model: Any, choice: "Recovery", *, masked: bool) -> PeftModel:
    """Put fresh LoRA matrices on the model, in place, and freeze everything else. LoRA weights are float32.

    masked: updates keep the zeros of the weights.
    """
    config = LoraConfig(
        r=choice.rank,
        lora_alpha=choice.alpha,
        lora_dropout=choice.dropout,
        target_modules=linear_names(model, PARTS[choice.target_modules]),
        bias="none",
        task_type="CAUSAL_LM",
    )
    if masked:
        config._register_custom_module({nn.Linear: MaskedLinear})
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def merge(model: Any, adapter: Path, choice: "Recovery", *, masked: bool) -> nn.Module:
    """The model with the adapter in `adapter` added to its weights: a plain model again."""
    wrapped = attach(model, choice, masked=masked)
    set_peft_model_state_dict(wrapped, load_peft_weights(str(adapter), device="cpu"))
    merged: nn.Module = wrapped.merge_and_unload()
    return merged
