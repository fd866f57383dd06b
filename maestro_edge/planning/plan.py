"""plan(): the rank of every layer under budgets, from a latency table and a sensitivity table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from maestro_edge.errors import BudgetError
from maestro_edge.planning.budgets import account
from maestro_edge.planning.problem import Budgets, GaugeRanks, Margin, Problem, choices_of, height
from maestro_edge.values import Budget, LatencyTable, Network, Rank, RankPlan, Sensitivity

__all__ = ["plan", "plan_nested", "reachable_ms", "within"]


def plan(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Budgets,
    *,
    margin: Margin | None = None,
    exact: bool = False,
    gauge: GaugeRanks | None = None,
    at_least: Sequence[Mapping[str, Rank]] = (),
    at_most: Sequence[Mapping[str, Rank]] = (),
) -> RankPlan:
    """Choose a rank or dense for every ordered layer so that the prediction keeps all of `budgets`.

    A number is a budget in milliseconds. `margin` is the share of each budget left free for the error of its
    prediction; where it is not given, that of `default_margin`. The greedy solver chooses, or the `exact` one;
    either way the plan tells how far from the optimum it is at most. `gauge` tells at which ranks each layer may
    take its gauge form (see ordered.gauge_ranks()): where the table has a time for it, below those of the pair and
    of the dense layer, that is one more option, of equal loss. `at_least` and `at_most` bound the rank of every
    layer by those of smaller and of larger plans.

    Raises:
        BudgetError: a budget is not positive, or out of reach: what can be reached, and what binds, is named.
        TableError: the tables are of another network, hold a time that is none, or not the quantity asked for.
    """
    problem = Problem.of(network, table, sensitivity, budgets, margin, gauge)
    if at_least or at_most:
        return problem.plan_between(at_least, at_most, exact=exact)
    return problem.plan(exact=exact)


def plan_nested(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    *,
    margin: Margin | None = None,
    exact: bool = False,
    gauge: GaugeRanks | None = None,
    floors: Sequence[Mapping[str, Rank]] | None = None,
) -> tuple[RankPlan, ...]:
    """plan() for each of `budgets`, in which no layer's rank is lower where all budgets are larger.

    Nested plans share their weights: one file can hold several. They are made from the smallest up, or from the
    largest down where that loses less in all. Budgets of which neither is the larger are not held to each other.
    `floors` are ranks that each plan does not go below, such as uniform_ranks().

    Raises:
        BudgetError: as plan(), or several quantities are bounded in such a way that no nested choice was found.
        TableError: as plan().
    """
    problems = [Problem.of(network, table, sensitivity, each, margin, gauge) for each in budgets]
    free = [problem.plan(exact=exact) for problem in problems]
    held, single = problems, free
    if floors is not None:
        held = [problem.between([floor], ()) for problem, floor in zip(problems, floors, strict=True)]
        single = [problem.plan_between((), (), exact=exact) for problem in held]
    chains = [_nested(held, exact, rising=rising) for rising in (True, False)]
    nested = [chain for chain in (single, *chains) if chain is not None and _is_nested(problems, chain)]
    if not nested:
        named = "; ".join(" and ".join(map(str, problem.budgets)) for problem in problems)
        raise BudgetError(f"no nested plans were found for {named}: plan each by itself (--no-nested)")
    found = min(nested, key=lambda chain: sum(item.charge for item in chain))
    # The optimum is that of each budget by itself: the gap tells what nesting and floors cost too.
    return tuple(
        item.model_copy(update={"least_charge": alone.least_charge})
        for item, alone in zip(found, free, strict=True)
    )


def reachable_ms(
    network: Network, table: LatencyTable, sensitivity: Sensitivity, *, gauge: GaugeRanks | None = None
) -> float:
    """Predicted milliseconds of the fastest plan."""
    fastest = (
        min(table.row(*choice).ms for choice in choices_of(layer, table, sensitivity, gauge))
        for layer in network.ordered
    )
    return account("ms", network, table).whole(sum(fastest))


def _nested(problems: Sequence[Problem], exact: bool, *, rising: bool) -> list[RankPlan] | None:
    """Plans one after the other, each held to those of smaller budgets, or of larger ones; None where none is."""
    order = sorted(range(len(problems)), key=lambda i: [b.limit for b in problems[i].budgets], reverse=not rising)
    found: dict[int, RankPlan] = {}
    for index in order:
        bounds = [
            found[other].ranks
            for other in found
            if within(*(problems[i].budgets for i in ((other, index) if rising else (index, other))))
        ]
        try:
            found[index] = problems[index].plan_between(
                bounds if rising else (), () if rising else bounds, exact=exact
            )
        except BudgetError:
            return None
    return [found[index] for index in range(len(problems))]


def within(small: Sequence[Budget], large: Sequence[Budget]) -> bool:
    """Whether what keeps `small` keeps `large`: each large budget is bounded as tightly by a small one."""
    limits = {budget.quantity: budget.limit for budget in small}
    return all(limits.get(budget.quantity, math.inf) <= budget.limit for budget in large)


def _is_nested(problems: Sequence[Problem], plans: Sequence[RankPlan]) -> bool:
    for problem, made in zip(problems, plans, strict=True):
        for other, larger in zip(problems, plans, strict=True):
            if within(problem.budgets, other.budgets) and any(
                height(rank) > height(larger.ranks[name]) for name, rank in made.ranks.items()
            ):
                return False
    return True
