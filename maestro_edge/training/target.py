"""Landing on a size without choosing λ: what the user asks for, and the controller that moves λ to get it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from maestro_edge.errors import TrainingError
from maestro_edge.values import DENSE, LatencyTable, LayerSpec, Network, Value

__all__ = ["Controller", "Sizes", "Target"]


class Target(Value):
    """The size to land on: one of parameters, multiply-accumulates, fp32 bytes, milliseconds on a table."""

    params: PositiveInt | None = None
    macs: PositiveFloat | None = None
    size_bytes: PositiveInt | None = None
    ms: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give exactly one of params, macs, size_bytes and ms")
        return self

    @property
    def unit(self) -> str:
        return next(iter(self.model_dump(exclude_none=True)))

    @property
    def value(self) -> float:
        return float(self.model_dump(exclude_none=True)[self.unit])

    def __str__(self) -> str:
        return _amount(self.value, self.unit)


def _amount(value: float, unit: str) -> str:
    if unit == "ms":
        return f"{value:.4g} ms"
    name = {"macs": "MACs", "params": "params", "size_bytes": "bytes"}[unit]
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.4g} {prefix} {name}"
    return f"{value:.4g} {name}"


class Sizes:
    """The size of a network, in the unit of a target, at any ranks.

    A layer at or above its break-even rank counts as the dense layer that it will be. In milliseconds a rank
    that was not measured counts as the fastest measured option that is not below it.

    Raises:
        TrainingError: the target is out of reach, or in ms without a table.
    """

    def __init__(self, network: Network, target: Target, table: LatencyTable | None = None) -> None:
        if target.ms is not None and table is None:
            raise TrainingError("a target in ms needs the latency table that it is meant on: give table=")
        self.target = target
        self._calibration = None if target.ms is None or table is None else table.calibration(network)
        self._costs = {layer.name: _costs(layer.spec, target, table) for layer in network.ordered}
        outside = [layer.spec for layer in network.layers if not layer.ordered]
        self._fixed = sum(_costs(spec, target, table)[0] for spec in outside)
        if target.params is not None or target.size_bytes is not None:
            self._fixed += network.other_params * (1 if target.params is not None else 4)
        self.smallest, self.dense = self(dict.fromkeys(self._costs, 1)), self({})
        if not self.smallest <= target.value <= self.dense:
            raise TrainingError(
                f"a target of {target} is out of reach: {network.name} goes from {self.text(self.smallest)} with "
                f"every ordered layer at rank 1 to {self.text(self.dense)} dense"
            )

    def __call__(self, ranks: Mapping[str, int]) -> float:
        """The size at `ranks`; a layer that is not named is dense."""
        total = self._fixed + sum(
            costs[min(ranks.get(name, 0), len(costs) - 1)] for name, costs in self._costs.items()
        )
        return total if self._calibration is None else self._calibration.whole_ms(total)

    def saving(self, name: str) -> float:
        """What a component of a layer saves, on average between all of them and one."""
        costs = self._costs[name]
        return max(0.0, costs[0] - costs[1]) / max(1, len(costs) - 2)

    def text(self, size: float) -> str:
        """`size` with its unit."""
        return _amount(size, self.target.unit)


def _costs(spec: LayerSpec, target: Target, table: LatencyTable | None) -> list[float]:
    """What a layer costs dense (first) and at each rank from 1 to full."""
    if target.ms is not None:
        assert table is not None
        return [
            table.row(spec, DENSE).ms,
            *(_fastest_ms(spec, rank, table) for rank in range(1, spec.full_rank + 1)),
        ]
    count = {"macs": spec.macs, "params": spec.params, "size_bytes": spec.size_bytes}[target.unit]
    return [
        float(count(DENSE if rank == 0 or rank >= spec.break_even_rank else rank))
        for rank in range(spec.full_rank + 1)
    ]


def _fastest_ms(spec: LayerSpec, rank: int, table: LatencyTable) -> float:
    options = table.ranks(spec)
    return min(table.row(spec, option).ms for option in options if option == DENSE or option >= rank)


class Controller:
    """Moves λ in one run so that the size follows a line, straight in its logarithm, down to the target.

    From `start` to `end` (shares of the run) every step asks for λ and tells what size it left. Above the line
    λ grows, by at most one factor of e in 1/40 of the way; the moment a step had to be shortened, because it
    would have gone below the line, λ falls. So the first value of λ matters little, and no step overshoots.
    After `end` λ is 0: the rest of the run trains the ranks that were found, without the penalty's pull, and its
    last fifth, from `polish` on, only at full: the size that was asked for counts more than the ones below it.
    """

    def __init__(self, sizes: Sizes, *, steps: int, start: float = 0.05, end: float = 0.6) -> None:
        if steps < 10:
            raise TrainingError(f"{steps} steps are too few to land on {sizes.target}: train 10 steps or more")
        self.sizes = sizes
        self.first, self.last = math.floor(start * steps), max(1, math.floor(end * steps))
        self.polish = math.floor(0.8 * steps)
        self.factor = 1.0

    def line(self, step: int) -> float:
        """The size that the network may not fall below at `step`."""
        done = min(1.0, max(0.0, (step - self.first) / (self.last - self.first)))
        return self.sizes.dense * math.exp(done * math.log(self.sizes.target.value / self.sizes.dense))

    def active(self, step: int) -> bool:
        return self.first <= step < self.last

    def told(self, step: int, size: float, shortened: float) -> None:
        """Adapt λ to the size that the step left, and to the factor by which it was shortened."""
        above = math.log(size / self.line(step + 1))
        push = -1.0 if shortened < 1 else min(1.0, max(0.0, above / 0.05))
        self.factor *= math.exp(40 * push / (self.last - self.first))
