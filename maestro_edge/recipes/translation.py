"""Encoder-decoder Transformers of stock torch layers: every projection is a Linear that order() can take.

The output projection is not tied to the embeddings, as order() refuses a weight that two layers share.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maestro_edge.errors import ModelError
from maestro_edge.recipes.multi30k import PAD

__all__ = ["Transformer", "small_transformer", "transformer"]

_POSITIONS = 256


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., NeurIPS 2017, §3.2) with one Linear each for q, k, v and out."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        """(N, T, D) from queries (N, T, D) and memory (N, S, D); `seen` is bool, broadcast to (N, 1, T, S)."""
        q, k, v = self._split(self.query(x)), self._split(self.key(memory)), self._split(self.value(memory))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)  # (N, H, T, D / H)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (N, H, T, D / H)


class FeedForward(nn.Module):
    """Two Linears with a ReLU between, at every position alike."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(width, inner)
        self.second = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.dropout(F.relu(self.first(x))))
        return result


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normalised before and added to what came in."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.feed = FeedForward(width, inner, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y, seen))
        result: Tensor = x + self.dropout(self.feed(self.norm2(x)))
        return result


class DecoderLayer(nn.Module):
    """As the encoder's, with attention to the encoder's output between the two."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width, heads, dropout)
        self.cross = Attention(width, heads, dropout)
        self.feed = FeedForward(width, inner, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor, memory_seen: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.dropout(self.attention(y, y, seen))
        x = x + self.dropout(self.cross(self.norm2(x), memory, memory_seen))
        result: Tensor = x + self.dropout(self.feed(self.norm3(x)))
        return result


class Transformer(nn.Module):
    """Source and decoder input in one (N, 2 L) row of indices, as multi30k makes them → logits (N, L, V).

    Norms stand before each part, not behind it as in the reference code: such a network trains without a long
    warm-up (Xiong et al., ICML 2020), where Pufferfish's run.sh takes 128,000 steps of it. Source and target share
    one embedding, as they share the vocabulary.
    """

    def __init__(self, classes: int, *, width: int, heads: int, inner: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.scale = math.sqrt(width)
        self.embedding = nn.Embedding(classes, width)
        self.register_buffer("positions", sinusoids(_POSITIONS, width), persistent=False)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, inner, dropout) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, classes, bias=False)
        self.dropout = nn.Dropout(dropout)
        self._start(width)

    def _start(self, width: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Times the root of the width in forward: of the size of the positions.
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        source, target = tokens.chunk(2, dim=1)  # (N, L) each
        length = target.shape[1]
        if length > _POSITIONS:
            raise ModelError(f"sequences of {length} tokens, this model has {_POSITIONS} positions: shorten them")
        first = torch.arange(length, device=tokens.device) == 0
        # A row of nothing but padding still sees one token: softmax over nothing is NaN.
        source_seen = (source.ne(PAD) | first)[:, None, None, :]  # (N, 1, 1, L)
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        target_seen = causal & (target.ne(PAD) | first)[:, None, None, :]  # (N, 1, L, L)
        memory = self._embed(source)
        for layer in self.encoder:
            memory = layer(memory, source_seen)
        memory = self.encoder_norm(memory)
        x = self._embed(target)
        for layer in self.decoder:
            x = layer(x, memory, target_seen, source_seen)
        logits: Tensor = self.output(self.decoder_norm(x))
        return logits

    def _embed(self, tokens: Tensor) -> Tensor:
        positions: Tensor = self.get_buffer("positions")[: tokens.shape[1]]
        embedded: Tensor = self.dropout(self.embedding(tokens) * self.scale + positions)
        return embedded


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width): sin and cos of position / 10000^(2i / width) (Vaswani et al., NeurIPS 2017, §3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)


def transformer(classes: int = 10_000, dropout: float = 0.3) -> nn.Module:
    """The base Transformer of the paper's Multi30k experiment: 6 + 6 layers, width 512, 8 heads, inner 2048.

    44.1 M parameters beside the two times `classes` x 512 of embedding and output projection. The reference
    drops 0.1, the value for WMT's millions of pairs, of which Multi30k has 29,000.
    """
    return Transformer(classes, width=512, heads=8, inner=2048, layers=6, dropout=dropout)


def small_transformer(classes: int = 10_000, dropout: float = 0.1) -> nn.Module:
    """3 + 3 layers, width 128, 4 heads, inner 512: 1.4 M parameters beside two times `classes` x 128."""
    return Transformer(classes, width=128, heads=4, inner=512, layers=3, dropout=dropout)
