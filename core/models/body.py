"""Where the layers of a model are while the engine works on them: all on the device, or one at a time.

Algorithms walk over a body and never move weights themselves. `Resident` holds a model in memory; `Streamed`, in
`core.models.streaming`, reads each layer from safetensors files and writes it to the result's.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import nn

from core.models.families import Family, family

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@runtime_checkable
class Body(Protocol):
    """A model whose decoder layers come to the device when they are worked on."""

    model: "PreTrainedModel"
    family: Family
    device: torch.device

    def layers(self) -> list[nn.Module]:
        """Decoder layers in order, wherever their weights are."""
        ...

    def at(self, index: int, *, final: bool = False) -> AbstractContextManager[nn.Module]:
        """Decoder layer `index` with its weights on `device`; changes are kept if `final`, the last visit to it."""
        ...

    def outside(self) -> AbstractContextManager[None]:
        """What is not in the decoder layers (embedding, final norm, head, position tables) on `device` meanwhile."""
        ...


class Resident:
    """A model in memory. whole: it stays on `device` altogether; else a layer is there only while it is worked on."""

    def __init__(self, model: "PreTrainedModel", device: torch.device | str, *, whole: bool = True) -> None:
        self.model = model
        self.family = family(str(getattr(model.config, "model_type", "")))
        self.device = torch.device(device)
        self._whole = whole
        model.to(self.device if whole else torch.device("cpu"))

    def layers(self) -> list[nn.Module]:
        """Decoder layers in order."""
        return self.family.layers(self.model)

    @contextmanager
    def at(self, index: int, *, final: bool = False) -> Iterator[nn.Module]:  # noqa: ARG002 - of the protocol
        """Decoder layer `index` on the device; here changes are always kept."""
        layer = self.layers()[index]
        if self._whole:
            yield layer
            return
        layer.to(self.device)
        try:
            yield layer
        finally:
            layer.to("cpu")

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Embedding, final norm, head and position tables on the device."""
        if self._whole:
            yield
            return
        modules = outside_modules(self.family, self.model)
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module in modules:
                module.to("cpu")


def outside_modules(adapter: Family, model: Any) -> list[nn.Module]:
    """Modules of a model that are not, and do not hold, its decoder layers, each once."""
    layers = {id(module) for layer in adapter.layers(model) for module in layer.modules()}
    inside = {id(layer) for layer in adapter.layers(model)}

    def holds_layers(module: nn.Module) -> bool:
        return any(id(each) in inside for each in module.modules())

    return [m for m in model.modules() if id(m) not in layers and not holds_layers(m)]


def whole_fits(model: Any, device: torch.device | str, passes: int = 0) -> bool:
    """Whether a model and `passes` bytes of what calibration adds leave a third of the device's free memory unused."""
    device = torch.device(device)
    if device.type != "cuda":
        return True
    weights = sum(each.numel() * each.element_size() for each in model.parameters() if not each.is_cuda)
    free, _total = torch.cuda.mem_get_info(device)
    return bool(1.5 * (weights + passes) <= free)
