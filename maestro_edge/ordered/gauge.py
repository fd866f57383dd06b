"""The gauge form of a pair: r of its m outputs are what the first layer leaves, the second computes the others.

W = U Vᵀ leaves U free up to an invertible r x r matrix G: (U G)(V G⁻ᵀ)ᵀ is the same product. With G the inverse of
r rows of U, those rows become the identity, and y = concat(z, U₂ z) takes (m + n - r) r weights, less than m n at
every r below both sides (FlexRank's GAR, ICML 2026; PIFA, ICML 2025). Then z is those r outputs of the layer
themselves: the first layer holds rows of W, and no inverse of anything is needed for it.

Which r rows decides how well U₂ is conditioned, and whether outputs must be put in order behind the concat.
XNNPACK does not take an index_select: it costs more than the form saves (benchmarks/gauge.py). So the rows are the
first r or the last r where the others' coefficients in them stay below `_JOINED`; where not, they are chosen
freely, at that cost.

Measured on a 2-core AMD EPYC that was busy otherwise (benchmarks/results/gauge.json; single ratios are good to
some 5 %): of 46 layers and ranks, the form was 3 % or more faster than both the pair and the dense layer in 31 on
ExecuTorch and in 31 on LiteRT, mostly by 5 % to 14 %, around the pair's break-even and above it, and slower than
the pair in 5 and 5, at low ranks of narrow layers (1x1, 64 to 256 channels at rank 16: 19 % and 36 %). With an
index_select it was faster in 1 and 9 of 28. Feed-forward blocks of an encoder, 384 wide, took 3 % less than pairs
at rank 128 and 9 % to 13 % less at ranks 256 and 288.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maestro_edge.errors import ModelError
from maestro_edge.ordered.layers import Ordered, OrderedEmbedding, OrderedSpatialConv2d
from maestro_edge.ordered.modes import evaluating

__all__ = ["Gauge", "gauge_layers", "gauge_ranks", "gauged", "has_gauge", "pivots"]

_JOINED = 100.0
"""Largest coefficient of rows that need no order: the rounding of z grows to less than 1e-4 of the output."""
_CHOSEN = 2.0
"""Largest coefficient of rows that are chosen freely; any number above 1 can be reached."""


class Gauge(nn.Module):
    """Two stock layers whose outputs, side by side, are those of one: (..., m), (..., m, L) or (..., m, H, W).

    The r of the first stand `ahead` of the others or behind them; then output channel c is taken from where
    `order[c]` says, if there is one.
    """

    order: Tensor | None

    def __init__(
        self, first: nn.Module, second: nn.Module, *, ahead: bool = True, order: Tensor | None = None
    ) -> None:
        super().__init__()
        self.first, self.second, self.ahead = first, second, ahead
        sizes = len(second.kernel_size) if isinstance(second, nn.Conv1d | nn.Conv2d) else 0
        self.dim = -1 - sizes
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        others = self.second(z)
        y = torch.cat((z, others) if self.ahead else (others, z), self.dim)
        return y if self.order is None else y.index_select(self.dim, self.order)


def gauged(pair: nn.Module) -> Gauge:
    """The gauge form of the two stock layers that an ordered Linear or convolution becomes at a rank.

    It computes the same outputs up to rounding, whatever the condition of the factors: rows are chosen, and the
    others expressed in them, on an orthonormal basis of U's columns, in float64. A bias b goes along: the first
    layer gets that of its rows, the second what U₂ does not already bring of it, b₂ - U₂ b₁.

    Raises:
        ModelError: the pair is not of one group and 1 wide in its second layer, or its rank is not below m.
    """
    first, second = pair.get_submodule("0"), pair.get_submodule("1")
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    if not (isinstance(first, kinds) and isinstance(second, kinds)):
        raise ModelError(f"a pair of {type(first).__name__} and {type(second).__name__} has no gauge form")
    if isinstance(second, nn.Conv1d | nn.Conv2d) and (second.groups > 1 or max(second.kernel_size) > 1):
        raise ModelError("a pair of grouped convolutions, or a spatial one, has no gauge form: leave it a pair")
    u = second.weight.detach().double().cpu().flatten(1)  # (m, r)
    outputs, rank = u.shape
    if rank >= outputs:
        raise ModelError(f"a pair of rank {rank} to {outputs} outputs has no gauge form: the rank must be below")
    basis = torch.linalg.qr(u).Q
    joined = _end(basis)
    rows = pivots(basis) if joined is None else joined
    others = torch.ones(outputs, dtype=torch.bool).index_fill(0, rows, False).nonzero()[:, 0]
    mixing = torch.linalg.solve(basis[rows], basis[others], left=False)  # (m - r, r): U₂
    weight = u[rows] @ first.weight.detach().double().cpu().flatten(1)  # (r, n), rows of W
    bias = None if second.bias is None else second.bias.detach().double().cpu()
    return Gauge(
        _with(first, weight, None if bias is None else bias[rows]),
        _with(second, mixing, None if bias is None else bias[others] - mixing @ bias[rows]),
        ahead=joined is None or int(rows[0]) == 0,
        order=torch.cat((rows, others)).argsort().to(second.weight.device) if joined is None else None,
    )


def gauge_layers(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Names of the ordered layers of `model`, run once on `inputs`, for which the gauge form may be faster.

    Not grouped ones, spatial pairs and embeddings, which have none; nor those in front of a BatchNorm, which folds
    into one layer but not into two side by side.
    """
    outputs: dict[str, Tensor] = {}  # kept alive: identity is only unique while the tensors live
    normed: list[Any] = []

    def keep(name: str, output: Tensor) -> None:
        outputs[name] = output

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, Ordered) and has_gauge(module):
            hooks.append(module.register_forward_hook(lambda _, __, y, name=name: keep(name, y)))
        elif isinstance(module, _BatchNorm):
            hooks.append(module.register_forward_pre_hook(lambda _, received: normed.extend(received)))
    try:
        with torch.no_grad(), evaluating(model):
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    before_norms = {id(received) for received in normed}
    return tuple(name for name, output in outputs.items() if id(output) not in before_norms)


