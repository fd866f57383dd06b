"""One ordered network on many devices: a plan for each, and one for several where it serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from maestro_edge.errors import BudgetError, TableError
from maestro_edge.planning.greedy import Option
from maestro_edge.planning.problem import Budgets, Problem, solved
from maestro_edge.values import DENSE, LatencyTable, Network, Rank, RankPlan, Sensitivity

__all__ = ["Shared", "plan_fleet"]

_TOLERANCE = 0.02


@dataclass(frozen=True)
class Shared:
    """One choice of ranks and the plans it is on each of its devices' tables."""

    ranks: dict[str, Rank]
    plans: tuple[RankPlan, ...]


def plan_fleet(
    network: Network,
    tables: Sequence[LatencyTable],
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    *,
    tolerance: float = _TOLERANCE,
) -> tuple[Shared, ...]:
    """A plan for every table under its own of `budgets`, as few different ones as can be.

    Two plans become one where a choice keeps the budgets of both on their own tables and the predicted loss of
    each device, base_loss and the plan's charge, rises by at most `tolerance` of itself. Pairs that lose least are
    merged first, then groups, until none can be. Only tables of one runtime, version and precision can share: a
    file is of one.

    Raises:
        BudgetError: a device's budgets are out of reach; its table is named.
        TableError: there is no table, or not as many budgets, or one is mixed; as plan().
    """
    if not tables or len(budgets) != len(tables):
        raise TableError(f"{len(tables)} tables and {len(budgets)} budgets: give both for every device")
    mixed = next((table for table in tables if table.precision == "mixed"), None)
    if mixed is not None:
        raise TableError(f"{mixed.title} is a mixed table, devices of a fleet share ranks alone: give one of fp32")
    problems = [
        Problem.of(network, table, sensitivity, own, None, None)
        for table, own in zip(tables, budgets, strict=True)
    ]
    alone = [problem.plan(exact=False) for problem in problems]
    groups = [_Group((index,), item.ranks, item.charge) for index, item in enumerate(alone)]
    limits = [(1 + tolerance) * (sensitivity.base_loss + item.charge) - sensitivity.base_loss for item in alone]
    while merged := _cheapest(groups, problems, limits):
        groups = [group for group in groups if not set(group.members) <= set(merged.members)] + [merged]
    return tuple(
        Shared(
            dict(group.ranks),
            tuple(
                problems[index].plan_between([group.ranks], [group.ranks], exact=False) for index in group.members
            )
            if len(group.members) > 1
            else (alone[group.members[0]],),
        )
        for group in sorted(groups, key=lambda group: group.members)
    )


@dataclass(frozen=True)
class _Group:
    """Devices by their index, what their plans are, and what is lost."""

    members: tuple[int, ...]
    ranks: dict[str, Rank]
    loss: float


def _cheapest(groups: Sequence[_Group], problems: Sequence[Problem], limits: Sequence[float]) -> _Group | None:
    """Of two groups that can become one, those that lose least by it."""
    found = []
    for one, other in combinations(groups, 2):
        members = tuple(sorted((*one.members, *other.members)))
        joint = _together([problems[index] for index in members])
        if joint is not None and all(joint[1] <= limits[index] + 1e-12 for index in members):
            lost = joint[1] * len(members) - one.loss * len(one.members) - other.loss * len(other.members)
            found.append((lost, members, joint))
    if not found:
        return None
    _, members, (ranks, loss) = min(found, key=lambda item: item[:2])
    return _Group(members, ranks, loss)


def _together(problems: Sequence[Problem]) -> tuple[dict[str, Rank], float] | None:
    """The ranks of least loss that keep every device's budgets on its own table."""
    if len({(p.table.runtime, p.table.runtime_version, p.table.precision) for p in problems}) > 1:
        return None
    names = list(problems[0].choices)
    # A rank that is slower than dense somewhere is no option anywhere: no device gets a layer slower than dense.
    common: dict[str, list[Rank]] = {
        name: [
            rank
            for _, rank in problems[0].choices[name]
            if all(rank in {own for _, own in problem.choices[name]} for problem in problems)
        ]
        for name in names
    }
    specs = {layer.name: layer.spec for layer in problems[0].network.ordered}
    options = [
        [
            Option(
                tuple(each.of_layer(specs[name], rank) for problem in problems for each in problem.accounts),
                problems[0].sensitivity.charge(name, rank),
            )
            for rank in common[name]
        ]
        for name in names
    ]
    assert all(DENSE in ranks for ranks in common.values()), "dense is always an option"
    try:
        found = solved(options, [limit for problem in problems for limit in problem.limits], exact=False)
    except BudgetError:
        return None
    return {name: common[name][index] for name, index in zip(names, found.chosen, strict=True)}, found.loss
