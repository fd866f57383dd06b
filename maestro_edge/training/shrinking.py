"""Progressive shrinking: components that the lasso emptied leave parameters and optimizer alike."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from maestro_edge.ordered import Ordered, ordered_layers

__all__ = ["shrink"]


def shrink(model: nn.Module, optimizer: Optimizer, *, below: float = 1e-7) -> dict[str, int]:
    """Keep r_i = #{b : importance_b ≥ below} components a layer, at least one; returns the new ranks.

    The threshold is the paper's (Maestro, ICML 2024, §3.3). Optimizer state shaped like its parameter is cut
    with it, so the rest of training is cheaper.
    """
    ranks = {}
    for name, layer in ordered_layers(model).items():
        kept = max(1, int((layer.importances() >= below).sum()))
        ranks[name] = kept
        if kept < layer.rank:
            _cut(layer, optimizer, kept)
    return ranks


def _cut(layer: Ordered, optimizer: Optimizer, kept: int) -> None:
    before = layer.u, layer.v
    layer.keep(kept)
    for old, new in zip(before, (layer.u, layer.v), strict=True):
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
