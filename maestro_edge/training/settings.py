"""What a training is told: its hyper-parameters and its data; and what it tells of every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from maestro_edge.training.evaluation import Inputs
from maestro_edge.training.ordering import PenaltyForm
from maestro_edge.training.samplers import SamplerName
from maestro_edge.training.target import Target
from maestro_edge.values import Value

__all__ = ["Epoch", "TrainSet", "TrainSettings", "bf16_is_fast", "split"]


class TrainSettings(Value):
    """The hyper-parameters of one run; learning rate: linear warm-up, then one cosine down to zero.

    `final_lr` is the share of `lr` that the cosine ends at. `dense_share` of the epochs trains the model as it is;
    then its layers are ordered in place, from the activation-whitened SVD, and the rest of the epochs trains the
    ranks, from the learning rate where that cosine stands. `penalty` is λ of the
    group lasso, chosen by hand; `target` moves it so that the network lands on a size. A step's batch is split
    into `accumulate` micro-batches, and among the processes. `bf16` autocasts; None does where that is faster.
    """

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 5e-4
    warmup_epochs: NonNegativeFloat = 1.0
    final_lr: float = Field(default=0.0, ge=0, le=1)
    clip_norm: PositiveFloat = 1.0
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    dense_share: float = Field(default=0.0, ge=0, lt=1)
    sampler: SamplerName = "alternating"
    penalty: NonNegativeFloat = 0.0
    penalty_form: PenaltyForm = "normalised"
    shrink_below: NonNegativeFloat = 1e-7
    target: Target | None = None
    accumulate: PositiveInt = 1
    bf16: bool | None = None
    seed: int = 0


@dataclass(frozen=True)
class TrainSet:
    """(N, …) inputs and (N,) or (N, T) targets, where -100 does not count.

    `prepare` makes a raw batch an input of the model; `augment` varies the raw batch first; `trim` cuts
    from it and its targets what is padding in all of them.
    """

    name: str
    inputs: Tensor | Inputs
    targets: Tensor
    prepare: Callable[[Tensor], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    trim: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Raw inputs and targets at the indices `chosen`, without the padding that all of them have."""
        inputs, targets = self.inputs[chosen], self.targets[chosen]
        return (inputs, targets) if self.trim is None else self.trim(inputs, targets)


class Epoch(Value):
    """One line of a training's history; `penalty` is λ and `size` the target's unit at the epoch's end."""

    epoch: int
    loss: float
    seconds: float
    ranks: dict[str, int]
    penalty: float = 0.0
    size: float | None = None


def split(settings: TrainSettings) -> tuple[TrainSettings, TrainSettings] | None:
    """The settings of the dense epochs and of the ordered ones; None when no epoch is dense.

    Together they are one cosine: what is ordered goes on at the learning rate that the dense network was at.
    """
    dense_epochs = min(settings.epochs - 1, round(settings.dense_share * settings.epochs))
    if not dense_epochs:
        return None
    turn = 0.5 * (1 + math.cos(math.pi * settings.dense_share))
    first = {
        "epochs": dense_epochs,
        "dense_share": 0.0,
        "target": None,
        "penalty": 0.0,
        "final_lr": turn,
    }
    second = {
        "epochs": settings.epochs - dense_epochs,
        "dense_share": 0.0,
        "lr": settings.lr * turn,
        "warmup_epochs": 0.0,
    }
    return settings.model_copy(update=first), settings.model_copy(update=second)


def bf16_is_fast(device: str) -> bool:
    """Whether `TrainSettings.bf16` left open means bfloat16 on a device of this type ("cpu", "cuda", …).

    Without AVX-512, torch computes it in loops that are many times slower than fp32.
    """
    if device == "cpu":
        return torch.backends.cpu.get_cpu_capability() == "AVX512"
    return device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
