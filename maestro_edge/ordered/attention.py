"""nn.MultiheadAttention with its projections as four Linears, so that each of them can be ordered."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.errors import ModelError
from maestro_edge.ordered.dense import an
from maestro_edge.ordered.factors import filled

__all__ = ["PROJECTIONS", "Attention", "attention_refusal", "separate"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Attention(nn.Module):
    """What nn.MultiheadAttention computes, called the same way, from separate q, k, v and out Linears.

    torch's encoder layers read `_qkv_same_embed_dim` and `in_proj_bias` before they take their fast path, which
    would use the weights without calling the layers: here they find that it does not apply.
    """

    in_proj_bias: None = None
    _qkv_same_embed_dim = False

    def __init__(self, stock: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = stock.embed_dim
        self.num_heads = stock.num_heads
        self.head_dim = stock.head_dim
        self.dropout = stock.dropout
        self.batch_first = stock.batch_first
        if stock.in_proj_weight is not None:
            weights = list(stock.in_proj_weight.chunk(3))
            trainable = [stock.in_proj_weight.requires_grad] * 3
        else:
            separated = [stock.q_proj_weight, stock.k_proj_weight, stock.v_proj_weight]
            weights = [weight for weight in separated if weight is not None]
            trainable = [weight.requires_grad for weight in weights]
        joint = stock.in_proj_bias
        biases = (
            [None] * 3 if joint is None else [nn.Parameter(part, joint.requires_grad) for part in joint.chunk(3)]
        )
        q, k, v = (_linear(*each) for each in zip(weights, biases, trainable, strict=True))
        self.q_proj, self.k_proj, self.v_proj = q, k, v
        out = stock.out_proj
        self.out_proj = _linear(out.weight, out.bias, out.weight.requires_grad)
        self.train(stock.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention: (L, N, E), (N, L, E) with batch_first, or (L, E); masks of True or -inf hide.

        Raises:
            ModelError: `is_causal`, a hint about the mask, comes without one.
        """
        if is_causal and attn_mask is None:
            raise ModelError("is_causal says what attn_mask is: give the causal mask too")
        batched = query.dim() == 3
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if not batched:
            q, k, v = q[None], k[None], v[None]
        elif not self.batch_first:
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
        # (N, heads, L, d)
        q, k, v = (torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = _joint_mask(attn_mask, key_padding_mask, q)
        weights: Tensor | None = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = q * math.sqrt(1 / q.shape[-1]) @ k.transpose(-2, -1)  # (N, heads, L, S)
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout, self.training)
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        mixed = heads.transpose(1, 2).flatten(2)  # (N, L, E)
        if batched and not self.batch_first:
            mixed = mixed.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if batched:
            return self.out_proj(mixed), weights
        return self.out_proj(mixed[0]), None if weights is None else weights[0]


def _joint_mask(attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one to add to the scores, broadcast over (N, heads, L, S)."""
    found: Tensor | None = None
    if attention is not None:
        found = _additive(attention, q.dtype)
        if found.dim() == 3:  # (N heads, L, S)
            found = torch.unflatten(found, 0, (q.shape[0], q.shape[1]))
    if padding is not None:
        rows = _additive(padding, q.dtype).view(-1, 1, 1, padding.shape[-1])  # (N, 1, 1, S)
        found = rows if found is None else found + rows
    return found


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _linear(weight: Tensor, bias: Tensor | None, trainable: bool) -> nn.Linear:
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    assert bias is None or isinstance(bias, nn.Parameter)
    return filled(layer, weight, bias, trainable=trainable)


def attention_refusal(stock: nn.Module) -> str:
    """Why an attention cannot be separated; empty when it can."""
    if type(stock) is not nn.MultiheadAttention:
        return f"{an(stock)} cannot be ordered"
    if stock.bias_k is not None or stock.add_zero_attn:
        return "it attends to one more key (add_bias_kv or add_zero_attn)"
    return ""


def separate(model: nn.Module, names: set[str]) -> nn.Module:
    """Replace the named attentions of `model`, in place, by ones that compute the same; returns the model.

    torch's encoder would turn padded batches into nested tensors and read the weights itself: it is told not
    to. Where it did, its outputs at padded positions were 0; they are now what the layers compute.
    """
    for name in sorted(names):
        stock = model.get_submodule(name)
        assert isinstance(stock, nn.MultiheadAttention)
        if not name:
            return Attention(stock)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Attention(stock))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, Attention) for m in module.modules()):
            module.use_nested_tensor = False
    return model
