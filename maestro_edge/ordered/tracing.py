"""trace(): which layers with weights a network calls, in which order, on inputs of which size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maestro_edge.errors import ModelError
from maestro_edge.ordered.dense import is_transposed_linear, symmetric_padding
from maestro_edge.ordered.factors import Factors
from maestro_edge.ordered.layers import (
    Ordered,
    OrderedConv1d,
    OrderedConv2d,
    OrderedEmbedding,
    OrderedLinear,
    OrderedSpatialConv2d,
)
from maestro_edge.ordered.modes import evaluating
from maestro_edge.values import Layer, LayerSpec, Network

__all__ = ["trace"]

_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_NORM = {F.batch_norm, torch.batch_norm}


class _Fusion(TorchFunctionMode):
    """Follows a layer's output through BatchNorm into ReLU, the chain every runtime fuses into the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.producer: dict[int, int] = {}
        self.fused: set[int] = set()
        self.alive: list[Tensor] = []  # ids are only unique while the tensors live

    def produced(self, output: Tensor, call: int) -> None:
        self.producer[id(output)] = call
        self.alive.append(output)

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        call = self.producer.get(id(args[0])) if args else None
        if call is not None and func in _RELU:
            self.fused.add(call)
        elif call is not None and result is args[0]:
            del self.producer[id(result)]  # changed in place, as by `y += x`: no longer the layer's output
        elif call is not None and func in _NORM:
            self.produced(result, call)
        return result


@torch.no_grad()
def trace(model: nn.Module, inputs: tuple[Tensor, ...], *, name: str = "model") -> Network:
    """Run `inputs` once in eval mode and note every call of a Linear or convolution with its LayerSpec.

    An Embedding is noted when it is ordered: a dense one only looks up, and no rank changes what that takes.

    Raises:
        ModelError: the model does not run on `inputs`, or calls an ordered layer more than once.
    """
    calls: list[tuple[str, nn.Module, Tensor]] = []
    fusion = _Fusion()

    def note(layer_name: str, module: nn.Module, received: tuple[Any, ...], named: Any, output: Tensor) -> None:
        fusion.produced(output, len(calls))
        calls.append((layer_name, module, received[0] if received else next(iter(named.values()))))

    hooks = [
        module.register_forward_hook(
            lambda module, x, named, y, layer=layer: note(layer, module, x, named, y), with_kwargs=True
        )
        for layer, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | Factors) or is_transposed_linear(module)
    ]
    try:
        with evaluating(model), fusion:
            model(*inputs)
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError) as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{name} does not run on inputs of shape {shapes}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
    _refuse_repeats(calls)
    layers = tuple(
        Layer(name=layer, spec=_spec(module, x, call in fusion.fused), ordered=isinstance(module, Ordered))
        for call, (layer, module, x) in enumerate(calls)
    )
    dense = {name: module for name, module, _ in calls}
    counted = sum(p.numel() for module in dense.values() for p in module.parameters())
    return Network(name=name, layers=layers, other_params=sum(p.numel() for p in model.parameters()) - counted)


def _refuse_repeats(calls: list[tuple[str, nn.Module, Tensor]]) -> None:
    times = Counter(name for name, module, _ in calls if isinstance(module, Ordered))
    for name, count in times.items():
        if count > 1:
            raise ModelError(
                f"layer {name!r} is called {count} times in one forward: leave it dense with where=, "
                "one rank cannot serve two places"
            )


def _spec(module: nn.Module, x: Tensor, relu: bool) -> LayerSpec:
    return LayerSpec.model_validate(
        {
            **_shape(module, x),
            "batch": x.shape[0],
            "bias": getattr(module, "bias", None) is not None,
            "activation": "relu" if relu else "none",
        }
    )


def _shape(module: nn.Module, x: Tensor) -> dict[str, Any]:
    if isinstance(module, OrderedEmbedding):
        sizes = {"in_channels": module.num_embeddings, "out_channels": module.embedding_dim}
        return {"kind": "embedding", **sizes, "input_size": tuple(x.shape[1:])}
    if isinstance(module, nn.Conv1d | nn.Conv2d | OrderedConv1d | OrderedConv2d | OrderedSpatialConv2d):
        flat = isinstance(module, nn.Conv1d | OrderedConv1d)
        padding = symmetric_padding(module) if isinstance(module, nn.Conv1d | nn.Conv2d) else module.padding
        spatial = isinstance(module, OrderedSpatialConv2d)
        return {
            "kind": "conv1d" if flat else "conv2d",
            "in_channels": module.in_channels,
            "out_channels": module.out_channels,
            "kernel": (*module.kernel_size, 1)[:2],
            "stride": (*module.stride, 1)[:2],
            "padding": (*padding, 0)[:2],
            "dilation": (*module.dilation, 1)[:2],
            "groups": module.groups,
            "input_size": tuple(x.shape[2:]),
            "factors": "spatial" if spatial else "channel",
        }
    if isinstance(module, nn.Linear | OrderedLinear):
        inputs, outputs = module.in_features, module.out_features
    else:  # the Conv1D of transformers, (in, out)
        inputs, outputs = module.weight.shape  # type: ignore[misc]
    return {"kind": "linear", "in_channels": inputs, "out_channels": outputs, "input_size": tuple(x.shape[1:-1])}
