"""The network of the pipeline's tests: two layers to choose ranks of, and little for an emulator to do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["build"]


class Tiny(nn.Module):
    """Two convolutions and a classifier, 0.13 M MACs: (N, C, 32, 32) → (N, classes)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 48, 8, stride=8)
        self.second = nn.Conv2d(48, 48, 3, stride=2, padding=1)
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))  # (N, 48, 2, 2)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def build(channels: int, classes: int) -> nn.Module:
    """As `maestro-edge train tests.devices.tiny:build` calls it."""
    return Tiny(channels, classes)
