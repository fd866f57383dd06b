"""order() turns stock layers into ordered ones, cut() turns them back into stock layers of chosen ranks."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from maestro_edge.errors import ModelError
from maestro_edge.ordered.layers import Ordered, OrderedConv2d, OrderedLinear, symmetric_padding
from maestro_edge.ordered.start import output_moments, svd_start, whitened_start
from maestro_edge.values import DENSE, Rank

__all__ = ["Choice", "at_ranks", "cut", "explain", "order", "ordered_layers", "use_ranks"]

Where = Callable[[str, nn.Module], bool]

_SMALLEST_GAIN = 16
"""A layer that only ranks up to this could speed up stays dense: runtimes compute 16 channels at once, and a
classifier of 10 classes at rank 2 costs the whole network its accuracy."""


@dataclass(frozen=True)
class Choice:
    """Whether a layer becomes ordered; `reason` says why not, and is empty when it does."""

    name: str
    kind: str
    reason: str

    @property
    def ordered(self) -> bool:
        return not self.reason


def order(
    model: nn.Module, *, where: Where | None = None, calibration: Iterable[Tensor] | None = None
) -> nn.Module:
    """A copy of `model` whose chosen Linear and Conv2d layers are ordered; it computes the same function.

    `where(name, module)` chooses; by default every layer that a rank above 16 can make cheaper. With
    `calibration` batches the start is the activation-whitened SVD, otherwise the balanced SVD.

    Raises:
        ModelError: no layer can be ordered, or calibration does not reach one.
    """
    chosen = [choice.name for choice in explain(model, where=where) if choice.ordered]
    if not chosen:
        raise ModelError("no layer of this model can be ordered: see explain(model) for the reason of each")
    copied = copy.deepcopy(model)
    layers = {name: copied.get_submodule(name) for name in chosen}
    moments = {} if calibration is None else output_moments(copied, layers, calibration)
    for name, layer in layers.items():
        copied = _replace(copied, name, _ordered(layer, moments.get(name)).train(layer.training))
    return copied


def _ordered(layer: nn.Module, moment: Tensor | None) -> Ordered:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    weight = layer.weight.flatten(1)
    u, v = svd_start(weight) if moment is None else whitened_start(weight, moment)
    return OrderedLinear(layer, u, v) if isinstance(layer, nn.Linear) else OrderedConv2d(layer, u, v)


def explain(model: nn.Module, *, where: Where | None = None) -> tuple[Choice, ...]:
    """Every Linear and Conv2d (and what holds weights like them), with the reason why it stays dense, if so."""
    weights = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    modules = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    choices = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d | nn.MultiheadAttention | nn.Embedding):
            continue
        reason = _cannot(model, name, module)
        if not reason and modules[id(module)] > 1:
            reason = "shared: the same module has several names"
        elif not reason and weights[id(weight)] > 1:
            reason = "its weight is tied to another layer's"
        elif not reason and not (_gains if where is None else where)(name, module):
            reason = "too small to gain from a lower rank" if where is None else "not chosen"
        choices.append(Choice(name, type(module).__name__, reason))
    return tuple(choices)


def _cannot(model: nn.Module, name: str, module: nn.Module) -> str:
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"a {type(module).__name__} cannot be ordered yet"
    parent = model.get_submodule(name.rpartition(".")[0]) if name else None
    if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
        return "its parent uses the weight without calling the layer"
    if isinstance(module, nn.Linear):
        return ""
    assert isinstance(module, nn.Conv2d)
    if module.groups > 1:
        return "depthwise" if module.groups == module.in_channels else f"grouped ({module.groups} groups)"
    if module.padding_mode != "zeros":
        return f"padding mode {module.padding_mode!r}"
    try:
        symmetric_padding(module)
    except ModelError as error:
        return str(error)
    return ""


def _gains(name: str, module: nn.Module) -> bool:
    assert isinstance(module, nn.Linear | nn.Conv2d)
    m, n = module.weight.flatten(1).shape
    return m * n / (m + n) > _SMALLEST_GAIN


def cut(model: nn.Module, ranks: Mapping[str, Rank]) -> nn.Module:
    """A copy that holds only stock torch layers: each ordered layer at its rank, or folded to one dense layer.

    A layer that is not named, is "dense", or has a rank at or above break-even m n / (m + n) becomes one
    layer; below, it becomes two thin ones. BatchNorm statistics are those of the uncut network: recalibrate.

    Raises:
        ModelError: a name is not an ordered layer, or a rank is not between 1 and the layer's.
    """
    layers = ordered_layers(model)
    check_ranks(layers, ranks)
    copied = copy.deepcopy(model)
    for name in layers:
        layer = copied.get_submodule(name)
        assert isinstance(layer, Ordered)
        rank = ranks.get(name, DENSE)
        components = layer.rank if rank == DENSE else rank
        folded = rank == DENSE or layer.above_break_even(components)
        stock = layer.fold(components) if folded else layer.thin(components)
        copied = _replace(copied, name, stock.train(layer.training))
    return copied


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
