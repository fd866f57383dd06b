"""What every ordered layer is: two factors whose components are ordered by importance, and the prefix in use.

A component b is a pair of rows, one of `v` (what it reads) and one of `u` (what it writes). Both are stored
component first, so that any cut is a contiguous prefix: `v` is (r, ...) and `u` is (r, ...).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from maestro_edge.errors import ModelError

__all__ = ["Factors", "filled"]

L = TypeVar("L", bound=nn.Module)


class Factors(nn.Module):
    """The factors, the bias, and the prefix in use; the kinds say what they compute and become."""

    u: nn.Parameter
    v: nn.Parameter
    bias: nn.Parameter | None
    groups: int = 1

    def __init__(self, dense: nn.Module, u: Tensor, v: Tensor) -> None:
        super().__init__()
        weight, bias = dense.weight, getattr(dense, "bias", None)
        assert isinstance(weight, Tensor)
        self.u = nn.Parameter(u.contiguous(), requires_grad=weight.requires_grad)
        self.v = nn.Parameter(v.contiguous(), requires_grad=weight.requires_grad)
        self.bias = None if bias is None else _copied(bias)
        self.full_rank = u.shape[0]
        self.dense_size = weight.numel()
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
        """Whether two layers of `rank` hold at least as many weights as the dense one: rank ≥ m n / (m + n)."""
        return rank * (self.v[0].numel() + self.u[0].numel()) >= self.dense_size

    def importances(self) -> Tensor:
        """(r,) importance of each component, ‖U_b:‖ · ‖V_b:‖ of its tails (Maestro, ICML 2024, §3.2).

        The norms run over all components from b on, so they never increase and what is kept is a prefix.
        """
        return _tail_norms(self.u) * _tail_norms(self.v)

    def merged(self, rank: int) -> Tensor:
        """The (m, n) matrix U Vᵀ of the first `rank` components; each group's rows in turn."""
        u, v = self.u.detach()[:rank], self.v.detach()[:rank]
        return self.product(u.double(), v.double()).to(u.dtype)

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        """(m, n) of the factors given, per group: row o of group g sees the inputs of g only."""
        u, v = u.flatten(1), v.flatten(1)
        if self.groups == 1:
            return u.T @ v
        by_group = torch.unflatten(u, 1, (self.groups, -1)).permute(1, 2, 0)  # (G, m / G, r)
        return (by_group @ torch.unflatten(v, 1, (self.groups, -1)).transpose(0, 1)).flatten(0, 1)

    @property
    def weight(self) -> Tensor:
        """The stock layer's weight of what is in use, for code that reads its type, device or values."""
        return self.shaped(self.product(self.u[: self.used], self.v[: self.used]))

    def shaped(self, matrix: Tensor) -> Tensor:
        """The stock layer's weight that holds the (m, n) matrix."""
        raise NotImplementedError

    def fold(self, rank: int) -> nn.Module:
        """One stock layer that computes the first `rank` components."""
        raise NotImplementedError

    def thin(self, rank: int) -> nn.Module:
        """Two stock layers that compute the first `rank` components, the second with the bias."""
        raise NotImplementedError


def _tail_norms(factor: Tensor) -> Tensor:
    squares = factor.detach().flatten(1).square().sum(1)
    return squares.flip(0).cumsum(0).flip(0).sqrt()


def _copied(parameter: Tensor) -> nn.Parameter:
    copy = parameter.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copy, requires_grad=parameter.requires_grad)


def filled(layer: L, weight: Tensor, bias: nn.Parameter | None, *, trainable: bool) -> L:
    """A stock layer made on the meta device, given its own contiguous copies.

    Made there, it draws no random weights: cutting a model leaves torch's generator where it was.
    """
    values = weight.detach().clone(memory_format=torch.contiguous_format)
    layer.weight = nn.Parameter(values, requires_grad=trainable)
    if bias is not None:
        layer.bias = _copied(bias)
    return layer
