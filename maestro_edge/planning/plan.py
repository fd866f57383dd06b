"""plan(): the rank of every layer under budgets, from a latency table and a sensitivity table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise

from maestro_edge.errors import BudgetError
from maestro_edge.planning.budgets import account
from maestro_edge.planning.problem import Budgets, GaugeRanks, Margin, Problem, choices_of, height
from maestro_edge.values import Budget, LatencyTable, Network, Rank, RankPlan, Sensitivity

__all__ = ["least_together", "plan", "plan_downwards", "plan_nested", "reachable_ms", "within"]


def plan(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Budgets,
    *,
    margin: Margin | None = None,
    exact: bool = False,
    gauge: GaugeRanks | None = None,
    dense: Collection[str] | None = None,
    at_least: Sequence[Mapping[str, Rank]] = (),
    at_most: Sequence[Mapping[str, Rank]] = (),
) -> RankPlan:
    """Choose a rank or dense for every ordered layer so that the prediction keeps all of `budgets`.

    A number is a budget in milliseconds. `margin` is the share of each budget left free for the error of its
    prediction; where it is not given, that of `default_margin`. The greedy solver chooses, or the `exact` one;
    either way the plan tells how far from the optimum it is at most. `gauge` tells at which ranks each layer may
    take its gauge form (see ordered.gauge_ranks()): where the table has a time for it, below those of the pair and
    of the dense layer, that is one more option, of equal loss. `dense` names the layers that stay dense, and makes
    pairs of all others (see dense_in_all()). `at_least` and `at_most` bound the rank of every layer by those of
    smaller and of larger plans.

    Raises:
        BudgetError: a budget is not positive, or out of reach: what can be reached, and what binds, is named.
        TableError: the tables are of another network, hold a time that is none, or not the quantity asked for.
    """
    problem = Problem.of(network, table, sensitivity, budgets, margin, gauge, dense)
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
    dense: Collection[str] | None = None,
    floors: Sequence[Mapping[str, Rank]] | None = None,
) -> tuple[RankPlan, ...]:
    """plan() for each of `budgets`, in which no layer's rank is lower where all budgets are larger.

    Nested plans share their weights: one file can hold several. They are made from the smallest up, or from the
    largest down where that loses less in all. Budgets of which neither is the larger are not held to each other.
    `floors` are ranks that each plan does not go below, such as uniform_ranks(). `dense` as in plan().

    Raises:
        BudgetError: as plan(), or several quantities are bounded in such a way that no nested choice was found.
        TableError: as plan().
    """
    problems = [Problem.of(network, table, sensitivity, each, margin, gauge, dense) for each in budgets]
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


def plan_downwards(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    floors: Sequence[Mapping[str, Rank]],
    *,
    tried: Callable[[RankPlan], RankPlan],
    exact: bool = False,
    gauge: GaugeRanks | None = None,
    dense: Collection[str] | None = None,
) -> list[RankPlan]:
    """Nested plans from the largest budget down, each the one of two that loses less under the plan before.

    One of the two may have any ranks, the other goes nowhere below its floor, as far as the plan before does not.
    `tried` gives a plan its `measured_loss`. Empty where budgets are not each within the next, or where no plan
    under the one before keeps a budget. `dense` as in plan().

    Raises:
        BudgetError: a budget is not positive.
        TableError: as plan().
    """
    problems = [Problem.of(network, table, sensitivity, each, None, gauge, dense) for each in budgets]
    order, in_line = _rising([problem.budgets for problem in problems])
    if not in_line:
        return []
    found: dict[int, RankPlan] = {}
    most: list[Mapping[str, Rank]] = []
    for index in reversed(order):
        floor = {
            name: min((rank, *(ranks[name] for ranks in most)), key=height) for name, rank in floors[index].items()
        }
        either = []
        for least in ([], [floor]):
            with suppress(BudgetError):
                either.append(tried(problems[index].plan_between(least, most, exact=exact)))
        if not either:
            return []
        found[index] = min(either, key=_lost)
        most = [found[index].ranks]
    return [found[index] for index in range(len(budgets))]


def least_together(sets: Sequence[Sequence[RankPlan]], *, nested: bool = True) -> list[RankPlan]:
    """For each budget the plan of one of the sets, so that all lose least in all, by their `measured_loss`.

    Each set holds a plan for every budget, in one order, nested as plan_nested() makes them. So is what comes of
    it: from budget to larger budget the set may change where no rank falls; where budgets are not each within
    the next, one set is kept. Without `nested` every budget has the best by itself.
    """
    first = sets[0]
    order, in_line = _rising([item.budgets for item in first])

    def follows(before: Sequence[RankPlan], item: RankPlan) -> bool:
        return not nested or not before or (in_line and _never_lower(before[-1], item))

    ends: list[tuple[float, list[RankPlan]]] = [(0.0, []) for _ in sets]  # of each set, that the last plan is of
    for index in order:
        longer = []
        for own, plans in zip(ends, sets, strict=True):
            item = plans[index]
            loss, before = min((own, *(end for end in ends if follows(end[1], item))), key=lambda end: end[0])
            longer.append((loss + _lost(item), [*before, item]))
        ends = longer
    _, found = min(ends, key=lambda end: end[0])
    return [found[order.index(index)] for index in range(len(first))]


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


def _rising(budgets: Sequence[Sequence[Budget]]) -> tuple[list[int], bool]:
    """Their indices from the smallest to the largest, and whether each is within the next."""
    order = sorted(range(len(budgets)), key=lambda i: [budget.limit for budget in budgets[i]])
    return order, all(within(budgets[small], budgets[large]) for small, large in pairwise(order))


def _lost(plan: RankPlan) -> float:
    assert plan.measured_loss is not None, "plans of unknown loss cannot be compared"
    return plan.measured_loss.loss_increase


def _is_nested(problems: Sequence[Problem], plans: Sequence[RankPlan]) -> bool:
    for problem, made in zip(problems, plans, strict=True):
        for other, larger in zip(problems, plans, strict=True):
            if within(problem.budgets, other.budgets) and not _never_lower(made, larger):
                return False
    return True


def _never_lower(small: RankPlan, large: RankPlan) -> bool:
    return all(height(rank) <= height(large.ranks[name]) for name, rank in small.ranks.items())
