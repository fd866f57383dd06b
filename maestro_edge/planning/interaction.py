"""Cuts of many layers together: what they cost against the sum of each alone, and what a plan makes of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from maestro_edge.planning.paired import CHUNK, joined, pairing
from maestro_edge.values import DENSE, Cut, Rank, Sensitivity, Value

__all__ = ["Interaction", "corrected", "measure_interaction"]

_POWERS = tuple(2.0 ** (k / 50) for k in range(-50, 51))
"""Of the increases, from ½ to 2 in steps of 1.4 %."""


class Interaction(Value):
    """A whole rank assignment: what it costs, beside the sum of what its layers cost alone."""

    ranks: dict[str, Rank]
    int8: tuple[str, ...] = ()
    measured: Cut
    additive: float

    @property
    def error(self) -> float:
        """By how much the sum is above the measured increase of the loss; below 0, cuts make each other worse."""
        return self.additive - self.measured.loss_increase


@torch.no_grad()
def measure_interaction(
    model: nn.Module,
    sensitivity: Sensitivity,
    ranks: Mapping[str, Rank],
    inputs: Tensor,
    targets: Tensor,
    *,
    int8: Collection[str] = (),
    chunk: int = CHUNK,
) -> Interaction:
    """Cut all layers to `ranks` (dense where not named) and compare with the uncut model, as measure_sensitivity.

    Those that `int8` names compute in it, as emulated here. On all `inputs` (N, …) and targets: give those of the
    sensitivity, and the two are of the same samples.

    Raises:
        TableError: the sensitivity has no such rank of a layer.
        ModelError: a name is not an ordered layer.
        DataError: no target counts.
    """
    additive = sum(_alone(sensitivity, ranks, int8))
    found: Cut | None = None
    with pairing(model, inputs, targets, chunk=chunk) as paired:
        for index in range(len(paired)):
            if paired.until[index] < paired.until[index + 1]:
                paired.begin(index)
                found = joined(found, paired.cut(ranks, int8=int8))
    assert found is not None, "there is always a chunk with a target that counts"
    return Interaction(ranks=dict(ranks), int8=tuple(int8), measured=found, additive=additive)


def _alone(sensitivity: Sensitivity, ranks: Mapping[str, Rank], int8: Collection[str]) -> list[float]:
    """What each layer costs by itself."""
    names = dict.fromkeys((*ranks, *int8))
    return [sensitivity.increase(layer, ranks.get(layer, DENSE), int8=layer in int8) for layer in names]


def corrected(
    sensitivity: Sensitivity,
    measured: Sequence[tuple[Mapping[str, Rank], float]],
    *,
    int8: Sequence[Collection[str]] | None = None,
) -> Sensitivity:
    """The sensitivities with increases whose sums come to the `measured` ones, of whole rank assignments.

    Every increase x becomes κ x^q, with one q and one κ for the network. The loss grows with the square of an
    error of the logits: where the errors of the cut layers point in random directions, increases add up (q = 1),
    where they all point in one, their roots do, (Σ √x)² (q = ½), and where the loss saturates, less than the sum
    comes of it (q > 1). So an assignment's increase is (Σ x^q)^(1/q), and as the outer power changes no order, a
    plan on x^q minimises that. One factor for all, without a power, would leave every plan as it is.

    q is the least-squares fit of the logarithm of the increases, between ½ and 2. Each observation falls with
    it, so that one is enough and five only average; κ then makes the sums those measured, which is right near
    them and not far from them. A cut that lowers the loss, which is noise, costs nothing from then on. Top-1 is
    left as it was. Observations of fewer than two increases, or without a rise of the loss, tell nothing: with
    no others, the sensitivities come back as they are. `int8` names for each of `measured` the layers in int8.

    Raises:
        TableError: the sensitivity has no such rank of a layer.
    """
    observed = []
    for (ranks, increase), names in zip(measured, int8 or [()] * len(measured), strict=True):
        alone = [rise for rise in _alone(sensitivity, ranks, names) if rise > 0]
        if len(alone) > 1 and increase > 0:
            observed.append((alone, increase))
    if not observed:
        return sensitivity
    power = min(_POWERS, key=lambda q: sum(_miss(alone, increase, q) ** 2 for alone, increase in observed))
    sums = [sum(rise**power for rise in alone) for alone, _ in observed]
    scale = sum(s * increase for s, (_, increase) in zip(sums, observed, strict=True)) / sum(s * s for s in sums)

    def of(rise: float) -> float:
        return float(scale * max(0.0, rise) ** power)

    def changed(cut: Cut) -> Cut:
        rise = of(cut.loss_increase)
        doubt = of(max(0.0, cut.loss_increase) + cut.loss_se) - rise  # upwards: a lucky cut stays a doubtful one
        return cut.model_copy(update={"loss_increase": rise, "loss_se": doubt})

    both = {
        name: {layer: {rank: changed(cut) for rank, cut in cuts.items()} for layer, cuts in known.items()}
        for name, known in (("options", sensitivity.options), ("int8", sensitivity.int8))
    }
    return sensitivity.model_copy(update=both)


def _miss(alone: Sequence[float], increase: float, power: float) -> float:
    """How far the logarithm of (Σ x^q)^(1/q) is from that of the measured increase."""
    return math.log(sum(rise**power for rise in alone)) / power - math.log(increase)
