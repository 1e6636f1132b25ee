"""Cutting rows and columns out of decoder layers, and keeping the books that go with them.

Invariant, held by tests: setting the removed heads' and channels' weights to zero, and cutting them, give the same
logits.
KV group g owns query heads g·rep … (g+1)·rep − 1, where rep = n_heads / n_kv_heads; head_dim never changes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from core.models.families import Family
from core.models.sizes import PER_LAYER_KEY, Architecture, LayerSizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Kept:
    """What stays of one layer: ascending int64 indices into its present heads and channels; None leaves the part whole.

    Every kept KV head keeps the same number of query heads, and no query head outlives its KV head.
    """

    query_heads: Tensor | None = None
    kv_heads: Tensor | None = None
    channels: Tensor | None = None


def cut_layer(model: "PreTrainedModel", family: Family, index: int, kept: Kept) -> None:
    """Cut decoder layer `index` down to what is kept: q, k, v rows and o columns; gate, up rows and down columns.

    Biases of cut rows go too. The config still says the old sizes until `finish`. ValueError if `kept` is not a
    possible layer.
    """
    layer = family.layers(model)[index]
    linears, head_dim = family.linears(layer), model.config.head_dim
    before = family.sizes(layer, head_dim)
    query_heads, kv_heads = _attention_indices(kept, before)
    channels = _indices("channels", kept.channels, before.mlp)
    with torch.no_grad():
        if query_heads is not None and kv_heads is not None:
            queries = expand(query_heads, head_dim)
            keys = expand(kv_heads, head_dim)
            _keep_rows(linears["q"], queries)
            _keep_rows(linears["k"], keys)
            _keep_rows(linears["v"], keys)
            _keep_columns(linears["o"], queries)
        if channels is not None:
            _keep_rows(linears["gate"], channels)
            _keep_rows(linears["up"], channels)
            _keep_columns(linears["down"], channels)
    family.keep_books(layer, family.sizes(layer, head_dim))


def finish(model: "PreTrainedModel", family: Family) -> Architecture:
    """Write the sizes that the weights have now into `model.config`; returns the architecture they make.

    Sizes that a stock class holds go to the top level; others go to `espalier_layers`, and the top level keeps the
    counts it had (config classes check them against hidden_size). head_dim is always explicit.
    """
    config = model.config
    head_dim = int(config.head_dim)
    sizes = tuple(family.sizes(layer, head_dim) for layer in family.layers(model))
    architecture = Architecture.from_config(_plain(config)).with_layers(sizes)
    config.head_dim = head_dim
    if family.layout(architecture) == "stock":
        first = sizes[0]
        config.num_attention_heads, config.num_key_value_heads = first.heads, first.kv_heads
        config.intermediate_size = first.mlp
        if hasattr(config, PER_LAYER_KEY):
            delattr(config, PER_LAYER_KEY)
    else:
        setattr(config, PER_LAYER_KEY, [layer_entry(each) for each in sizes])
    return architecture


def layer_entry(sizes: LayerSizes) -> dict[str, int]:
    """One entry of `espalier_layers`, under the names that the stock config class has for these sizes."""
    return {
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "intermediate_size": sizes.mlp,
    }


def expand(heads: Tensor, head_dim: int) -> Tensor:
    """Channels of these heads: (n,) → (n · head_dim,), head h owns h·head_dim … (h+1)·head_dim − 1."""
    return (heads[:, None] * head_dim + torch.arange(head_dim, device=heads.device)).reshape(-1)


def _plain(config: object) -> dict[str, object]:
    # a second cut starts from the first one's sizes, which the weights give: the old list is only in the way
    return {key: value for key, value in config.to_dict().items() if key != PER_LAYER_KEY}  # type: ignore[attr-defined]


def _attention_indices(kept: Kept, before: LayerSizes) -> tuple[Tensor | None, Tensor | None]:
    rep = before.heads // before.kv_heads
    kv_heads = _indices("kv_heads", kept.kv_heads, before.kv_heads)
    query_heads = _indices("query_heads", kept.query_heads, before.heads)
    if kv_heads is None and query_heads is None:
        return None, None
    if kv_heads is None:
        kv_heads = torch.arange(before.kv_heads)
    if query_heads is None:
        query_heads = expand(kv_heads, rep)
    share = query_heads.numel() // kv_heads.numel()
    owners = torch.div(query_heads, rep, rounding_mode="floor")
    if not torch.equal(owners, kv_heads.repeat_interleave(share)):
        raise ValueError(
            f"query heads {query_heads.tolist()} are not the same number for each of the KV heads {kv_heads.tolist()} "
            f"({rep} query heads share a KV head)"
        )
    return query_heads, kv_heads


def _indices(what: str, kept: Tensor | None, n: int) -> Tensor | None:
    if kept is None:
        return None
    kept = kept.detach().to("cpu", torch.int64)
    ascending = kept.dim() == 1 and bool((kept.diff() > 0).all())
    if kept.numel() == 0 or not ascending or int(kept[0]) < 0 or int(kept[-1]) >= n:
        raise ValueError(f"kept {what} must be ascending indices in 0–{n - 1}, at least one; got {kept.tolist()}")
    return kept


def _keep_rows(linear: nn.Linear, rows: Tensor) -> None:
    _replace(linear, "weight", linear.weight, rows, dim=0)
    if linear.bias is not None:
        _replace(linear, "bias", linear.bias, rows, dim=0)
    linear.out_features = rows.numel()


def _keep_columns(linear: nn.Linear, columns: Tensor) -> None:
    _replace(linear, "weight", linear.weight, columns, dim=1)
    linear.in_features = columns.numel()


def _replace(linear: nn.Linear, name: str, old: Tensor, kept: Tensor, dim: int) -> None:
    if kept.numel() == old.shape[dim]:
        return
    new = old.detach().index_select(dim, kept.to(old.device)).contiguous()
    setattr(linear, name, nn.Parameter(new, requires_grad=old.requires_grad))
