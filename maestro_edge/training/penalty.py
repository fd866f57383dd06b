"""The hierarchical group lasso that orders components and drives unneeded ones to zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maestro_edge.ordered import Ordered

__all__ = ["add_penalty_gradient", "layer_penalty"]

_TINY = 1e-12
"""Tail norms are clamped here: the gradient of a norm at zero is taken as zero instead of NaN."""


@torch.no_grad()
def layer_penalty(layer: Ordered) -> float:
    """Σ_b ‖U_{b:}‖ + ‖V_{b:}‖ of one layer (Maestro, ICML 2024, eq. 4), from its row norms."""
    return sum(float(_tails(factor)[0].sum()) for factor in (layer.u, layer.v))


@torch.no_grad()
def add_penalty_gradient(layers: Mapping[str, Ordered], weights: Mapping[str, float]) -> None:
    """Add λ_i times the gradient of each layer's penalty to its factors' `.grad`.

    The closed form, no autograd: row j of the gradient is W_j · Σ_{b≤j} 1 / ‖W_{b:}‖.
    """
    for name, layer in layers.items():
        for factor in (layer.u, layer.v):
            tails, rows = _tails(factor)
            slope = (tails > _TINY) / tails.clamp_min(_TINY)
            scale = weights[name] * slope.cumsum(0)
            gradient = (scale[:, None] * rows).view_as(factor).to(factor.dtype)
            factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)


def _tails(factor: Tensor) -> tuple[Tensor, Tensor]:
    """(r,) norms ‖W_{b:}‖ and the (r, n) rows they come from."""
    rows = factor.detach().flatten(1)
    squares = rows.double().square().sum(1)
    return squares.flip(0).cumsum(0).flip(0).sqrt().to(rows.dtype), rows
