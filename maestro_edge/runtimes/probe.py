"""A probe: one layer at one rank, as a module of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maestro_edge.values import LayerSpec, Rank

__all__ = ["probe_input_shape", "probe_module"]


def probe_input_shape(spec: LayerSpec) -> tuple[int, ...]:
    """(N, C, H, W) or (N, C, L) of a convolution's input, (N, ..., features) of a linear layer's, (N, ...) ids."""
    if spec.kind == "embedding":
        return (spec.batch, *spec.input_size)
    if spec.kind == "linear":
        return (spec.batch, *spec.input_size, spec.in_channels)
    return (spec.batch, spec.in_channels, *spec.input_size)


def probe_module(spec: LayerSpec, rank: Rank) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The layer as stock modules with random weights, and an example input."""
    *first, last = spec.parts(rank)
    layers: list[nn.Module]
    if spec.factors == "gauge":
        layers = [
            _SideBySide(_stock(first[0], bias=True), _stock(last, bias=True), -1 if spec.kind == "linear" else 1)
        ]
    else:
        layers = [*(_stock(part, bias=False) for part in first), _stock(last, bias=True)]
    if spec.activation == "relu":
        layers.append(nn.ReLU())
    module = nn.Sequential(*layers).eval()
    if spec.kind == "embedding":
        return module, (torch.randint(spec.in_channels, probe_input_shape(spec)),)
    example = torch.randn(probe_input_shape(spec))
    if spec.kind == "conv2d":
        # Runtimes compute in NHWC; a contiguous input would bill two transposes to the layer.
        example = example.contiguous(memory_format=torch.channels_last)
    return module, (example,)


class _SideBySide(nn.Module):
    """What `ordered.Gauge` computes where outputs need no order; runtimes do not know ordered layers."""

    def __init__(self, first: nn.Module, second: nn.Module, dim: int) -> None:
        super().__init__()
        self.first, self.second, self.dim = first, second, dim

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return torch.cat((z, self.second(z)), self.dim)


def _stock(part: LayerSpec, *, bias: bool) -> nn.Module:
    """One layer; the last has a bias even where the network's has not, as a norm behind it folds into one."""
    if part.kind == "embedding":
        return nn.Embedding(part.in_channels, part.out_channels)
    if part.kind == "linear":
        return nn.Linear(part.in_channels, part.out_channels, bias=bias)
    sizes = part.in_channels, part.out_channels
    if part.kind == "conv1d":
        edges = (part.kernel[0], part.stride[0], part.padding[0], part.dilation[0])
        return nn.Conv1d(*sizes, *edges, part.groups, bias)
    return nn.Conv2d(*sizes, part.kernel, part.stride, part.padding, part.dilation, part.groups, bias)
