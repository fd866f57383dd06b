"""Rank samplers: which ranks a training step runs at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import torch

from maestro_edge.errors import TrainingError
from maestro_edge.values import Rank

__all__ = ["PairSampler", "Sampler", "SamplerName", "SandwichSampler", "make_sampler"]

SamplerName = Literal["sandwich", "pairs"]
Ranks = dict[str, Rank]


class Sampler(Protocol):
    """Draws the rank sets of one step; `state` is all that a resumed run needs besides the generator."""

    def draw(self, full: Mapping[str, int], generator: torch.Generator) -> tuple[Ranks, ...]:
        """Rank sets to run in this step; a layer that is not named runs at all its components."""
        ...

    @property
    def state(self) -> list[int]: ...

    def restore(self, state: list[int]) -> None: ...


class PairSampler:
    """The paper's sampler (Maestro, ICML 2024, §3.2): one (layer, rank) pair a step, the rest at full rank.

    Pairs are uniform over all pairs and drawn without replacement; when ranks shrink a new round begins.
    """

    def __init__(self) -> None:
        self._pending: list[int] = []
        self._pairs = 0

    def draw(self, full: Mapping[str, int], generator: torch.Generator) -> tuple[Ranks, ...]:
        """One rank set that names one layer."""
        count = sum(full.values())
        if not self._pending or count != self._pairs:
            self._pairs = count
            self._pending = torch.randperm(count, generator=generator).tolist()
        index = self._pending.pop()
        for name, rank in full.items():
            if index < rank:
                return ({name: index + 1},)
            index -= rank
        raise AssertionError("the drawn index lies beyond the last pair")

    @property
    def state(self) -> list[int]:
        return [self._pairs, *self._pending]

    def restore(self, state: list[int]) -> None:
        self._pairs, self._pending = state[0], list(state[1:])


class SandwichSampler:
    """Largest, smallest and one random rank set a step, cutting all layers together.

    The sandwich rule of slimmable networks (Yu & Huang, ICCV 2019, §3.1) applied to ranks. The random set
    draws a fraction log-uniformly between `smallest` and 1: every other step one that all layers share, else
    one for each layer.
    """

    def __init__(self, *, smallest: float = 1 / 8) -> None:
        if not 0 < smallest <= 1:
            raise TrainingError(f"a smallest fraction of {smallest} is not in (0, 1]")
        self.smallest = smallest
        self._steps = 0

    def draw(self, full: Mapping[str, int], generator: torch.Generator) -> tuple[Ranks, ...]:
        """Three rank sets: full, smallest, random."""
        shared = self._steps % 2 == 0
        self._steps += 1
        draws = torch.rand(1 if shared else max(1, len(full)), generator=generator).tolist()
        fractions = [self.smallest ** (1 - draw) for draw in draws]
        random: Ranks = {
            name: _share(rank, fractions[0 if shared else index])
            for index, (name, rank) in enumerate(full.items())
        }
        return {}, {name: _share(rank, self.smallest) for name, rank in full.items()}, random

    @property
    def state(self) -> list[int]:
        return [self._steps]

    def restore(self, state: list[int]) -> None:
        self._steps = state[0]


def _share(rank: int, fraction: float) -> int:
    # 1e-9: 0.3 * 10 is 3.0000000000000004 in floating point and must not become 4.
    return max(1, min(rank, math.ceil(rank * fraction - 1e-9)))


def make_sampler(name: SamplerName) -> Sampler:
    """The sampler of a name.

    Raises:
        TrainingError: there is none.
    """
    if name == "sandwich":
        return SandwichSampler()
    if name == "pairs":
        return PairSampler()
    raise TrainingError(f"no sampler {name!r}: choose sandwich or pairs")
