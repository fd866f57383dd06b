"""The hierarchical group lasso that orders components and drives unneeded ones to zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from maestro_edge.ordered import Ordered

__all__ = ["add_penalty_gradient", "layer_penalty", "shrink_towards_zero"]

_TINY = 1e-12
"""Tail norms are clamped here: the gradient of a norm at zero is taken as zero instead of NaN."""


@torch.no_grad()
def layer_penalty(layer: Ordered) -> float:
    """Σ_b ‖U_{b:}‖ + ‖V_{b:}‖ of one layer (Maestro, ICML 2024, eq. 4), from its row norms."""
    return sum(float(_tails(factor)[0].sum()) for factor in (layer.u, layer.v))


@torch.no_grad()
def add_penalty_gradient(layers: Mapping[str, Ordered], weights: Mapping[str, float]) -> None:
    """Add λ_i times the gradient of each layer's penalty to its factors' `.grad`.

    For loops of your own whose optimizer has no single step size, such as Adam; it never reaches exact zeros.
    The closed form, no autograd: row j of the gradient is W_j · Σ_{b≤j} 1 / ‖W_{b:}‖.
    """
    for name, layer in layers.items():
        for factor in (layer.u, layer.v):
            tails, rows = _tails(factor)
            slope = (tails > _TINY) / tails.clamp_min(_TINY)
            scale = weights[name] * slope.cumsum(0)
            gradient = (scale[:, None] * rows).view_as(factor).to(factor.dtype)
            factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)


@torch.no_grad()
def shrink_towards_zero(layers: Mapping[str, Ordered], steps: Mapping[str, float]) -> None:
    """Apply the proximal operator of each layer's penalty, times `steps[name]`, to its factors in place.

    The groups b: are nested, so the operator is one soft threshold W_{b:} ← W_{b:} · max(0, 1 − τ / ‖W_{b:}‖)
    after the other, from the last group to the first (Jenatton et al., JMLR 2011, §3.2). A subgradient only
    circles around zero; this reaches it, which is what lets components go while training still runs.
    """
    for name, layer in layers.items():
        for factor in (layer.u, layer.v):
            squares = factor.flatten(1).double().square().sum(1).tolist()
            scales, tail = [0.0] * len(squares), 0.0
            for b in range(len(squares) - 1, -1, -1):
                norm = math.sqrt(squares[b] + tail)
                scales[b] = max(0.0, 1 - steps[name] / norm) if norm > 0 else 0.0
                tail = (scales[b] * norm) ** 2
            kept = torch.tensor(scales, dtype=torch.float64).cumprod(0).to(factor.dtype)
            factor.mul_(kept.view(-1, *[1] * (factor.ndim - 1)))


def _tails(factor: Tensor) -> tuple[Tensor, Tensor]:
    """(r,) norms ‖W_{b:}‖ and the (r, n) rows they come from."""
    rows = factor.detach().flatten(1)
    squares = rows.double().square().sum(1)
    return squares.flip(0).cumsum(0).flip(0).sqrt().to(rows.dtype), rows
