"""Plans of a run: sensitivities, one device's plans, a fleet's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from maestro_edge.errors import BudgetError
from maestro_edge.planning import (
    Budgets,
    Shared,
    corrected,
    dense_in_all,
    least_together,
    measure_interaction,
    measure_sensitivity,
    plan,
    plan_downwards,
    plan_fleet,
    plan_nested,
    uniform_ranks,
)
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.values import Cut, LatencyTable, Rank, RankPlan, Sensitivity

__all__ = ["best_plans", "clear_plans", "fleet_run", "plan_run", "sensitivity_of"]

_INTERACTION_INPUTS = 512
"""Validation inputs on which a whole plan is evaluated."""


def sensitivity_of(run: Run, tables: Sequence[LatencyTable], *, progress: Progress | None = None) -> Sensitivity:
    """Loss of each layer at each rank of `tables` on validation inputs; what was evaluated before is kept."""
    return measure_sensitivity(
        run.ordered,
        run.network,
        tables,
        *run.loss_inputs(run.data.validation),
        path=run.folder / "sensitivity.json",
        progress=progress,
    )


def plan_run(
    run: Run,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    *,
    nested: bool = True,
    exact: bool = False,
    elastic: bool = False,
) -> list[RankPlan]:
    """best_plans(), saved; none is when one cannot be made."""
    plans = best_plans(run, table, sensitivity, budgets, nested=nested, exact=exact, elastic=elastic)
    for item in plans:
        item.save(run.folder / "plans" / f"{item.name}.json")
    return plans


def best_plans(
    run: Run,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    *,
    nested: bool = True,
    exact: bool = False,
    elastic: bool = False,
) -> list[RankPlan]:
    """A plan for every budget (a number in ms, or several of one plan) on a table.

    What a plan's layers lose together is measured on validation inputs. Sensitivities that were corrected by that
    make a second set of plans, and plans that are nowhere below uniform_ranks() a third. A fourth goes from the
    largest budget down and takes the better of both ways under the plan before. Of all least_together() are
    returned. `elastic` plans share all their weights: they are nested, and every layer is dense in all of them or
    a pair in all of them.

    Raises:
        BudgetError, TableError: as plan(), plan_nested() and dense_in_all().
    """
    if elastic and (table.precision != "fp32" or not nested):
        what = f"in {table.precision}" if nested else "not nested"
        raise BudgetError(f"plans {what} share no weights: plan without --elastic")
    forms: dict[str, Any] = {"gauge": None if elastic else run.gauge_ranks(table)}
    if elastic:
        forms["dense"] = dense_in_all(run.network, table, sensitivity, budgets, exact=exact)
    inputs, targets = run.loss_inputs(run.data.validation)
    inputs, targets = inputs[:_INTERACTION_INPUTS], targets[:_INTERACTION_INPUTS]
    measured: dict[str, Cut] = {}

    def tried(item: RankPlan) -> RankPlan:
        key = _assigned(item)
        if key not in measured:
            found = measure_interaction(run.ordered, sensitivity, item.ranks, inputs, targets, int8=item.int8)
            measured[key] = found.measured
        return item.model_copy(update={"measured_loss": measured[key]})

    def made(losses: Sensitivity, floors: Sequence[Mapping[str, Rank]] | None = None) -> list[RankPlan]:
        given = run.network, table, losses
        if nested:
            return list(map(tried, plan_nested(*given, budgets, exact=exact, floors=floors, **forms)))
        under = [[floor] for floor in floors] if floors else [()] * len(budgets)
        return [
            tried(plan(*given, each, exact=exact, at_least=ranks, **forms))
            for each, ranks in zip(budgets, under, strict=True)
        ]

    plans = made(sensitivity)
    observed = [(item.ranks, measured[_assigned(item)].loss_increase) for item in plans]
    fitted = corrected(sensitivity, observed, int8=[item.int8 for item in plans])
    sets = [plans] if fitted is sensitivity else [plans, made(fitted)]
    bounds = [item.least_charge for item in sets[-1]]
    floors = [uniform_ranks(run.network, table, fitted, each, **forms) for each in budgets]
    above = [made(fitted, floors)]
    if nested:
        given = run.network, table, fitted, budgets, floors
        above.append(plan_downwards(*given, tried=tried, exact=exact, **forms))
    for found in filter(None, above):
        # The gap is to the optimum of any ranks, not to that of ranks within bounds.
        pairs = zip(found, bounds, strict=True)
        sets.append([item.model_copy(update={"least_charge": bound}) for item, bound in pairs])
    return least_together(sets, nested=nested)


def _assigned(plan: RankPlan) -> str:
    """What it makes of the network's function; a gauge form leaves that as it is."""
    return str((plan.ranks, plan.int8))


def fleet_run(
    run: Run,
    tables: Sequence[LatencyTable],
    sensitivity: Sensitivity,
    budgets: Sequence[Budgets],
    *,
    tolerance: float,
) -> tuple[Shared, ...]:
    """Plan for several devices at once; their plans go to fleet/DEVICE/ in the run's folder, as files of all."""
    groups = plan_fleet(run.network, tables, sensitivity, budgets, tolerance=tolerance)
    for item in (item for group in groups for item in group.plans):
        item.save(run.folder / "fleet" / re.sub(r"[^\w.+-]+", "-", item.device) / f"{item.name}.json")
    return groups


def clear_plans(run: Run) -> None:
    """Forget the plans made so far."""
    for path in (run.folder / "plans").glob("*.json"):
        path.unlink()
