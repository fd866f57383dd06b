"""Ordered layers in int8-dynamic, emulated in PyTorch as LiteRT computes them: what they cost a mixed network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from maestro_edge.ordered import Ordered, ordered_layers
from maestro_edge.planning.replay import forwards

__all__ = ["Rounding", "round_activations", "round_weights", "rounding"]


class Rounding:
    """Ordered layers that compute in int8 while they are named."""

    def __init__(self) -> None:
        self._names: Collection[str] = ()

    @contextmanager
    def of(self, names: Collection[str]) -> Iterator[None]:
        """Let the layers `names` compute in int8 inside the block."""
        before, self._names = self._names, names
        try:
            yield
        finally:
            self._names = before

    def forward_of(self, name: str, layer: Ordered) -> Callable[[Tensor], Tensor]:
        """What stands for the layer's forward."""
        compute = layer.forward
        return lambda x: _in_int8(layer, x) if name in self._names else compute(x)


@contextmanager
def rounding(model: nn.Module) -> Iterator[Rounding]:
    """A Rounding of the ordered layers of `model`, which have their own forwards back after the block."""
    found = Rounding()
    with forwards({layer: found.forward_of(name, layer) for name, layer in ordered_layers(model).items()}):
        yield found


def _in_int8(layer: Ordered, x: Tensor) -> Tensor:
    """What the layer is deployed as at its present rank, one layer or two, each in int8."""
    folded = layer.active_rank is None or layer.above_break_even(layer.used)
    stock = layer.fold(layer.used) if folded else layer.thin(layer.used)
    for part in (stock,) if folded else stock.children():
        assert isinstance(part.weight, Tensor)
        by_channel = not isinstance(part, nn.Linear)
        part.weight.data = round_weights(part.weight.detach(), by_channel=by_channel)
        x = part(round_activations(x, over=_sharing(part, x)))
    return x


def _sharing(part: nn.Module, x: Tensor) -> tuple[int, ...]:
    """The dimensions of the input over which XNNPACK takes one range of values.

    Those of an image for a convolution, of a row for a linear layer; a 1 x 1 convolution without a stride is a
    linear layer of its pixels.
    """
    if not isinstance(part, nn.Conv1d | nn.Conv2d):
        return (-1,)
    pixels = {*part.kernel_size, *part.stride} == {1}
    return (1,) if pixels else tuple(range(1, x.dim()))


def round_weights(weight: Tensor, *, by_channel: bool) -> Tensor:
    """The (m, ...) weight in 255 steps around zero: of one size, or of a size for each output.

    With one for each output, a BatchNorm behind the layer that is folded into it changes nothing.
    """
    largest = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) if by_channel else weight.abs().max()
    step = (largest / 127).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / step).round() * step


def round_activations(x: Tensor, *, over: tuple[int, ...]) -> Tensor:
    """The activations in 256 steps from the least to the largest `over` some dimensions, zero among them."""
    low, high = x.amin(over, keepdim=True).clamp_max(0), x.amax(over, keepdim=True).clamp_min(0)
    step = ((high - low) / 255).clamp_min(torch.finfo(x.dtype).tiny)
    zero = (-128 - low / step).round()
    return ((x / step + zero).round().clamp(-128, 127) - zero) * step
