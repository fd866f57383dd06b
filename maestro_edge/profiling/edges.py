"""find_step(): which ranks are worth offering on a device, from the edges of its latency staircase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from maestro_edge.values import LayerSpec, Network

__all__ = ["find_step", "rising_edges", "widest"]

_FIRST, _LAST, _GRID = 16, 64, 8
"""The ranks that are searched; an ordered layer of fewer is too small to tell."""

_RISE = 0.06
"""A step is a rise of 6 % or more: kernels of one tile differ by less than the noise of a calm machine."""


def widest(network: Network) -> LayerSpec | None:
    """The ordered layer that is searched: of those with enough ranks, the one that costs most."""
    specs = [layer.spec for layer in network.ordered if layer.spec.full_rank > _LAST]
    return max(specs, key=lambda spec: spec.macs(_LAST), default=None)


def find_step(times_ms: Callable[[Sequence[int]], Mapping[int, float]], *, expected: int) -> int | None:
    """The distance between the ranks after which a layer gets slower; None when no two edges are found.

    `times_ms(ranks)` measures one layer at those ranks, together. First the two edges that the runtime's usual
    kernels would have are looked at, then those of tiles half as wide; where they are not, edges are searched
    between ranks 16 and 64, those that are there when they are measured once more count, and the distance that
    most of them have is looked at in its turn: on a noisy machine a search finds edges where none are.
    """
    for step in (expected, expected // 2):
        if step > 1 and _has_edges(times_ms, step):
            return step
    edges = _confirmed(rising_edges(times_ms), times_ms)
    gaps = Counter(after - before for before, after in pairwise(edges))
    step = max(gaps, key=lambda gap: (gaps[gap], -gap), default=0)
    return step if step > 1 and _has_edges(times_ms, step) else None


def _has_edges(times_ms: Callable[[Sequence[int]], Mapping[int, float]], step: int) -> bool:
    """Whether times rise after two and after three steps, and less than half as much after two and a half.

    Kernels compute what is left of a tile in other ways than a whole one, so times vary inside it too; and they
    grow all the while by what the second layer of the pair takes.
    """
    two, middle, three = 2 * step, 2 * step + step // 2, 3 * step
    ms = times_ms([two, two + 1, middle, middle + 1, three, three + 1])

    def rise(low: int, high: int) -> float:
        return ms[high] / ms[low] - 1

    edge = min(rise(two, two + 1), rise(three, three + 1))
    return edge > _RISE and rise(middle, middle + 1) <= max(_RISE, edge / 2)


def _confirmed(edges: Sequence[int], times_ms: Callable[[Sequence[int]], Mapping[int, float]]) -> list[int]:
    """A search over many ranks meets some rises that are noise; few of them come twice."""
    ms = times_ms(sorted({rank for edge in edges for rank in (edge, edge + 1)})) if edges else {}
    return [edge for edge in edges if ms[edge + 1] > ms[edge] * (1 + _RISE)]


def rising_edges(times_ms: Callable[[Sequence[int]], Mapping[int, float]]) -> list[int]:
    """The ranks r for which r + 1 takes longer, ascending: neighbours of a grid that differ are bisected."""
    known: dict[int, float] = {}
    wanted = [*range(_FIRST, _LAST + 1, _GRID), _LAST + 1]
    while wanted:
        known |= times_ms(wanted)
        ranks = sorted(known)
        wanted = [
            (low + high) // 2
            for low, high in pairwise(ranks)
            if high - low > 1 and abs(known[high] / known[low] - 1) > _RISE / 2
        ]
    pairs = pairwise(sorted(known))
    return [low for low, high in pairs if high - low == 1 and known[high] > known[low] * (1 + _RISE)]
