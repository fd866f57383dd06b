"""The network of the pipeline's tests: one layer to choose a rank of, and little for an emulator to do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["build"]


class Tiny(nn.Module):
    """Two convolutions, of which the second gains from a lower rank, and a classifier; 0.6 M MACs.

    A smaller one would be over within a tick of a profiler's clock on a real device.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 16, 4, stride=4)
        self.second = nn.Conv2d(16, 64, 3, padding=1)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))  # (N, 64, 8, 8) of images (N, C, 32, 32)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def build(channels: int, classes: int) -> nn.Module:
    """As `maestro-edge train tests.devices.tiny:build` calls it."""
    return Tiny(channels, classes)
