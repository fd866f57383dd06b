"""A probe: one layer at one rank, as a module of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maestro_edge.values import DENSE, LayerSpec, Rank

__all__ = ["probe_input_shape", "probe_module"]


def probe_input_shape(spec: LayerSpec) -> tuple[int, ...]:
    """(N, C, H, W) of a convolution's input, (N, ..., features) of a linear layer's."""
    if spec.kind == "conv2d":
        return (spec.batch, spec.in_channels, *spec.input_size)
    return (spec.batch, *spec.input_size, spec.in_channels)


def probe_module(spec: LayerSpec, rank: Rank) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The layer as stock modules with random weights, and an example input."""
    layers: list[nn.Module] = []
    if spec.kind == "linear":
        if rank == DENSE:
            layers = [nn.Linear(spec.in_channels, spec.out_channels)]
        else:
            layers = [nn.Linear(spec.in_channels, rank, bias=False), nn.Linear(rank, spec.out_channels)]
    else:
        channels = spec.out_channels if rank == DENSE else rank
        layers = [
            nn.Conv2d(
                spec.in_channels,
                channels,
                spec.kernel,
                spec.stride,
                spec.padding,
                spec.dilation,
                spec.groups,
                bias=rank == DENSE,
            )
        ]
        if rank != DENSE:
            layers.append(nn.Conv2d(rank, spec.out_channels, 1))
    if spec.activation == "relu":
        layers.append(nn.ReLU())
    module = nn.Sequential(*layers).eval()
    example = torch.randn(probe_input_shape(spec))
    if spec.kind == "conv2d":
        # Runtimes compute in NHWC; a contiguous input would bill two transposes to the layer.
        example = example.contiguous(memory_format=torch.channels_last)
    return module, (example,)
