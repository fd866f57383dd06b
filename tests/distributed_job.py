"""What test_distributed.py starts in several processes: one training, its checkpoint in the folder argv[1]."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from maestro_edge.ordered import order
from maestro_edge.training import Target, TrainSettings, train
from tests.conftest import tiny_data

SETTINGS = TrainSettings(
    epochs=4,
    batch_size=16,
    lr=0.05,
    bf16=False,
    sampler="sandwich",
    target=Target(macs=60_000),
)


class Plain(nn.Module):
    """A network without BatchNorm, whose statistics would be each process's own: (N, 1, 8, 8) → (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(64, 384)
        self.hidden2 = nn.Linear(384, 128)
        self.head = nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.hidden1(x.flatten(1)))
        logits: Tensor = self.head(torch.relu(self.hidden2(x)))
        return logits


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """An augmentation that draws from the generator, one number an image."""
    return images + 0.1 * torch.rand(len(images), 1, 1, 1, generator=generator)


def run(folder: Path | None, *, accumulate: int = 1, **options: object) -> nn.Module:
    """Train from the same start everywhere."""
    import dataclasses

    torch.manual_seed(0)
    data = dataclasses.replace(tiny_data(), augment=shifted)
    settings = SETTINGS.model_copy(update={"accumulate": accumulate})
    model, _ = train(order(Plain()), data, settings, folder=folder, rebuild=Plain, **options)  # type: ignore[arg-type]
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
