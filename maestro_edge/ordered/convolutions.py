"""Ordered convolutions: k wide to r channels and 1 wide on, per group; or k x 1 to r channels and 1 x k on."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.ordered.dense import symmetric_padding
from maestro_edge.ordered.factors import Factors, filled

__all__ = ["OrderedConv1d", "OrderedConv2d", "OrderedSpatialConv2d"]


class _OrderedConv(Factors):
    """A convolution to r channels a group (stride, padding, dilation of the original), then one of width 1.

    `v` is (r, C, k, ...) and `u` is (r, O), whatever the groups: row b holds component b of every group, each
    on its own channels, so that a prefix keeps as many components of each.
    """

    stock: ClassVar[type[nn.Conv1d | nn.Conv2d]]

    def __init__(self, dense: nn.Conv1d | nn.Conv2d, u: Tensor, v: Tensor) -> None:
        rows = v.movedim(0, 1).reshape(v.shape[1], dense.in_channels, *dense.kernel_size)
        super().__init__(dense, u.movedim(0, 1).flatten(1), rows)
        self.in_channels = dense.in_channels
        self.out_channels = dense.out_channels
        self.groups = dense.groups
        self.kernel_size = dense.kernel_size
        self.stride = dense.stride
        self.dilation = dense.dilation
        self.padding = symmetric_padding(dense)

    def forward(self, x: Tensor) -> Tensor:
        if self.above_break_even(self.used):
            return self._conv(x, self.weight, self.bias)
        u, v = self.u[: self.used], self.v[: self.used]
        thin = self._conv(x, self._first(v), None)
        return self._pointwise(thin, self._second(u))

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _pointwise(self, x: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _first(self, v: Tensor) -> Tensor:
        """(G r, C / G, k, ...): the channels of a group side by side."""
        if self.groups == 1:
            return v
        return torch.unflatten(v, 1, (self.groups, -1)).transpose(0, 1).flatten(0, 1)

    def _second(self, u: Tensor) -> Tensor:
        """(O, r, 1, ...): each output sees the r channels of its group."""
        return u.T[(..., *(None for _ in self.kernel_size))]

    def shaped(self, matrix: Tensor) -> Tensor:
        return torch.unflatten(matrix, 1, (self.in_channels // self.groups, *self.kernel_size))

    def fold(self, rank: int) -> nn.Module:
        """One stock convolution that computes the first `rank` components."""
        return self._stock(self.shaped(self.merged(rank)), self.bias)

    def thin(self, rank: int) -> nn.Module:
        """Two stock convolutions: to `rank` channels a group without bias, then of width 1 with the bias."""
        channels = self.groups * rank
        bias = self.bias is not None
        second = self.stock(channels, self.out_channels, 1, groups=self.groups, bias=bias, device="meta")
        weight = self._second(self.u[:rank])
        return nn.Sequential(
            self._stock(self._first(self.v[:rank]), None),
            filled(second, weight, self.bias, trainable=self.u.requires_grad),
        )

    def _stock(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        layer = self.stock(
            self.in_channels,
            weight.shape[0],
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            bias=bias is not None,
            device="meta",
        )
        return filled(layer, weight, bias, trainable=self.u.requires_grad)

    def extra_repr(self) -> str:
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return f"{sizes}{groups}, rank={self.rank}"


class OrderedConv1d(_OrderedConv):
    """A Conv1d of k taps as one to r channels (stride, padding and dilation of the original) and one of 1 tap."""

    stock = nn.Conv1d

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv1d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _pointwise(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv1d(x, weight, self.bias, groups=self.groups)


class OrderedConv2d(_OrderedConv):
    """A Conv2d as a k x k convolution to r channels (stride, padding and dilation of the original) and a 1 x 1."""

    stock = nn.Conv2d

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _pointwise(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, self.bias, groups=self.groups)


class OrderedSpatialConv2d(Factors):
    """A Conv2d as a kh x 1 convolution to r channels and a 1 x kw one (Jaderberg et al., BMVC 2014, §2.2).

    W is read as the matrix (O kw) x (C kh): `v` is (r, C, kh), `u` is (r, O, kw). Rows' stride, padding and
    dilation go to the first, columns' to the second; the start is the balanced SVD, also with calibration.
    """

    def __init__(self, dense: nn.Conv2d, u: Tensor, v: Tensor) -> None:
        rows, columns = dense.kernel_size
        super().__init__(dense, torch.unflatten(u[0], 1, (-1, columns)), torch.unflatten(v[0], 1, (-1, rows)))
        self.in_channels = dense.in_channels
        self.out_channels = dense.out_channels
        self.kernel_size = (rows, columns)
        self.stride = (dense.stride[0], dense.stride[1])
        self.dilation = (dense.dilation[0], dense.dilation[1])
        padding = symmetric_padding(dense)
        self.padding = (padding[0], padding[1])

    def forward(self, x: Tensor) -> Tensor:
        used = self.used
        if self.above_break_even(used):
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        (rows, columns), (above, beside), (down, across) = self.stride, self.padding, self.dilation
        thin = F.conv2d(x, self._first(self.v[:used]), None, (rows, 1), (above, 0), (down, 1))
        return F.conv2d(thin, self._second(self.u[:used]), self.bias, (1, columns), (0, beside), (1, across))

    def _first(self, v: Tensor) -> Tensor:
        return v[..., None]  # (r, C, kh, 1)

    def _second(self, u: Tensor) -> Tensor:
        return u.transpose(0, 1)[:, :, None]  # (O, r, 1, kw)

    def shaped(self, matrix: Tensor) -> Tensor:
        rows, columns = self.kernel_size
        parts = matrix.reshape(self.out_channels, columns, self.in_channels, rows)
        return parts.permute(0, 2, 3, 1)  # (O, C, kh, kw)

    def fold(self, rank: int) -> nn.Module:
        """One stock Conv2d that computes the first `rank` components."""
        weight = self.shaped(self.merged(rank))
        return self._stock(weight, self.bias, self.stride, self.padding, self.dilation)

    def thin(self, rank: int) -> nn.Module:
        """Two stock Conv2ds: kh x 1 to `rank` channels without bias, then 1 x kw with the bias."""
        (rows, columns), (above, beside), (down, across) = self.stride, self.padding, self.dilation
        return nn.Sequential(
            self._stock(self._first(self.v[:rank]), None, (rows, 1), (above, 0), (down, 1)),
            self._stock(self._second(self.u[:rank]), self.bias, (1, columns), (0, beside), (1, across)),
        )

    def _stock(
        self,
        weight: Tensor,
        bias: nn.Parameter | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> nn.Conv2d:
        outputs, inputs, rows, columns = weight.shape
        layer = nn.Conv2d(
            inputs, outputs, (rows, columns), stride, padding, dilation, bias=bias is not None, device="meta"
        )
        return filled(layer, weight, bias, trainable=self.u.requires_grad)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, rank={self.rank}"
