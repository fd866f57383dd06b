"""Attention without a mask as two products and a softmax, which XNNPACK computes whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

__all__ = ["plain_attention"]

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def plain_attention(program: ExportedProgram) -> ExportedProgram:
    """The program with every attention written out, if no head of any has a mask; as it is otherwise.

    PyTorch's own decomposition guards against rows that a mask hides whole: five portable operators an attention,
    between which a graph is cut. Without a mask there are no such rows.
    """
    found = [node for node in program.graph.nodes if node.target == _ATTENTION]
    if not found or not all(map(_is_plain, found)):
        return program
    plain: ExportedProgram = program.run_decompositions({_ATTENTION: _attention})
    return plain


def _is_plain(node: Node) -> bool:
    """Query, key and value of one shape but for the tokens, and at most a scale."""
    masked = len(node.args) > 3 or set(node.kwargs) - {"scale"}
    leading = {tuple(each.meta["val"].shape[:-2]) for each in node.args if isinstance(each, Node)}
    return not masked and len(leading) == 1


def _attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(q kᵀ · scale) v (Vaswani et al. 2017, §3.2.1): (…, L, D), (…, S, D), (…, S, E) → (…, L, E).

    Products of three dimensions: those of four would be preceded by copies that expand nothing.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    queries, keys, values = (each.reshape(-1, *each.shape[-2:]) for each in (query, key, value))
    weights = torch.softmax(torch.bmm(queries * factor, keys.transpose(1, 2)), dim=-1)
    return torch.bmm(weights, values).reshape(*query.shape[:-1], value.shape[-1])
