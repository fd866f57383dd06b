"""The hierarchical group lasso that orders components and drives unneeded ones to zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from maestro_edge.ordered import Ordered

__all__ = ["add_penalty_gradient", "layer_penalty", "shrink_towards_zero"]

Fits = Callable[[Mapping[str, int]], bool]

_TINY = 1e-12


@torch.no_grad()
def layer_penalty(layer: Ordered) -> float:
    """Σ_b ‖U_{b:}‖ + ‖V_{b:}‖ of one layer (Maestro, ICML 2024, eq. 4), from its row norms."""
    return sum(
        float(_squares(factor).flip(0).cumsum(0).sqrt().sum())  # tail norms, from the last to the first
        for factor in (layer.u, layer.v)
    )


@torch.no_grad()
def add_penalty_gradient(layers: Mapping[str, Ordered], weights: Mapping[str, float]) -> None:
    """Add λ_i times the gradient of each layer's penalty to its factors' `.grad`: the paper's own way.

    The closed form, no autograd: row j of the gradient is W_j · Σ_{b≤j} 1 / ‖W_{b:}‖. At a norm of zero it is
    taken as zero instead of NaN; it never reaches exact zeros.
    """
    for name, layer in layers.items():
        for factor in (layer.u, layer.v):
            tails = _squares(factor).flip(0).cumsum(0).flip(0).sqrt()
            slope = ((tails > _TINY) / tails.clamp_min(_TINY)).cumsum(0)
            gradient = factor.detach() * (weights[name] * slope).to(factor).view(-1, *[1] * (factor.ndim - 1))
            factor.grad = gradient if factor.grad is None else factor.grad.add_(gradient)


@torch.no_grad()
def shrink_towards_zero(
    layers: Mapping[str, Ordered], steps: Mapping[str, float], *, fits: Fits | None = None
) -> tuple[dict[str, int], float]:
    """Apply the proximal operator of each layer's penalty, times `steps[name]`, to its factors in place.

    The groups b: are nested, so the operator is one soft threshold W_{b:} ← W_{b:} · max(0, 1 − τ / ‖W_{b:}‖)
    after the other, from the last group to the first (Jenatton et al., JMLR 2011, §3.2). A subgradient only
    circles around zero; this reaches it, which is what lets components go while training still runs. The
    first component of a layer never goes: a layer of rank 0 passes nothing on.

    When the ranks that survive do not satisfy `fits`, all steps are shortened by one factor until they do.
    Returns the surviving ranks and that factor (1 when nothing was shortened).
    """
    squares = {name: [_squares(f).tolist() for f in (layer.u, layer.v)] for name, layer in layers.items()}

    def scales(factor: float) -> dict[str, list[list[float]]]:
        return {name: [_thresholds(rows, factor * steps[name]) for rows in both] for name, both in squares.items()}

    taken, factor = scales(1.0), 1.0
    if fits is not None and not fits(_survivors(taken)):
        low, high = 0.0, 1.0
        for _ in range(24):  # to 1e-7: components that would go together go one by one
            factor = (low + high) / 2
            low, high = (factor, high) if fits(_survivors(scales(factor))) else (low, factor)
        factor, taken = low, scales(low)
    for name, layer in layers.items():
        for weight, scale in zip((layer.u, layer.v), taken[name], strict=True):
            weight.mul_(torch.tensor(scale).to(weight).view(-1, *[1] * (weight.ndim - 1)))
    return _survivors(taken), factor


def _squares(factor: Tensor) -> Tensor:
    """(r,) squared norm of each component."""
    # A norm first: squares in double would copy the whole factor, 16 % of a small batch's step on ResNet-18.
    norms: Tensor = torch.linalg.vector_norm(factor.detach().flatten(1), dim=1)
    return norms.double().square()


def _thresholds(squares: list[float], step: float) -> list[float]:
    """The factor by which the nested soft thresholds scale each component."""
    factors, tail = [0.0] * len(squares), 0.0
    for b in range(len(squares) - 1, -1, -1):
        norm = math.sqrt(squares[b] + tail)
        factors[b] = max(0.0, 1 - step / norm) if norm > 0 else 0.0
        tail = (factors[b] * norm) ** 2
    if not factors[0]:
        return [1.0, *[0.0] * (len(squares) - 1)]
    scale = 1.0
    for b, factor in enumerate(factors):
        scale = factors[b] = scale * factor
    return factors


def _survivors(scales: Mapping[str, list[list[float]]]) -> dict[str, int]:
    """Leading components of which both factors are left."""
    return {name: min(sum(scale > 0 for scale in both) for both in pair) for name, pair in scales.items()}
