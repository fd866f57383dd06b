"""Rank samplers: which ranks a training step runs at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, Protocol

import torch

from maestro_edge.errors import TrainingError
from maestro_edge.values import DENSE, Rank

__all__ = [
    "AlternatingSampler",
    "ChainSampler",
    "IndependentSampler",
    "PairSampler",
    "Sampler",
    "SamplerName",
    "SandwichSampler",
    "SharedSampler",
    "make_sampler",
]

SamplerName = Literal["alternating", "sandwich", "shared", "independent", "pairs"]
Ranks = dict[str, Rank]


class Sampler(Protocol):
    """Draws the rank sets of one step; `state` is all that a resumed run needs besides the generator.

    The first set of a step learns the task. When there are more, it is the full one, and teaches the others.
    """

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


class _Stateless:
    @property
    def state(self) -> list[int]:
        return []

    def restore(self, state: list[int]) -> None:
        pass


class IndependentSampler(_Stateless):
    """Every layer draws its own rank, uniformly from 1 to full; one pass a step."""

    def draw(self, full: Mapping[str, int], generator: torch.Generator) -> tuple[Ranks, ...]:
        """One rank set that names every layer."""
        draws = torch.rand(max(1, len(full)), generator=generator).tolist()
        return ({name: _share(rank, draw) for (name, rank), draw in zip(full.items(), draws, strict=False)},)


class SharedSampler(_Stateless):
    """All layers share one fraction, uniform in (0, 1]; one pass a step."""

    def draw(self, full: Mapping[str, int], generator: torch.Generator) -> tuple[Ranks, ...]:
        """One rank set that names every layer."""
        return (_shares(full, 1 - float(torch.rand(1, generator=generator))),)


class SandwichSampler:
    """Largest, smallest and one random rank set a step, cutting all layers together.

    The sandwich rule of slimmable networks (Yu & Huang, ICCV 2019, §3.1) applied to ranks. The random set
    draws a fraction log-uniformly between `smallest` and 1: every other step one that all layers share, else
    one for each layer.
    """

    def __init__(self, *, smallest: float = 1 / 8) -> None:
        self.smallest = _fraction(smallest)
        self._steps = 0

    def draw(self, full: Mapping[str, int], generator: torch.Generator) -> tuple[Ranks, ...]:
        """Three rank sets: full, smallest, random."""
        self._steps += 1
        random = _random(full, self.smallest, generator, shared=self._steps % 2 == 1)
        return {}, _shares(full, self.smallest), random

    @property
    def state(self) -> list[int]:
        return [self._steps]

    def restore(self, state: list[int]) -> None:
        self._steps = state[0]


class AlternatingSampler:
    """The default: full ranks in one step, a smaller set in the next, each learning the task itself.

    A step is one pass, and every second one is cheap, so that the ranks are trained for less than a dense
    network costs. The smaller set takes turns: a fraction that all layers share, drawn log-uniformly between
    `smallest` and 1, which is what a uniform cut uses; and one of `profiles`, such as a chain that
    `maestro_edge.planning.chain` found, which is what plans use. Without profiles, one fraction for each layer.
    """

    def __init__(self, *, smallest: float = 1 / 16, profiles: Sequence[Mapping[str, Rank]] = ()) -> None:
        self.smallest = _fraction(smallest)
        self.profiles = tuple(dict(profile) for profile in profiles)
        self._steps = 0

    def draw(self, full: Mapping[str, int], generator: torch.Generator) -> tuple[Ranks, ...]:
        """One rank set."""
        turn = self._steps % 4
        self._steps += 1
        if turn % 2 == 0:
            return ({},)
        if turn == 3 and self.profiles:
            return (_profile(self.profiles, full, generator),)
        return (_random(full, self.smallest, generator, shared=turn == 1),)

    @property
    def state(self) -> list[int]:
        return [self._steps]

    def restore(self, state: list[int]) -> None:
        self._steps = state[0]


class ChainSampler(_Stateless):
    """Full ranks, and one profile of a chain of nested ones, drawn uniformly.

    FlexRank's idea (ICML 2026): train only the sizes that will be used. `profiles` go from large to small, as
    `maestro_edge.planning.chain` finds them, and no layer's rank may rise along them.
    """

    def __init__(self, profiles: Sequence[Mapping[str, Rank]]) -> None:
        if not profiles:
            raise TrainingError("a chain of no profiles trains no size: give one profile or more")
        for larger, smaller in pairwise(profiles):
            for name in {*larger, *smaller}:
                before, after = larger.get(name, DENSE), smaller.get(name, DENSE)
                if before != DENSE and (after == DENSE or after > before):
                    raise TrainingError(f"the chain is not nested: layer {name!r} goes from {before} to {after}")
        self.profiles = tuple(dict(profile) for profile in profiles)

    def draw(self, full: Mapping[str, int], generator: torch.Generator) -> tuple[Ranks, ...]:
        """Two rank sets: full, and one profile, its ranks limited to what shrinking has left."""
        return {}, _profile(self.profiles, full, generator)


def _profile(profiles: Sequence[Mapping[str, Rank]], full: Mapping[str, int], generator: torch.Generator) -> Ranks:
    chosen = profiles[int(torch.randint(len(profiles), (1,), generator=generator))]
    return {name: min(rank, full[name]) for name, rank in chosen.items() if rank != DENSE and name in full}


def _fraction(smallest: float) -> float:
    if not 0 < smallest <= 1:
        raise TrainingError(f"a smallest fraction of {smallest} is not in (0, 1]")
    return smallest


def _random(full: Mapping[str, int], smallest: float, generator: torch.Generator, *, shared: bool) -> Ranks:
    draws = torch.rand(1 if shared else max(1, len(full)), generator=generator).tolist()
    fractions = [smallest ** (1 - draw) for draw in draws]
    return {
        name: _share(rank, fractions[0 if shared else index]) for index, (name, rank) in enumerate(full.items())
    }


def _shares(full: Mapping[str, int], fraction: float) -> Ranks:
    return {name: _share(rank, fraction) for name, rank in full.items()}


def _share(rank: int, fraction: float) -> int:
    # 1e-9: 0.3 * 10 is 3.0000000000000004 in floating point and must not become 4.
    return max(1, min(rank, math.ceil(rank * fraction - 1e-9)))


def make_sampler(name: SamplerName) -> Sampler:
    """The sampler of a name; a ChainSampler is made from its profiles instead.

    Raises:
        TrainingError: there is none.
    """
    made: dict[str, type[Sampler]] = {
        "alternating": AlternatingSampler,
        "sandwich": SandwichSampler,
        "shared": SharedSampler,
        "independent": IndependentSampler,
        "pairs": PairSampler,
    }
    if name not in made:
        raise TrainingError(f"no sampler {name!r}: choose {', '.join(made)}")
    return made[name]()
