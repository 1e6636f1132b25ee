"""Cutting heads and channels out of decoder layers, whole layers and hidden channels out of a model, and keeping the
books that go with them.

Invariant, held by tests: setting the removed heads' and channels' weights to zero, and cutting them, give the same
logits.
KV group g owns query heads g·rep … (g+1)·rep − 1, where rep = n_heads / n_kv_heads; head_dim never changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.errors import ModelError
from core.models.families import READS_STREAM, WRITES_STREAM, Family, Matrix
from core.models.sizes import PER_LAYER_KEY, Architecture, LayerSizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER_LISTS = ("layer_types", PER_LAYER_KEY)  # of the config: one entry a decoder layer


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
    matrices, head_dim = family.matrices(layer), family.head_dim(model.config)
    before = family.sizes(layer, head_dim)
    query_heads, kv_heads = _attention_indices(kept, before)
    channels = _indices("channels", kept.channels, before.mlp)
    with torch.no_grad():
        if query_heads is not None and kv_heads is not None:
            queries = expand(query_heads, head_dim)
            keys = expand(kv_heads, head_dim)
            _keep_rows_of(matrices, {"q": queries, "k": keys, "v": keys})
            _keep_columns(matrices["o"].linear, queries)
        if channels is not None:
            _keep_rows_of(matrices, {"gate": channels, "up": channels})
            _keep_columns(matrices["down"].linear, channels)
    family.keep_books(layer, family.sizes(layer, head_dim))


def finish(model: "PreTrainedModel", family: Family) -> Architecture:
    """Write the sizes that the weights have now into `model.config`; returns the architecture they make.

    Sizes that a stock class holds go to the top level; others go to `espalier_layers`, and the top level keeps the
    counts it had (config classes check them against hidden_size). head_dim is always explicit.
    """
    config = model.config
    head_dim = family.head_dim(config)
    config.head_dim = head_dim
    sizes = tuple(family.sizes(layer, head_dim) for layer in family.layers(model))
    architecture = Architecture.from_config(_plain(config)).with_layers(sizes)
    if family.layout(architecture) == "stock":
        first = sizes[0]
        config.num_attention_heads, config.num_key_value_heads = first.heads, first.kv_heads
        config.intermediate_size = first.mlp
        if hasattr(config, PER_LAYER_KEY):
            delattr(config, PER_LAYER_KEY)
    else:
        setattr(config, PER_LAYER_KEY, [layer_entry(each) for each in sizes])
    return architecture


def drop_layers(model: "PreTrainedModel", family: Family, removed: Sequence[int]) -> None:
    """Take whole decoder layers out; the others move up, with their numbers and their entries in the config's lists.

    ValueError if `removed` names a layer twice or one that is not there, or leaves none.
    """
    layers, config = family.layers(model), model.config
    n = len(layers)
    gone = set(removed)
    if len(gone) < len(removed) or not gone <= set(range(n)) or len(gone) == n:
        raise ValueError(f"layers to drop must be different numbers in 0–{n - 1}, not all; got {list(removed)}")
    kept = [index for index in range(n) if index not in gone]
    parent, _, name = family.layers_path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(layers[index] for index in kept))
    for number, index in enumerate(kept):
        for module in layers[index].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]
    for key in _LAYER_LISTS:
        entries = getattr(config, key, None)
        if entries is not None:
            setattr(config, key, [entries[index] for index in kept])
    config.num_hidden_layers = len(kept)
    first_sliding = getattr(config, "max_window_layers", None)
    if first_sliding is not None and first_sliding <= n:
        config.max_window_layers = sum(index < first_sliding for index in kept)
    backbone: Any = family.backbone(model)
    if hasattr(backbone, "has_sliding_layers"):
        backbone.has_sliding_layers = "sliding_attention" in config.layer_types


def cut_hidden(model: "PreTrainedModel", family: Family, kept: Tensor) -> None:
    """Cut the residual stream of the whole model down to the channels `kept`, ascending indices (n,).

    Gone are columns of embedding, head and of all that reads the stream, rows and biases of all that writes it, and
    entries of the norms over it, which from now on average over n channels. A tied table is cut once. Embeddings keep
    their scale: where the model multiplies them by √hidden_size, the change goes into the table, and for a tied head
    out of the final norm again (exact but for rounding to the weights' dtype).

    ModelError if the config class does not accept n with the model's heads; ValueError if `kept` is no such set.
    """
    config, head_dim = model.config, family.head_dim(model.config)
    before = int(config.hidden_size)
    indices = _indices("hidden channels", kept, before)
    assert indices is not None
    _check_hidden(config, family, indices.numel())
    embedding, head, norm = family.embedding(model), family.head(model), family.final_norm(model)
    tied = family.tied(model)
    with torch.no_grad():
        for layer in family.layers(model):
            matrices = family.matrices(layer)
            for linear in {id(m.linear): m.linear for role, m in matrices.items() if role in READS_STREAM}.values():
                _keep_columns(linear, indices)
            for role in WRITES_STREAM:
                _keep_rows(matrices[role].linear, indices)
            for each in family.norms(layer):
                _replace(each, "weight", indices, dim=0)
        _replace(norm, "weight", indices, dim=0)
        _replace(embedding, "weight", indices, dim=1)
        if tied:
            head.weight = embedding.weight
        else:
            _replace(head, "weight", indices, dim=1)
        if family.scales_embedding:
            _keep_scale(embedding, norm if tied else None, indices.numel(), family.norm_offset)
    embedding.embedding_dim = head.in_features = indices.numel()  # type: ignore[assignment]
    for module in model.modules():
        if getattr(module, "hidden_size", None) == before:
            module.hidden_size = indices.numel()
    config.head_dim = head_dim
    config.hidden_size = indices.numel()


def _check_hidden(config: Any, family: Family, hidden: int) -> None:
    architecture = Architecture.from_config({**_plain(config), "head_dim": family.head_dim(config)})
    heads = int(config.num_attention_heads)
    if family.accepts(hidden, heads, architecture):
        return
    if architecture.longrope:
        low, high = heads * architecture.head_dim, (heads + 1) * architecture.head_dim - 1
        raise ModelError(
            f"This {family.title} model stretches its positions (longrope), and its config class then rejects a hidden "
            f"size of {hidden} with {heads} heads: only {low}–{high} will do.",
            "Prune heads, MLP channels or layers of this model instead.",
        )
    raise ModelError(
        f"{hidden} hidden channels cannot be saved: the config class of {family.title} wants a multiple of the "
        f"{heads} query heads.",
        f"Keep {hidden // heads * heads or heads} or {hidden // heads * heads + heads} channels.",
    )


def _keep_scale(embedding: Any, tied_norm: Any, hidden: int, offset: float) -> None:
    """Multiply the table by what the module's own scale loses; with a tied head, divide the final norm by it."""
    scale = float(hidden**0.5)
    gain = embedding.scalar_embed_scale / scale
    embedding.weight.copy_(embedding.weight.float() * gain)
    if tied_norm is not None:
        tied_norm.weight.copy_((offset + tied_norm.weight.float()) / gain - offset)
    embedding.scalar_embed_scale = scale
    embedding.embed_scale.fill_(scale)


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


def _keep_rows_of(matrices: Mapping[str, Matrix], kept: Mapping[str, Tensor]) -> None:
    """Cut each role's matrix down to its kept rows; roles that share a linear layer are cut at once."""
    rows: dict[nn.Linear, list[Tensor]] = {}
    for role, indices in kept.items():
        rows.setdefault(matrices[role].linear, []).append(indices + (matrices[role].rows.start or 0))
    for linear, parts in rows.items():
        _keep_rows(linear, torch.cat(parts))


def _keep_rows(linear: nn.Linear, rows: Tensor) -> None:
    _replace(linear, "weight", rows, dim=0)
    if linear.bias is not None:
        _replace(linear, "bias", rows, dim=0)
    linear.out_features = rows.numel()


def _keep_columns(linear: nn.Linear, columns: Tensor) -> None:
    _replace(linear, "weight", columns, dim=1)
    linear.in_features = columns.numel()


def _replace(module: nn.Module, name: str, kept: Tensor, dim: int) -> None:
    old: Tensor = getattr(module, name)
    if kept.numel() == old.shape[dim]:
        return
    new = old.detach().index_select(dim, kept.to(old.device)).contiguous()
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
