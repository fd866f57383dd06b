"""Optimizers as the settings name them, and their state as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maestro_edge.training.settings import TrainSettings

__all__ = ["make_optimizer", "optimizer_state", "restore_optimizer"]


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    # Norms and biases without decay, as transformers are trained.
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.momentum, 0.98))


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by parameter and key, and the values that are none."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
            else:
                values[f"{key}.{name}"] = value
    return tensors, values


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    parameters = dict(model.named_parameters())
    found = {key.removeprefix("optimizer."): t for key, t in tensors.items() if key.startswith("optimizer.")}
    for path, value in {**found, **values}.items():
        key, _, name = path.partition(".")
        optimizer.state[parameters[name]][key] = value
