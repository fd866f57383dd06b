"""The two ordered layers: W = U Vᵀ with components ordered by importance, cut to a prefix in every forward.

A component b is the pair (row b of Vᵀ, column b of U). Both are stored component first, so that any cut is a
contiguous prefix: `v` is (r, n) or (r, C/g, kh, kw), `u` is (r, m).
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.errors import ModelError

__all__ = ["Ordered", "OrderedConv2d", "OrderedLinear"]


class _Factors(nn.Module):
    """What both kinds share: the factors, the bias, and the prefix in use."""

    u: nn.Parameter
    v: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, u: Tensor, v: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.u = nn.Parameter(u)
        self.v = nn.Parameter(v)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.active_rank: int | None = None

    @property
    def rank(self) -> int:
        """How many components there are; shrinking lowers it."""
        return self.u.shape[0]

    @property
    def used(self) -> int:
        """How many components the next forward uses."""
        return self.rank if self.active_rank is None else min(self.active_rank, self.rank)

    def use(self, rank: int | None) -> None:
        """Use the first `rank` components from now on; None uses all.

        Raises:
            ModelError: the rank is below 1: a layer of rank 0 passes nothing on.
        """
        if rank is not None and rank < 1:
            raise ModelError(f"a rank of {rank} is below 1: the smallest ordered layer has one component")
        self.active_rank = rank

    def keep(self, rank: int) -> None:
        """Drop all but the first `rank` components from the parameters, for good."""
        self.u = nn.Parameter(self.u.detach()[:rank].clone(), requires_grad=self.u.requires_grad)
        self.v = nn.Parameter(self.v.detach()[:rank].clone(), requires_grad=self.v.requires_grad)

    def above_break_even(self, rank: int) -> bool:
        """Whether two layers of `rank` cost at least as much as the dense one: rank ≥ m n / (m + n)."""
        fan_in, fan_out = self.v[0].numel(), self.u.shape[1]
        return rank * (fan_in + fan_out) >= fan_in * fan_out

    def importances(self) -> Tensor:
        """(r,) importance of each component, ‖U_b:‖ · ‖V_b:‖ of its tails (Maestro, ICML 2024, §3.2).

        The norms run over all components from b on, so they never increase and what is kept is a prefix.
        """
        return _tail_norms(self.u) * _tail_norms(self.v)

    def merged(self, rank: int) -> Tensor:
        """The (m, n) matrix U Vᵀ of the first `rank` components."""
        return self.u.detach()[:rank].T @ self.v.detach()[:rank].flatten(1)


def _tail_norms(factor: Tensor) -> Tensor:
    squares = factor.detach().flatten(1).square().sum(1)
    return squares.flip(0).cumsum(0).flip(0).sqrt()


class OrderedLinear(_Factors):
    """A Linear as two thin ones: y = U (Vᵀ x) + bias."""

    def __init__(self, dense: nn.Linear, u: Tensor, v: Tensor) -> None:
        super().__init__(u, v, None if dense.bias is None else dense.bias.detach().clone())
        self.in_features = dense.in_features
        self.out_features = dense.out_features

    @property
    def full_rank(self) -> int:
        return min(self.in_features, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        used = self.used
        if self.above_break_even(used):
            # One product with the merged weight costs less there, and the result is the same.
            return F.linear(x, self.u[:used].T @ self.v[:used], self.bias)
        return F.linear(F.linear(x, self.v[:used]), self.u[:used].T, self.bias)

    def fold(self, rank: int) -> nn.Module:
        """One stock Linear that computes the first `rank` components."""
        return _linear(self.merged(rank), self.bias)

    def thin(self, rank: int) -> nn.Module:
        """Two stock Linears, n→rank without and rank→m with the bias."""
        first = _linear(self.v.detach()[:rank], None)
        second = _linear(self.u.detach()[:rank].T.contiguous(), self.bias)
        return nn.Sequential(first, second)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


class OrderedConv2d(_Factors):
    """A Conv2d as a k x k convolution to r channels (stride, padding and dilation of the original) and a 1 x 1."""

    def __init__(self, dense: nn.Conv2d, u: Tensor, v: Tensor) -> None:
        bias = None if dense.bias is None else dense.bias.detach().clone()
        super().__init__(u, v.view(-1, *dense.weight.shape[1:]), bias)
        self.in_channels = dense.in_channels
        self.out_channels = dense.out_channels
        self.kernel_size = (dense.kernel_size[0], dense.kernel_size[1])
        self.stride = (dense.stride[0], dense.stride[1])
        self.dilation = (dense.dilation[0], dense.dilation[1])
        self.padding = symmetric_padding(dense)

    @property
    def full_rank(self) -> int:
        return min(self.out_channels, self.in_channels * self.kernel_size[0] * self.kernel_size[1])

    def forward(self, x: Tensor) -> Tensor:
        used = self.used
        u = self.u[:used].T
        if self.above_break_even(used):
            weight = (u @ self.v[:used].flatten(1)).view(-1, *self.v.shape[1:])
            return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)
        thin = F.conv2d(x, self.v[:used], None, self.stride, self.padding, self.dilation)
        return F.conv2d(thin, u[:, :, None, None], self.bias)

    def fold(self, rank: int) -> nn.Module:
        """One stock Conv2d that computes the first `rank` components."""
        return self._conv(self.merged(rank).view(-1, *self.v.shape[1:]), self.bias)

    def thin(self, rank: int) -> nn.Module:
        """Two stock Conv2ds: k x k to `rank` channels without bias, then 1 x 1 with the bias."""
        second = nn.Conv2d(rank, self.out_channels, 1, bias=self.bias is not None)
        weight = self.u.detach()[:rank].T[:, :, None, None]
        second.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
        if self.bias is not None:
            second.bias = nn.Parameter(self.bias.detach().clone())
        return nn.Sequential(self._conv(self.v.detach()[:rank], None), second)

    def _conv(self, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
        layer = nn.Conv2d(
            weight.shape[1],
            weight.shape[0],
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=bias is not None,
        )
        layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"


def symmetric_padding(conv: nn.Conv2d) -> tuple[int, int]:
    """The (H, W) zeros on each side; 'same' with an odd kernel and 'valid' are turned into numbers.

    Raises:
        ModelError: 'same' needs one more zero on one side than on the other.
    """
    if isinstance(conv.padding, str):
        if conv.padding == "valid":
            return (0, 0)
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(t % 2 for t in total):
            raise ModelError("padding 'same' with an even kernel is not symmetric")
        return (total[0] // 2, total[1] // 2)
    rows, columns = conv.padding
    return (int(rows), int(columns))


Ordered: TypeAlias = OrderedLinear | OrderedConv2d
