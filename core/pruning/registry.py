"""The pruning methods there are. A method is one decorated function in a file of its own under `methods/`.

    @register(name="wanda", title="Wanda", kind="mask", needs={"inputs"}, compare="row", summary=…, paper=…, url=…)
    def wanda(weight, inputs, options, generator): ...

Nothing here imports torch, so that pages can list methods; method files import it inside their functions.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from core.errors import UnknownNameError

Kind = Literal["mask", "width", "hidden", "depth"]
Need = Literal["inputs", "moments", "gram", "gradients", "fisher", "curvature", "blocks", "loss"]
Compare = Literal["row", "matrix"]


class Options(BaseModel):
    """Base of a method's own options: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Method:
    """One pruning method and what a person should know of it.

    `needs` says what calibration must gather: `inputs` (norms of each linear layer's inputs), `moments` (their variance
    too), `gram` (XᵀX too), `gradients` (of the mean next-token loss, summed over the calibration set), `fisher` (mean
    over samples of squared gradients), `curvature` (XᵀX of what o and down read, and the same of the loss's gradients
    at what they make), `blocks` (hidden states around each decoder layer), `loss` (of the model without
    some layers). It may depend on the options, and so may whether the seed decides (`drawn`). `compare` is the group in
    which a mask method ranks weights: each output row, or the matrix. A mask method that `rewrites` returns new weights
    in place of scores. Scores of a width method that are `standardised` compare between layers as they are.
    """

    name: str
    title: str
    summary: str
    paper: str
    url: str
    kind: Kind
    function: Callable[..., Any] = field(compare=False)
    needs: frozenset[Need] | Callable[[Any], frozenset[Need]] = frozenset()
    drawn: bool | Callable[[Any], bool] = False
    options: type[Options] = Options
    compare: Compare = "matrix"
    rewrites: bool = False
    standardised: bool = False

    @property
    def seeded(self) -> bool:
        """Whether the seed decides what is cut, with some options at least."""
        return self.drawn is not False

    def seeded_for(self, options: Mapping[str, Any]) -> bool:
        """Whether the seed decides what is cut with these options."""
        return self.drawn(self.options(**options)) if callable(self.drawn) else self.drawn

    def needs_for(self, options: Mapping[str, Any]) -> frozenset[Need]:
        """What calibration must gather for these options."""
        if callable(self.needs):
            return self.needs(self.options(**options))
        return self.needs

    def calibrated(self, options: Mapping[str, Any]) -> bool:
        """Whether the method reads calibration text at all."""
        return bool(self.needs_for(options))


_methods: dict[str, Method] = {}


def register(
    *,
    name: str,
    title: str,
    summary: str,
    paper: str,
    url: str,
    kind: Kind,
    needs: Iterable[Need] | Callable[[Any], frozenset[Need]] = (),
    seeded: bool | Callable[[Any], bool] = False,
    options: type[Options] = Options,
    compare: Compare = "matrix",
    rewrites: bool = False,
    standardised: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as a pruning method. A name taken twice is an error."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        taken = _methods.get(name)
        if taken is not None:
            raise ValueError(
                f"the pruning method {name!r} is registered twice: {taken.function.__module__}, {function.__module__}"
            )
        gathered = needs if callable(needs) else frozenset(needs)
        _methods[name] = Method(
            name,
            title,
            summary,
            paper,
            url,
            kind,
            function,
            gathered,
            seeded,
            options,
            compare,
            rewrites,
            standardised,
        )
        return function

    return decorate


@cache
def _import_methods() -> None:
    from core.pruning import methods as package

    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")


def methods() -> dict[str, Method]:
    """All registered methods by name: masks, width, hidden, depth. A file that fails to import raises."""
    _import_methods()
    order = {kind: place for place, kind in enumerate(get_args(Kind))}
    return dict(sorted(_methods.items(), key=lambda item: (order[item[1].kind], item[0])))


def get(name: str) -> Method:
    """The method registered under `name`; UnknownNameError lists what there is."""
    _import_methods()
    if name not in _methods:
        raise UnknownNameError("pruning method", name, methods())
    return _methods[name]
