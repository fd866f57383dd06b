"""Ordered Linear and Embedding: W = U Vᵀ with components ordered by importance, cut to a prefix in a forward."""

from __future__ import annotations

from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.ordered.convolutions import OrderedConv1d, OrderedConv2d, OrderedSpatialConv2d
from maestro_edge.ordered.factors import Factors, filled

__all__ = [
    "Ordered",
    "OrderedConv1d",
    "OrderedConv2d",
    "OrderedEmbedding",
    "OrderedLinear",
    "OrderedSpatialConv2d",
]


class OrderedLinear(Factors):
    """A Linear as two thin ones, y = U (Vᵀ x) + bias: `v` is (r, n), `u` is (r, m)."""

    def __init__(self, dense: nn.Module, u: Tensor, v: Tensor) -> None:
        super().__init__(dense, u[0], v[0])
        self.in_features = v.shape[-1]
        self.out_features = u.shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        used = self.used
        if self.above_break_even(used):
            # One product with the merged weight costs less there, and the result is the same.
            return F.linear(x, self.u[:used].T @ self.v[:used], self.bias)
        return F.linear(F.linear(x, self.v[:used]), self.u[:used].T, self.bias)

    def shaped(self, matrix: Tensor) -> Tensor:
        return matrix

    def fold(self, rank: int) -> nn.Module:
        """One stock Linear that computes the first `rank` components."""
        return self._linear(self.merged(rank), self.bias)

    def thin(self, rank: int) -> nn.Module:
        """Two stock Linears, n→rank without and rank→m with the bias."""
        return nn.Sequential(self._linear(self.v[:rank], None), self._linear(self.u[:rank].T, self.bias))

    def _linear(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
        outputs, inputs = weight.shape
        layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
        return filled(layer, weight, bias, trainable=self.u.requires_grad)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


class OrderedEmbedding(Factors):
    """An Embedding of V tokens to d as one to r and a Linear r→d without bias: `v` is (r, V), `u` is (r, d).

    A lower rank saves memory; it adds the Linear's time, as looking up costs nothing.
    """

    def __init__(self, dense: nn.Embedding, u: Tensor, v: Tensor) -> None:
        super().__init__(dense, u[0], v[0])
        self.num_embeddings = dense.num_embeddings
        self.embedding_dim = dense.embedding_dim
        self.padding_idx = dense.padding_idx

    def forward(self, tokens: Tensor) -> Tensor:
        used = self.used
        found = F.embedding(tokens, self.v[:used].T, self.padding_idx)  # (N, ..., r)
        return F.linear(found, self.u[:used].T)

    def shaped(self, matrix: Tensor) -> Tensor:
        return matrix.T

    def fold(self, rank: int) -> nn.Module:
        """One stock Embedding that holds the first `rank` components."""
        return self._embedding(self.merged(rank).T)

    def thin(self, rank: int) -> nn.Module:
        """A stock Embedding of `rank` features and a Linear rank→d without bias."""
        linear = nn.Linear(rank, self.embedding_dim, bias=False, device="meta")
        trainable = self.u.requires_grad
        second = filled(linear, self.u[:rank].T, None, trainable=trainable)
        return nn.Sequential(self._embedding(self.v[:rank].T), second)

    def _embedding(self, weight: Tensor) -> nn.Embedding:
        layer = nn.Embedding(weight.shape[0], weight.shape[1], self.padding_idx, device="meta")
        return filled(layer, weight, None, trainable=self.u.requires_grad)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, rank={self.rank}"


Ordered: TypeAlias = OrderedLinear | OrderedConv1d | OrderedConv2d | OrderedSpatialConv2d | OrderedEmbedding
