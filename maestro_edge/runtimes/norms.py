"""BatchNorms folded into layers so that plans of one network still hold the same weights.

Plans differ in their BatchNorm statistics: folded as usual, y = s (W x) + b has other weights in each plan, though
W is the same. Here all plans fold the scale s of the smallest plan that has the layer into it, and each of the
others multiplies the outputs by what its own scale is of that one. γ cancels in that ratio √(σ₁² + ε) / √(σ² + ε),
so it is positive and may stand behind a ReLU, which kernels fuse into the layer in front.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from maestro_edge.runtimes.conversion import contiguous_copy

__all__ = ["Folded", "fold_norms", "parameter", "set_parameter"]

_ATEN = torch.ops.aten
_LAYERS = {_ATEN.conv1d.default, _ATEN.conv2d.default, _ATEN.linear.default}
_RELUS = {_ATEN.relu.default, _ATEN.relu_.default}


class Folded(NamedTuple):
    """A model without BatchNorms, and what the outputs of some layers must still be multiplied by, (m,).

    `ratios` are by the layer's node; what follows such a layer is right once multiply() put the products in, or
    the exporter of a format did.
    """

    graph: fx.GraphModule
    ratios: dict[fx.Node, Tensor]

    def multiply(self) -> fx.GraphModule:
        """The graph with the products put in, once: behind a ReLU where the layer has one."""
        for layer, ratio in self.ratios.items():
            users = list(layer.users)
            last = users[0] if len(users) == 1 and users[0].target in _RELUS else layer
            sizes = 0 if layer.target is _ATEN.linear.default else 2 if layer.target is _ATEN.conv2d.default else 1
            with self.graph.graph.inserting_after(last):
                product = self.graph.graph.call_function(_ATEN.mul.Tensor, (last,))
            last.replace_all_uses_with(product)
            factor = ratio.reshape(-1, *(1 for _ in range(sizes)))
            product.args = (last, set_parameter(self.graph, product, f"{layer.name}_ratio", factor))
        return fx.GraphModule(self.graph, self.graph.graph)


class _Normed(NamedTuple):
    """A layer and the BatchNorm behind it, in one plan; shift, scale and deviation are (m,), in float64."""

    layer: fx.Node
    norm: fx.Node
    weight: Tensor
    shift: Tensor
    scale: Tensor
    deviation: Tensor


def fold_norms(models: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], *, columns: bool) -> dict[str, Folded]:
    """The models (stock layers, eval mode) as graphs without the BatchNorms behind Linears and convolutions.

    Layers of one name whose weights are equal get equal weights; with `columns` also those of which one's are the
    first columns of the other's, (m, r) or (m, r, 1, 1), as in the second layer of a pair.
    """
    graphs = {name: _traced(model, inputs) for name, model in models.items()}
    ratios: dict[str, dict[fx.Node, Tensor]] = {name: {} for name in models}
    found = {name: _normed(graph) for name, graph in graphs.items()}
    for layer in dict.fromkeys(layer for each in found.values() for layer in each):
        members = {name: each[layer] for name, each in found.items() if layer in each}
        for name, base in _bases(members, columns=columns).items():
            own = members[name]
            ratio = base.deviation / own.deviation
            _fold(graphs[name], own, base.scale, own.shift / ratio)
            if not torch.equal(base.deviation, own.deviation):
                ratios[name][own.layer] = ratio.to(own.weight.dtype)
    for graph in graphs.values():
        graph.graph.eliminate_dead_code()
    return {name: Folded(fx.GraphModule(graph, graph.graph), ratios[name]) for name, graph in graphs.items()}


def _traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    module = torch.export.export(contiguous_copy(model), inputs).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def _normed(graph: fx.GraphModule) -> dict[str, _Normed]:
    """By the name of the layer's weight, those that are used once and have a BatchNorm as their only reader."""
    nodes = list(graph.graph.nodes)
    uses = Counter(node.target for node in nodes if node.op == "get_attr" for _ in node.users)
    found = {}
    for norm in nodes:
        if norm.target is not _ATEN.batch_norm.default or norm.args[5]:
            continue  # one that takes its statistics from each batch folds into nothing
        layer = norm.args[0]
        if layer.target in _LAYERS and len(layer.users) == 1 and uses[layer.args[1].target] == 1:
            found[layer.args[1].target] = _read(graph, layer, norm)
    return found


def _read(graph: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> _Normed:
    def double(node: Any, otherwise: float) -> Tensor:
        return torch.tensor(otherwise).double() if node is None else parameter(graph, node).double()

    _, gamma, beta, mean, variance, _, _, epsilon, *_ = _arguments(norm)
    bias = dict(enumerate(_arguments(layer))).get(2)
    deviation = (parameter(graph, variance).double() + epsilon).sqrt()
    scale = double(gamma, 1) / deviation
    shift = (double(bias, 0) - parameter(graph, mean).double()) * scale + double(beta, 0)
    return _Normed(layer, norm, parameter(graph, layer.args[1]), shift, scale, deviation)


def _arguments(node: fx.Node) -> list[Any]:
    return list(node.args)


def parameter(graph: fx.GraphModule, node: Any) -> Tensor:
    """The constant that a get_attr node reads."""
    holder, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(holder), name)
    assert isinstance(value, Tensor)
    return value.detach()


def set_parameter(graph: fx.GraphModule, user: fx.Node, name: str, value: Tensor) -> fx.Node:
    """A new constant in front of its user."""
    graph.register_parameter(name, nn.Parameter(value.contiguous(), requires_grad=False))
    with graph.graph.inserting_before(user):
        return graph.graph.get_attr(name)


def _bases(members: Mapping[str, _Normed], *, columns: bool) -> dict[str, _Normed]:
    """By plan the layer whose scale it folds: the smallest of those that hold the same weights."""
    groups: list[list[_Normed]] = []
    found = {}
    for name, member in sorted(members.items(), key=lambda pair: pair[1].weight.numel()):
        group = next((each for each in groups if _holds(member.weight, each[-1].weight, columns=columns)), [])
        if not group:
            groups.append(group)
        group.append(member)
        found[name] = group[0]
    return found


def _holds(large: Tensor, small: Tensor, *, columns: bool) -> bool:
    if large.shape == small.shape:
        return torch.equal(large, small)
    thin = large.shape[0] == small.shape[0] and large[0, 0].numel() == small[0, 0].numel() == 1
    return columns and thin and torch.equal(large[:, : small.shape[1]], small)


def _fold(graph: fx.GraphModule, own: _Normed, scale: Tensor, shift: Tensor) -> None:
    """Replace layer and norm by a layer; its constants are called the same in every plan."""
    layer, like = own.layer, own.weight
    name = str(layer.args[1].target).replace(".", "_")  # type: ignore[union-attr]
    weight = (like.double() * scale.reshape(-1, *(1 for _ in like.shape[1:]))).to(like.dtype)
    constants = (
        set_parameter(graph, layer, f"{name}_folded", weight),
        set_parameter(graph, layer, f"{name}_shift", shift.to(like.dtype)),
    )
    layer.args = (layer.args[0], *constants, *layer.args[3:])
    own.norm.replace_all_uses_with(layer)
    graph.graph.erase_node(own.norm)
