"""Progressive shrinking: components that the lasso emptied leave parameters, gradients and optimizer alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from maestro_edge.ordered import Ordered, ordered_layers

__all__ = ["needed_ranks", "shrink", "shrink_to"]


def shrink(model: nn.Module, optimizer: Optimizer, *, below: float = 1e-7) -> dict[str, int]:
    """Keep r_i = #{b : importance_b ≥ below} components a layer, at least one; returns the new ranks.

    The threshold is the paper's (Maestro, ICML 2024, §3.3).
    """
    ranks = needed_ranks(model, below)
    shrink_to(model, optimizer, ranks)
    return ranks


def needed_ranks(model: nn.Module, below: float) -> dict[str, int]:
    """The rank of each layer without the components whose importance is below a threshold."""
    return {
        name: max(1, int((layer.importances() >= below).sum())) for name, layer in ordered_layers(model).items()
    }


def shrink_to(model: nn.Module, optimizer: Optimizer, ranks: Mapping[str, int]) -> bool:
    """Keep the first `ranks[name]` components of each layer; whether any layer got smaller.

    Gradients and all optimizer state shaped like its parameter (momentum, Adam's moments, a master copy) are
    cut with it, so the rest of training is cheaper; the parameters are new objects afterwards.
    """
    smaller = {name: layer for name, layer in ordered_layers(model).items() if ranks[name] < layer.rank}
    for name, layer in smaller.items():
        _cut(layer, optimizer, ranks[name])
    return bool(smaller)


def _cut(layer: Ordered, optimizer: Optimizer, kept: int) -> None:
    before = layer.u, layer.v
    layer.keep(kept)
    for old, new in zip(before, (layer.u, layer.v), strict=True):
        new.grad = None if old.grad is None else old.grad[:kept].clone()
        for group in optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        state = optimizer.state.pop(old, None)
        if state is not None:
            optimizer.state[new] = {
                key: value[:kept].clone()
                if isinstance(value, torch.Tensor) and value.shape == old.shape
                else value
                for key, value in state.items()
            }
