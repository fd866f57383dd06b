"""order() turns stock layers into ordered ones, cut() turns them back into stock layers of chosen ranks."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maestro_edge.errors import ModelError
from maestro_edge.ordered.attention import separate
from maestro_edge.ordered.choices import Choice, Where, attentions_of, explain
from maestro_edge.ordered.dense import matrices, spatial_matrix
from maestro_edge.ordered.gauge import gauged, has_gauge
from maestro_edge.ordered.layers import (
    Ordered,
    OrderedConv1d,
    OrderedConv2d,
    OrderedEmbedding,
    OrderedLinear,
    OrderedSpatialConv2d,
)
from maestro_edge.ordered.start import output_moments, svd_start, whitened_start
from maestro_edge.values import DENSE, Rank

__all__ = ["Choice", "at_ranks", "cut", "explain", "order", "ordered_layers", "use_ranks"]


def order(
    model: nn.Module,
    *,
    where: Where | None = None,
    calibration: Iterable[Tensor] | None = None,
    spatial: Where | None = None,
) -> nn.Module:
    """A copy of `model` whose chosen layers are ordered; it computes the same function.

    `where` is a predicate `(name, module) -> bool`, asked for every layer that can be ordered (what explain()
    lists without a reason; the others are skipped), or the exact names of layers, each of which must be one;
    naming also orders frozen layers, whose factors stay frozen. By default it is every Linear and convolution
    that a rank above 16 can make cheaper. nn.MultiheadAttention with a chosen projection is first separated
    into Linears. `spatial`, a predicate or names likewise, picks the chosen Conv2ds that become a pair of k x 1
    and 1 x k instead of k x k and 1 x 1. With `calibration` batches the start is the activation-whitened SVD,
    otherwise, and for spatial pairs, the balanced SVD.

    Raises:
        ModelError: no layer can be ordered, a named one cannot be, one has weights that are not numbers, or
            calibration does not reach one.
    """
    chosen = [choice.name for choice in explain(model, where=where) if choice.ordered]
    if not chosen:
        raise ModelError("no layer of this model can be ordered: see explain(model) for the reason of each")
    copied = separate(_copied(model), attentions_of(model, chosen))
    layers = {name: copied.get_submodule(name) for name in chosen}
    _refuse_not_numbers(layers)
    pairs = _spatial(layers, spatial)
    seen = {name: layer for name, layer in layers.items() if name not in pairs}
    moments = output_moments(copied, seen, calibration) if calibration is not None and seen else {}
    for name, layer in layers.items():
        made = _spatial_pair(layer) if name in pairs else _ordered(layer, moments.get(name))
        copied = _replace(copied, name, made.train(layer.training))
    return copied


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ModelError(
            "the model cannot be copied: it keeps a tensor computed with gradients, as a cache, pruning or "
            "weight_norm does: run it under torch.no_grad(), or make them permanent, before it is ordered or cut"
        ) from error


def _refuse_not_numbers(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if not torch.isfinite(matrices(layer)).all():
            raise ModelError(
                f"layer {name!r} has weights that are NaN or infinite: load others, or leave it dense"
            )


def _spatial(layers: Mapping[str, nn.Module], spatial: Where | None) -> set[str]:
    possible = {n: layer for n, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups == 1}
    if spatial is None:
        return set()
    if callable(spatial):
        return {name for name, layer in possible.items() if spatial(name, layer)}
    named = {spatial} if isinstance(spatial, str) else set(spatial)
    for name in sorted(named - set(possible)):
        raise ModelError(f"layer {name!r} cannot become a spatial pair: it is no chosen Conv2d of one group")
    return named


def _spatial_pair(layer: nn.Module) -> Ordered:
    assert isinstance(layer, nn.Conv2d)
    return OrderedSpatialConv2d(layer, *svd_start(spatial_matrix(layer)))


def _ordered(layer: nn.Module, moment: Tensor | None) -> Ordered:
    weights = matrices(layer)
    u, v = svd_start(weights) if moment is None else whitened_start(weights, moment)
    if isinstance(layer, nn.Conv1d):
        return OrderedConv1d(layer, u, v)
    if isinstance(layer, nn.Conv2d):
        return OrderedConv2d(layer, u, v)
    return OrderedEmbedding(layer, u, v) if isinstance(layer, nn.Embedding) else OrderedLinear(layer, u, v)


def cut(model: nn.Module, ranks: Mapping[str, Rank], *, gauge: Collection[str] = ()) -> nn.Module:
    """A copy that holds only stock torch layers: each ordered layer at its rank, or folded to one dense layer.

    A layer that is not named, is "dense", or has a rank at or above break-even m n / (m + n) becomes one
    layer; below, it becomes two thin ones. One named in `gauge` becomes two layers side by side at every rank
    below m and n (ordered/gauge.py); it must be a Linear, or a convolution of one group, with a rank.
    BatchNorm statistics are those of the uncut network: recalibrate. Attention that order() separated stays
    separate: a module around stock Linears.

    Raises:
        ModelError: a name is not an ordered layer, a rank is not between 1 and the layer's, or a layer has no
            gauge form.
    """
    layers = ordered_layers(model)
    check_ranks(layers, ranks)
    _check_gauge(layers, ranks, gauge)
    copied = _copied(model)
    for name in layers:
        layer = copied.get_submodule(name)
        assert isinstance(layer, Ordered)
        rank = ranks.get(name, DENSE)
        components = layer.rank if rank == DENSE else rank
        if name in gauge:
            stock: nn.Module = _asked_as_one(gauged(layer.thin(components)), layer)
        else:
            folded = rank == DENSE or layer.above_break_even(components)
            stock = layer.fold(components) if folded else _asked_as_one(layer.thin(components), layer)
        copied = _replace(copied, name, stock.train(layer.training))
    return copied


_ASKED = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "dilation")


def _asked_as_one(pair: nn.Module, layer: Ordered) -> nn.Module:
    """Let models find on the two layers what they ask of one: its weight's type (ViT), its stride (MobileNet).

    Past nn.Module's own setattr, which would register the first layer's weight a second time.
    """
    pair.__dict__["weight"] = next(pair.children()).weight
    pair.__dict__.update({name: getattr(layer, name) for name in _ASKED if hasattr(layer, name)})
    return pair


def _check_gauge(layers: Mapping[str, Ordered], ranks: Mapping[str, Rank], gauge: Collection[str]) -> None:
    for name in gauge:
        rank = ranks.get(name, DENSE)
        if rank == DENSE:
            raise ModelError(
                f"layer {name!r} is to be in gauge form but has no rank: name one below its full rank"
            )
        if not has_gauge(layers[name], rank):
            raise ModelError(
                f"layer {name!r} has no gauge form at rank {rank}: it is of Linears and of convolutions of one "
                "group, no spatial pair, at ranks below both sides of their matrix"
            )


def check_ranks(layers: Mapping[str, Ordered], ranks: Mapping[str, Rank]) -> None:
    for name, rank in ranks.items():
        if name not in layers:
            raise ModelError(f"{name!r} is not an ordered layer; the ordered ones are {', '.join(layers)}")
        if rank == DENSE:
            continue
        if type(rank) is not int or not 1 <= rank <= layers[name].rank:
            raise ModelError(f"layer {name!r} has ranks 1 to {layers[name].rank} or dense, not {rank!r}")


def _replace(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
    return model


def ordered_layers(model: nn.Module) -> dict[str, Ordered]:
    """The ordered layers of a model by name, in the order they were defined."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Ordered)}


def use_ranks(model: nn.Module, ranks: Mapping[str, Rank]) -> None:
    """Let the next forwards use these ranks; a layer that is not named, or dense, uses all its components.

    Raises:
        ModelError: a name is not an ordered layer, or a rank is not between 1 and the layer's.
    """
    layers = ordered_layers(model)
    check_ranks(layers, ranks)
    for name, layer in layers.items():
        rank = ranks.get(name, DENSE)
        layer.use(None if rank == DENSE else rank)


@contextmanager
def at_ranks(model: nn.Module, ranks: Mapping[str, Rank]) -> Iterator[nn.Module]:
    """The model itself at these ranks inside the block, at what it used before after it."""
    before = {layer: layer.active_rank for layer in ordered_layers(model).values()}
    use_ranks(model, ranks)
    try:
        yield model
    finally:
        for layer, rank in before.items():
            layer.use(rank)
