"""A cancel is noticed at the next batch, whatever is being done: nothing runs twice between two looks."""

from typing import Any

import pytest
import torch

from core.errors import Cancelled
from core.experiment import Pruning
from core.models.sizes import Architecture
from core.pruning.head import _LOGITS_AT_ONCE
from core.pruning.prune import job_of, prune, resident
from core.pruning.registry import methods
from core.pruning.scan import Scan

SOME: dict[str, Any] = {"layers": (1, 2)}
FOR_KIND: dict[str, dict[str, Any]] = {"mask": SOME, "width": {"round_to": 1, **SOME}, "depth": SOME, "hidden": {}}
MORE: list[dict[str, Any]] = [
    {"method": "wanda", "allocation": "owl", **SOME},
    {"method": "taylor", "allocation": "measured", "round_to": 1, **SOME},
    {"method": "wanda_structured", "allocation": "measured", "reconstruct": True, "round_to": 1, **SOME},
    {"method": "l2", "reconstruct": True, "round_to": 1, **SOME},
    {"method": "obs", "options": {"metric": "identity", "round": 1}, "round_to": 1, **SOME},
]
CASES = [{"method": each.name, **FOR_KIND[each.kind]} for each in methods().values() if each.calibrated({})] + MORE


class Watch:
    """Counts passes of a batch through a layer's beginning or the head since somebody last looked for a cancel."""

    def __init__(self, model: Any) -> None:
        self.since, self.most, self.looks = 0, 0, 0
        for module in (*(layer.input_layernorm for layer in model.model.layers), model.lm_head):
            module.register_forward_hook(self._passed)

    def _passed(self, *_: Any) -> None:
        self.since += 1
        self.most = max(self.most, self.since)

    def look(self, *_: Any) -> None:
        self.since = 0
        self.looks += 1


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setitem(_LOGITS_AT_ONCE, "cpu", 96 * 5)  # logits of five positions at once: three pieces a window
    return torch.randint(0, 96, (3, 12), generator=torch.Generator().manual_seed(0))


def pruning(fields: dict[str, Any]) -> Pruning:
    return Pruning(**{"ratio": 0.5, "calibration": {"batch_size": 1}, **fields})


@pytest.mark.parametrize("fields", CASES, ids=lambda fields: "-".join(str(value) for value in fields.values()))
def test_between_two_batches_of_a_cut_somebody_looks(model: Any, windows: torch.Tensor, fields: dict[str, Any]) -> None:
    watch, architecture = Watch(model), Architecture.from_config(model.config.to_dict())
    looks = {"calibrate_progress": watch.look, "progress": watch.look, "tick": watch.look}
    prune(model, pruning(fields), architecture=architecture, windows=windows, seed=0, device="cpu", **looks)
    assert watch.looks > 0
    assert watch.most == 1


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "taylor", "wanda_structured", "block_influence"])
def test_between_two_batches_of_a_scan_somebody_looks(model: Any, windows: torch.Tensor, method: str) -> None:
    watch, architecture = Watch(model), Architecture.from_config(model.config.to_dict())
    fields = {"method": method, **FOR_KIND[methods()[method].kind]}
    job = job_of(
        resident(model, "cpu", None), pruning(fields), architecture=architecture, windows=windows, seed=0,
        calibrate_progress=watch.look, tick=watch.look,
    )  # fmt: skip
    with torch.no_grad():
        Scan(job, windows, by_part=True, tell=watch.look).run(lambda _layer, _rows: None)
    assert watch.most == 1


def test_a_cancel_asked_in_the_middle_of_the_losses_of_a_scan_ends_it_there(model: Any, windows: torch.Tensor) -> None:
    architecture, heads = Architecture.from_config(model.config.to_dict()), [0]

    def tick() -> None:
        if heads[0] == 2:  # of nine pieces: three windows, three pieces each
            raise Cancelled

    body, cut = resident(model, "cpu", None), Pruning(method="magnitude", ratio=0.5)
    job = job_of(body, cut, architecture=architecture, windows=None, seed=0, tick=tick)
    model.lm_head.register_forward_hook(lambda *_: heads.__setitem__(0, heads[0] + 1))
    with torch.no_grad(), pytest.raises(Cancelled):
        Scan(job, windows).run(lambda _layer, _rows: None)
    assert heads == [2]
