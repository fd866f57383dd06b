"""Which layers are dense and which are pairs, where all plans of a network are to agree in that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import combinations_with_replacement

import numpy as np

from maestro_edge.errors import BudgetError
from maestro_edge.planning.greedy import Option
from maestro_edge.planning.problem import Budgets, Choice, Margin, Problem, height, solved
from maestro_edge.values import DENSE, LatencyTable, Network, Rank, Sensitivity

__all__ = ["dense_in_all"]

_PLANS, _RANKS = 3, 12
"""So many plans, and ranks of a layer, decide: of more there are too many ways to put them together."""


def dense_in_all(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    *,
    margin: Margin | None = None,
    exact: bool = False,
) -> frozenset[str]:
    """The layers to leave dense in every plan of `budgets`, so that with all others as pairs all lose least.

    Only plans that agree in this share all their weights (see runtimes.elastic). It is one multiple-choice
    knapsack for all plans: a layer is dense in each of them, or has a rank in each that does not fall where
    budgets rise. Of more than three budgets the smallest, a middle and the largest decide.

    Raises:
        BudgetError: a budget is not positive, or no such choice keeps all of them.
        TableError: as plan().
    """
    problems = [Problem.of(network, table, sensitivity, each, margin, None) for each in budgets]
    problems.sort(key=lambda problem: [budget.limit for budget in problem.budgets])
    if len(problems) > _PLANS:
        problems = [problems[index] for index in np.linspace(0, len(problems) - 1, _PLANS).round().astype(int)]
    ways = {name: list(_ways(found, len(problems))) for name, found in problems[0].choices.items()}
    known = [_known(problem) for problem in problems]
    options = [
        [_together([of[name][rank] for of, rank in zip(known, way, strict=True)]) for way in found]
        for name, found in ways.items()
    ]
    limits = [limit for problem in problems for limit in problem.limits]
    # The greedy solver may miss the choices that keep many budgets at once.
    for exactly in [True] if exact else [False, True]:
        with suppress(BudgetError):
            chosen = solved(options, limits, exact=exactly).chosen
            pairs = zip(ways.items(), chosen, strict=True)
            return frozenset(name for (name, found), index in pairs if DENSE in found[index])
    named = "; ".join(" and ".join(map(str, problem.budgets)) for problem in problems)
    raise BudgetError(f"no plans keep {named} with each layer dense in all or in none: plan without --elastic")


def _known(problem: Problem) -> Mapping[str, Mapping[Rank, Option]]:
    """Each layer's options in fp32, by rank."""
    return {
        name: {rank: option for (spec, rank), option in zip(found, options, strict=True) if not spec.int8}
        for (name, found), options in zip(problem.choices.items(), problem.options(problem.choices), strict=True)
    }


def _ways(choices: Sequence[Choice], plans: int) -> Iterator[tuple[Rank, ...]]:
    """What a layer may be in each plan, from the smallest to the largest."""
    dense: Rank = DENSE
    yield (dense,) * plans
    ranks: list[Rank] = sorted({rank for _, rank in choices if rank != DENSE}, key=height)
    if len(ranks) > _RANKS:
        ranks = [ranks[index] for index in np.linspace(0, len(ranks) - 1, _RANKS).round().astype(int)]
    yield from combinations_with_replacement(ranks, plans)


def _together(options: Sequence[Option]) -> Option:
    """One option that costs each plan's budgets what that plan's does."""
    return Option(tuple(cost for each in options for cost in each.costs), sum(each.loss for each in options))
