"""The greedy solver of the multiple-choice knapsack: one option a layer, least loss, every cost in its budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import reduce
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maestro_edge.errors import BudgetError

__all__ = ["Knapsack", "Option", "Solution", "charged", "hulls", "relaxation", "solve"]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

_ROUNDING = 5e-13
"""Sums of floats may pass a budget by this share of it."""
_WEIGHTINGS = 24
"""Weightings of several budgets that are tried."""
_STARTS = 8
"""Choices on the walk that are improved: what the first one keeps may block what a later one has room for."""
_MOVES = 600
"""Changes of one layer that are tried in pairs: those that cost least at the price of the budget."""
_TRIPLED, _FEW = 60, 5000
"""Changes that are tried in threes, where the options are few: where they are many, pairs leave nearly no gap."""
_NEAR = 1e-4
"""A loss that is above its bound by this share is not improved any more."""


class Option(NamedTuple):
    """What one choice for one layer costs, in the order of the budgets, and how much loss it adds."""

    costs: tuple[float, ...]
    loss: float


@dataclasses.dataclass(frozen=True)
class Knapsack:
    """L layers of at most K options and R budgets; what a layer does not have costs and loses infinitely much."""

    costs: Floats  # (R, L, K)
    losses: Floats  # (L, K)
    budgets: Floats  # (R,)

    @classmethod
    def of(cls, layers: Sequence[Sequence[Option]], budgets: Sequence[float]) -> Knapsack:
        most = max(map(len, layers), default=1)
        costs = np.full((len(budgets), len(layers), most), np.inf)
        losses = np.full((len(layers), most), np.inf)
        for index, options in enumerate(layers):
            losses[index, : len(options)] = [option.loss for option in options]
            costs[:, index, : len(options)] = np.array([option.costs for option in options], float).T
        return cls(costs, losses, np.array(budgets, float))

    @property
    def sizes(self) -> Floats:
        """(R,): the budgets, 1 for those that are none: what costs are divided by to be compared."""
        sizes: Floats = np.where(self.budgets > 0, self.budgets, 1.0)
        return sizes

    def weighed(self, weights: Floats) -> Floats:
        """(L, K): the costs of each option, added up with `weights` (R,); 0 where there is no option."""
        finite = np.where(np.isfinite(self.costs), self.costs, 0.0)
        sums: Floats = np.tensordot(weights, finite, 1)
        return sums

    def total(self, chosen: Indices) -> Floats:
        """(R,): what the chosen options cost together."""
        sums: Floats = self.costs[:, np.arange(len(chosen)), chosen].sum(1)
        return sums

    def loss(self, chosen: Indices) -> float:
        return float(self.losses[np.arange(len(chosen)), chosen].sum())

    @property
    def limits(self) -> Floats:
        """(R,): the budgets, with room for the rounding of sums."""
        limits: Floats = self.budgets + _ROUNDING * np.abs(self.budgets)
        return limits

    def holds(self, chosen: Indices) -> bool:
        return bool((self.total(chosen) <= self.limits).all())

    def least(self) -> Floats:
        """(R,): the smallest total of each cost, whatever becomes of the others."""
        least: Floats = self.costs.min(2).sum(1)
        return least


class Solution(NamedTuple):
    """The option of each layer, its loss in all, and a loss that no choice within the budgets can be below.

    `prices` (R,) are the loss per unit of each cost at which the bound holds (Lagrange multipliers, ≥ 0).
    """

    chosen: list[int]
    loss: float
    bound: float
    prices: tuple[float, ...]


def solve(layers: Sequence[Sequence[Option]], budgets: Sequence[float]) -> Solution:
    """Choose the option of each layer, every total ≤ its budget.

    Begins with the least loss everywhere and takes, while over a budget, the step down a layer's hull that gives
    up the least loss for what it saves, which solves the continuous relaxation (Sinha and Zoltners, Operations
    Research 1979). What is left is then spent on changes of one to three layers that lower the loss. Several costs
    are added up as shares of their budgets; shares that stay over one get more weight until all hold.

    Raises:
        BudgetError: no choice was found; for a single budget there is none.
    """
    problem = Knapsack.of(layers, budgets)
    least = problem.least()
    for budget, smallest, limit in zip(budgets, least, problem.limits, strict=True):
        if smallest > limit:
            raise BudgetError(f"{budget:.4g} is below the smallest total, {smallest:.4g}")
    found = _weighted(problem)
    if found is None:
        raise BudgetError("every budget can be kept alone, but no choice was found that keeps all together")
    return found


def hulls(costs: Floats, losses: Floats) -> list[Indices]:
    """Of each row (L, K) the lower convex hull of its (cost, loss), from the least loss down to the least cost.

    Options that another one beats in both are left out, and so is every option above a straight line between
    two others: that is how one step can pass over several bad options of a non-monotone table.
    """
    rows = np.arange(len(losses))
    here = _first_least(losses, costs)
    paths = [[index] for index in here.tolist()]
    while True:
        cost, loss = costs[rows, here], losses[rows, here]
        saved = cost[:, None] - costs
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.where(saved > 0, (losses - loss[:, None]) / saved, np.inf)
        lowest = price.min(1)
        moving = np.flatnonzero(np.isfinite(lowest))
        if not len(moving):
            return [np.array(path) for path in paths]
        # Of options on one line the farthest: those between are no corners.
        on_line = price[moving] <= lowest[moving, None] * (1 + 1e-12)
        there = np.where(on_line, costs[moving], np.inf).argmin(1)
        here[moving] = there
        for row, index in zip(moving.tolist(), there.tolist(), strict=True):
            paths[row].append(index)


def _first_least(losses: Floats, costs: Floats) -> Indices:
    """(L,): of the options of the least loss the cheapest."""
    least = losses == losses.min(1, keepdims=True)
    first: Indices = np.where(least, costs, np.inf).argmin(1)
    return first


def _weighted(problem: Knapsack) -> Solution | None:
    """The best choice over some weightings of the budgets; one budget needs one."""
    count = len(problem.budgets)
    sizes = problem.sizes
    weights = np.full(count, 1.0 / max(1, count))
    bound, prices = -np.inf, np.zeros(count)
    found: dict[bytes, tuple[float, Indices]] = {}
    for _ in range(_WEIGHTINGS if count > 1 else 1):
        choices, price = _walk(problem, weights / sizes)
        tried = price * weights / sizes
        if (below := relaxation(problem, tried)) > bound:
            bound, prices = below, tried
        for chosen in filter(problem.holds, choices):
            better = _singly(problem, chosen)
            found[better.tobytes()] = (problem.loss(better), better)
        used = problem.total(choices[0]) / sizes
        weights = weights * np.exp(3.0 * (used - used.max()))  # what is nearest to its budget counts more
        weights /= weights.sum()
    if not found:
        return None
    starts = sorted(found.values(), key=lambda item: item[0])[:_STARTS]
    chosen = min((_improved(problem, start, prices, bound) for _, start in starts), key=problem.loss)
    loss = problem.loss(chosen)
    return Solution(chosen.tolist(), loss, min(bound, loss), tuple(prices.tolist()))


def _walk(problem: Knapsack, scale: Floats) -> tuple[list[Indices], float]:
    """Choices on the walk down the hulls of the summed costs, and the price of the step that first keeps all.

    On a hull prices rise from step to step, so all steps in the order of their prices are a walk of the whole.
    The first choice keeps every budget if any on the walk does; the others go on for a few steps.
    """
    cost = problem.weighed(scale)
    cost[~np.isfinite(problem.losses)] = np.inf
    paths = hulls(cost, problem.losses)
    start = np.array([path[0] for path in paths], np.intp)
    steps = [(row, a, b) for row, path in enumerate(paths) for a, b in pairwise(path)]
    if not steps or problem.holds(start):
        return [start], 0.0
    rows, before, after = np.array(steps, np.intp).T
    price = (problem.losses[rows, after] - problem.losses[rows, before]) / (cost[rows, before] - cost[rows, after])
    order = np.argsort(price, kind="stable")
    change = problem.costs[:, rows, after] - problem.costs[:, rows, before]
    totals = problem.total(start)[:, None] + np.cumsum(change[:, order], 1)
    held = np.flatnonzero((totals <= problem.limits[:, None]).all(0))
    last = int(held[0]) if len(held) else len(order) - 1
    choices = []
    for end in range(last, min(last + _STARTS, len(order))):
        taken = order[: end + 1]
        chosen = start.copy()
        chosen[rows[taken]] = after[taken]  # a row's steps come in their order: the last assigned is the farthest
        choices.append(chosen)
    return choices, float(price[order[last]])


def relaxation(problem: Knapsack, prices: Floats) -> float:
    """A loss that no choice within the budgets is below, whatever the prices ≥ 0 (Lagrangian relaxation)."""
    return float(charged(problem, prices).min(1).sum() - prices @ problem.budgets)


def charged(problem: Knapsack, prices: Floats) -> Floats:
    """(L, K): loss and costs at their prices."""
    sums: Floats = problem.losses + problem.weighed(prices)
    return sums


def _improved(problem: Knapsack, chosen: Indices, prices: Floats, bound: float) -> Indices:
    """While it lowers the loss within the budgets: one, two or three changes of different layers."""
    rows = np.arange(len(chosen))
    sums = charged(problem, prices)
    while True:
        chosen = _singly(problem, chosen)
        if problem.loss(chosen) - bound <= _NEAR * max(abs(bound), abs(problem.loss(chosen))):
            return chosen
        extra = sums - sums[rows, chosen][:, None]
        extra[rows, chosen] = np.inf
        cheapest = np.argsort(extra, axis=None)[:_MOVES]
        layer, option = np.unravel_index(cheapest[np.isfinite(extra.flat[cheapest])], extra.shape)
        better = _together(problem, chosen, layer, option, 2)
        if better is None and sums.size <= _FEW:
            better = _together(problem, chosen, layer[:_TRIPLED], option[:_TRIPLED], 3)
        if better is None:
            return chosen
        chosen = better


def _together(problem: Knapsack, chosen: Indices, layer: Indices, option: Indices, count: int) -> Indices | None:
    """Of all `count` changes of as many layers that fit, those that gain most; None if none gains."""
    loss = problem.losses[layer, option] - problem.losses[layer, chosen[layer]]
    cost = problem.costs[:, layer, option] - problem.costs[:, layer, chosen[layer]]
    slack = problem.limits - problem.total(chosen)
    gain = reduce(np.add.outer, [loss] * count)
    for each, left in zip(cost, slack, strict=True):
        gain[reduce(np.add.outer, [each] * count) > left] = 0.0
    for first, second in combinations(np.ix_(*[layer] * count), 2):
        gain[np.broadcast_to(first == second, gain.shape)] = 0.0
    if not gain.size or gain.min() >= -_least_gain(problem, chosen):
        return None
    best = np.array(np.unravel_index(int(gain.argmin()), gain.shape))
    changed = chosen.copy()
    changed[layer[best]] = option[best]
    return changed


def _singly(problem: Knapsack, chosen: Indices) -> Indices:
    rows = np.arange(len(chosen))
    while True:
        gain = problem.losses - problem.losses[rows, chosen][:, None]
        after = problem.total(chosen)[:, None, None] + problem.costs - problem.costs[:, rows, chosen][:, :, None]
        gain = np.where((after <= problem.limits[:, None, None]).all(0), gain, 0.0)
        if not gain.size or gain.min() >= -_least_gain(problem, chosen):
            return chosen
        layer, option = np.unravel_index(int(gain.argmin()), gain.shape)
        chosen = chosen.copy()
        chosen[layer] = option


def _least_gain(problem: Knapsack, chosen: Indices) -> float:
    """Gains of the size of rounding would be taken for ever."""
    return 1e-12 * max(1.0, abs(problem.loss(chosen)))
