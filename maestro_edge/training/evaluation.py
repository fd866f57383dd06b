"""Loss and accuracy of a model, and the BatchNorm statistics that a cut network needs before either counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maestro_edge.ordered import evaluating

__all__ = ["Score", "batches", "evaluate", "recalibrate"]

Prepare = Callable[[Tensor], Tensor]


class Score(NamedTuple):
    """Mean cross-entropy and top-1 (0 to 1) over `images`."""

    loss: float
    top1: float
    images: int


def batches(images: Tensor, prepare: Prepare, *, size: int = 256) -> Iterator[Tensor]:
    """`images` (N, C, H, W) prepared in batches of at most `size`."""
    for start in range(0, len(images), size):
        yield prepare(images[start : start + size])


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, targets: Tensor, prepare: Prepare) -> Score:
    """Score `model` in eval mode on (N, C, H, W) images and (N,) targets; its mode is restored."""
    with evaluating(model):
        logits = torch.cat([model(batch).float() for batch in batches(images, prepare)])
    loss = F.cross_entropy(logits, targets).item()
    return Score(loss, (logits.argmax(1) == targets).float().mean().item(), len(targets))


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