def gauge_ranks(model: nn.Module, ranks: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    """Of the `ranks` of ordered layers by name, those at which the gauge form needs no order behind its concat."""
    found = {}
    for name, asked in ranks.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Ordered)
        u = layer.u.detach().double().cpu().flatten(1).T  # (m, r)
        usable = (rank for rank in asked if rank <= layer.rank and has_gauge(layer, rank))
        found[name] = tuple(rank for rank in usable if _end(torch.linalg.qr(u[:, :rank]).Q) is not None)
    return found


def has_gauge(layer: Ordered, rank: int = 1) -> bool:
    """Whether the layer has a gauge form at `rank`: one group, no spatial pair, a rank below its sides."""
    if layer.groups > 1 or isinstance(layer, OrderedEmbedding | OrderedSpatialConv2d):
        return False
    return rank < min(layer.u[0].numel(), layer.v[0].numel())


def _end(basis: Tensor) -> Tensor | None:
    """(r,) the first or the last rows of the (m, r) `basis`, whichever the others need less of; None: too much."""
    outputs, rank = basis.shape
    ends = [torch.arange(rank), torch.arange(outputs - rank, outputs)]
    largest = []
    for rows in ends:
        coefficients, failed = torch.linalg.solve_ex(basis[rows], basis, left=False)
        top = float(coefficients.abs().max())
        largest.append(top if failed == 0 and top == top else float("inf"))
    best = 0 if largest[0] <= largest[1] else 1
    return ends[best] if largest[best] <= _JOINED else None


def pivots(basis: Tensor) -> Tensor:
    """(r,) rows of the (m, r) orthonormal `basis`, ascending, in which all others have coefficients of at most 2.

    The start is LU with partial pivoting; then the row with the largest coefficient takes the place of the one
    that it belongs to, which at least doubles the determinant each time (maxvol: Goreinov et al., 2010).
    """
    outputs, rank = basis.shape
    swaps = torch.linalg.lu_factor(basis).pivots - 1
    rows = torch.arange(outputs)
    for at, swap in enumerate(swaps.tolist()):
        rows[[at, swap]] = rows[[swap, at]]
    rows = rows[:rank].clone()
    coefficients = torch.linalg.solve(basis[rows], basis, left=False)  # (m, r)
    while True:
        row, column = divmod(int(coefficients.abs().argmax()), rank)
        largest = coefficients[row, column].clone()
        if abs(largest) <= _CHOSEN:
            return rows.sort().values
        change = coefficients[row].clone()
        change[column] -= 1
        coefficients -= torch.outer(coefficients[:, column] / largest, change)
        rows[column] = row


def _with(layer: nn.Linear | nn.Conv1d | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer like `layer`, with as many outputs as `weight` (m, ...) has rows."""
    has_bias = bias is not None
    made: nn.Linear | nn.Conv1d | nn.Conv2d
    if isinstance(layer, nn.Linear):
        made = nn.Linear(layer.in_features, len(weight), has_bias, device="meta")
    else:
        made = type(layer)(
            layer.in_channels,
            len(weight),
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=has_bias,
            device="meta",
        )
    like = layer.weight

    def parameter(values: Tensor) -> nn.Parameter:
        return nn.Parameter(values.to(like.device, like.dtype).contiguous(), requires_grad=like.requires_grad)

    made.weight = parameter(weight.reshape(len(weight), *like.shape[1:]))
    if bias is not None:
        made.bias = parameter(bias)
    return made
