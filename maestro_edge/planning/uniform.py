"""One share of the ranks for all layers: a plan that asks no sensitivity, and a floor under those that do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from maestro_edge.planning.problem import Budgets, Choice, GaugeRanks, Margin, Problem, height
from maestro_edge.values import LatencyTable, Network, Rank, Sensitivity

__all__ = ["uniform_ranks"]


def uniform_ranks(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Budgets,
    *,
    margin: Margin | None = None,
    gauge: GaugeRanks | None = None,
    dense: Collection[str] | None = None,
) -> dict[str, Rank]:
    """Every layer's largest rank within one share of its full rank, the share as large as `budgets` allow.

    Training makes cuts of all layers together good, which sums of single cuts cannot tell: such ranks may lose
    less than those of a plan. Those of a smaller budget are never above those of a larger one. Where no share
    keeps the budgets, the smallest ranks, under which is nothing. `dense` as in plan().

    Raises:
        BudgetError, TableError: as plan().
    """
    problem = Problem.of(network, table, sensitivity, budgets, margin, gauge, dense)
    full = {layer.name: layer.spec.full_rank for layer in network.ordered}
    heights = {
        min(height(rank), full[name]) / full[name] for name, found in problem.choices.items() for _, rank in found
    }
    picked: dict[str, Rank] = {}
    for share in sorted(heights, reverse=True):
        picked = {name: _at(share * full[name], full[name], found) for name, found in problem.choices.items()}
        if _holds(problem, picked):
            break
    return picked


def _at(most: float, full: int, choices: Sequence[Choice]) -> Rank:
    """The largest rank up to `most`, dense as the full one; the smallest where there is none."""
    ranks = sorted({rank for _, rank in choices}, key=height)
    within = (rank for rank in ranks if min(height(rank), full) <= most * (1 + 1e-12))
    return max(within, key=height, default=ranks[0])


def _holds(problem: Problem, ranks: Mapping[str, Rank]) -> bool:
    """Whether the ranks, each in its cheapest form, keep the budgets."""
    return all(
        sum(
            min(each.of_layer(spec, rank) for spec, rank in found if rank == ranks[name])
            for name, found in problem.choices.items()
        )
        <= limit
        for each, limit in zip(problem.accounts, problem.limits, strict=True)
    )
