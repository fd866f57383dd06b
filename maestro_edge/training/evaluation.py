"""Loss and accuracy of a model, and the BatchNorm statistics that a cut network needs before either counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maestro_edge.ordered import evaluating

__all__ = ["IGNORED", "Inputs", "Score", "batches", "evaluate", "recalibrate"]

Prepare = Callable[[Tensor], Tensor]

IGNORED = -100
"""Targets of this value do not count, as in torch's own cross-entropy: padding in a batch of sentences."""


class Inputs(Protocol):
    """What can stand for a tensor of inputs, such as images that are decoded when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Tensor, /) -> Tensor: ...


class Score(NamedTuple):
    """Mean cross-entropy and top-1 (0 to 1) over the targets that count, of `images` inputs."""

    loss: float
    top1: float
    images: int

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))


def batches(inputs: Tensor | Inputs, prepare: Prepare, *, size: int = 256) -> Iterator[Tensor]:
    """`inputs` (N, …) prepared in batches of at most `size`."""
    for chosen in torch.split(torch.arange(len(inputs)), size):
        yield prepare(inputs[chosen])


@torch.no_grad()
def evaluate(
    model: nn.Module, inputs: Tensor | Inputs, targets: Tensor, prepare: Prepare, *, size: int = 256
) -> Score:
    """Score `model` in eval mode on (N, …) inputs and (N,) or (N, T) targets; its mode is restored.

    A target of -100 does not count, as in torch's own cross-entropy.
    """
    loss, right, count = 0.0, 0, 0
    with evaluating(model):
        for batch, wanted in zip(batches(inputs, prepare, size=size), torch.split(targets, size), strict=True):
            logits = model(batch).float()
            logits, wanted = logits.reshape(-1, logits.shape[-1]), wanted.flatten()
            loss += F.cross_entropy(logits, wanted, reduction="sum").item()
            right += int((logits.argmax(1) == wanted).sum())
            count += int((wanted != IGNORED).sum())
    return Score(loss / count, right / count, len(targets))


@torch.no_grad()
def recalibrate(model: nn.Module, inputs: Iterable[Tensor]) -> nn.Module:
    """Recompute the BatchNorm statistics of `model` over `inputs`, in place; nothing else changes.

    A cut network sends other activations through its norms than the one whose statistics it carries.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over all batches
            norm.train()
        for batch in inputs:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model
