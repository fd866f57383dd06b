"""The greedy solver of the multiple-choice knapsack: one option a layer, least loss, total time in budget."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from maestro_edge.errors import BudgetError

__all__ = ["Option", "hull", "solve"]


class Option(NamedTuple):
    """What one choice for one layer costs: milliseconds and validation loss."""

    ms: float
    loss: float


def solve(layers: Sequence[Sequence[Option]], budget_ms: float) -> list[int]:
    """Index of the option to take in each layer, total ms ≤ `budget_ms`.

    Starts from the least loss everywhere and takes, while over budget, the step down a layer's hull that
    gives up the least loss per millisecond; a repair pass then spends what is left on any better options.
    The loss is above the optimum by less than one hull step of one layer (the LP bound of the problem).

    Raises:
        BudgetError: even the fastest options together are over budget.
    """
    hulls = [hull(options) for options in layers]
    fastest = sum(options[path[-1]].ms for options, path in zip(layers, hulls, strict=True))
    if fastest > budget_ms:
        raise BudgetError(f"{budget_ms:.4g} ms is below the fastest plan, {fastest:.4g} ms")
    position = [0] * len(layers)
    total = sum(options[path[0]].ms for options, path in zip(layers, hulls, strict=True))
    steps = [(_price(layers[i], hulls[i], 0), i) for i in range(len(layers)) if len(hulls[i]) > 1]
    heapify(steps)
    while total > budget_ms and steps:
        _, i = heappop(steps)
        here = position[i] = position[i] + 1
        total += layers[i][hulls[i][here]].ms - layers[i][hulls[i][here - 1]].ms
        if here + 1 < len(hulls[i]):
            heappush(steps, (_price(layers[i], hulls[i], here), i))
    return _repair(layers, [path[at] for path, at in zip(hulls, position, strict=True)], budget_ms)


def hull(options: Sequence[Option]) -> list[int]:
    """Indices of the lower convex hull of (ms, loss), from the least loss down to the least ms.

    Options that another one beats in both are left out, and so is every option above a straight line
    between two others: that is how one step can pass over several bad options of a non-monotone table.
    """
    falling: list[int] = []
    for index in sorted(range(len(options)), key=lambda i: (options[i].ms, options[i].loss)):
        if falling and options[index].loss >= options[falling[-1]].loss:
            continue
        while len(falling) > 1 and not _turns_up(options, falling[-2], falling[-1], index):
            falling.pop()
        falling.append(index)
    return falling[::-1]


def _turns_up(options: Sequence[Option], a: int, b: int, c: int) -> bool:
    """Whether b lies below the line from a to c."""
    (ax, ay), (bx, by), (cx, cy) = options[a], options[b], options[c]
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0


def _price(options: Sequence[Option], path: Sequence[int], at: int) -> float:
    """Loss given up per millisecond gained by the next step down the hull."""
    here, there = options[path[at]], options[path[at + 1]]
    return (there.loss - here.loss) / (here.ms - there.ms)


def _repair(layers: Sequence[Sequence[Option]], chosen: list[int], budget_ms: float) -> list[int]:
    """Spend the slack: while some single change fits and lowers the loss, make the one that lowers it most."""
    total = sum(options[i].ms for options, i in zip(layers, chosen, strict=True))
    while True:
        best_gain, best = 0.0, (-1, -1)
        for layer, options in enumerate(layers):
            here = options[chosen[layer]]
            for index, option in enumerate(options):
                if here.loss - option.loss > best_gain and total - here.ms + option.ms <= budget_ms:
                    best_gain, best = here.loss - option.loss, (layer, index)
        if best_gain == 0.0:
            return chosen
        layer, index = best
        total += layers[layer][index].ms - layers[layer][chosen[layer]].ms
        chosen[layer] = index
