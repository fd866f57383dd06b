"""Plans of a run: sensitivities, one device's plans, a fleet's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from maestro_edge.planning import (
    Budgets,
    Shared,
    corrected,
    measure_interaction,
    measure_sensitivity,
    plan,
    plan_fleet,
    plan_nested,
)
from maestro_edge.recipes.run import Progress, Run
from maestro_edge.values import Cut, LatencyTable, RankPlan, Sensitivity

__all__ = ["clear_plans", "fleet_run", "plan_run", "sensitivity_of"]

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
) -> list[RankPlan]:
    """Plan every budget (a number in ms, or several of one plan) on a table, then save all plans.

    What a plan's layers lose together is measured on validation inputs; sensitivities that were corrected by that
    make a second set of plans, which is kept if it loses less in all when measured. None is saved when one
    cannot be made.
    """
    gauge = run.gauge_ranks(table)
    inputs, targets = run.loss_inputs(run.data.validation)
    inputs, targets = inputs[:_INTERACTION_INPUTS], targets[:_INTERACTION_INPUTS]
    measured: dict[str, Cut] = {}

    def made(losses: Sensitivity) -> list[RankPlan]:
        given = run.network, table, losses
        if nested:
            plans = list(plan_nested(*given, budgets, exact=exact, gauge=gauge))
        else:
            plans = [plan(*given, each, exact=exact, gauge=gauge) for each in budgets]
        for item in plans:
            if _assigned(item) not in measured:
                found = measure_interaction(run.ordered, sensitivity, item.ranks, inputs, targets, int8=item.int8)
                measured[_assigned(item)] = found.measured
        return [item.model_copy(update={"measured_loss": measured[_assigned(item)]}) for item in plans]

    plans = made(sensitivity)
    observed = [(item.ranks, measured[_assigned(item)].loss_increase) for item in plans]
    fitted = corrected(sensitivity, observed, int8=[item.int8 for item in plans])
    if fitted is not sensitivity:
        plans = min(plans, made(fitted), key=_measured_loss)
    for item in plans:
        item.save(run.folder / "plans" / f"{item.name}.json")
    return plans


def _assigned(plan: RankPlan) -> str:
    """What it makes of the network's function; a gauge form leaves that as it is."""
    return str((plan.ranks, plan.int8))


def _measured_loss(plans: Sequence[RankPlan]) -> float:
    return sum(item.measured_loss.loss_increase for item in plans if item.measured_loss)


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
