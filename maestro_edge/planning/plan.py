"""plan(): the rank of every layer under a budget, from a latency table and a sensitivity table."""

from __future__ import annotations

import math
from collections.abc import Mapping

from maestro_edge.errors import BudgetError, TableError
from maestro_edge.planning.greedy import Option, solve
from maestro_edge.values import (
    DENSE,
    LatencyTable,
    Layer,
    LayerPlan,
    Network,
    Rank,
    RankPlan,
    Sensitivity,
    check_budget,
)

__all__ = ["plan", "reachable_ms"]

_SMALLEST_MARGIN, _LARGEST_MARGIN = 0.02, 0.1


def plan(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    budget_ms: float,
    *,
    margin: float | None = None,
) -> RankPlan:
    """Choose a rank or dense for every ordered layer so that the predicted time keeps `budget_ms`.

    `margin` is the share of the budget left free for the error of the prediction; by default the table's
    leave-one-out error, at least 2 % and at most 10 %.

    Raises:
        BudgetError: the budget is not a time, or below the fastest plan (which is named).
        TableError: the tables are of another network.
    """
    budget_ms = check_budget(budget_ms)
    if sensitivity.network != network.fingerprint:
        raise TableError(f"the sensitivity table is of another network than {network.name}: measure it again")
    calibration = table.calibration(network)
    if margin is None:
        margin = min(_LARGEST_MARGIN, max(_SMALLEST_MARGIN, calibration.loo_mape))
    if not 0 <= margin < 1:
        raise BudgetError(f"a margin of {margin} is not a share of the budget: give one from 0 to below 1")
    planned_ms = budget_ms * (1 - margin)
    ranks = {layer.name: _ranks(layer, table, sensitivity) for layer in network.ordered}
    options = [
        [
            Option((table.row(layer.spec, rank).ms,), sensitivity.increase(layer.name, rank))
            for rank in ranks[layer.name]
        ]
        for layer in network.ordered
    ]
    fixed_ms = sum(table.row(layer.spec, DENSE).ms for layer in network.layers if not layer.ordered)
    layers_ms = (planned_ms - calibration.intercept_ms) / calibration.slope - calibration.rest_ms - fixed_ms
    try:
        chosen = solve(options, [layers_ms]).chosen
    except BudgetError:
        floor = reachable_ms(network, table, sensitivity)
        hint = " (budgets are in milliseconds)" if floor > 100 * budget_ms else ""
        raise BudgetError(
            f"a budget of {budget_ms:g} ms is below the fastest plan, {_round_up(floor / (1 - margin)):g} ms with "
            f"its margin, on {table.title}{hint}: raise the budget or profile smaller ranks"
        ) from None
    picked = {layer.name: ranks[layer.name][index] for layer, index in zip(network.ordered, chosen, strict=True)}
    return _rank_plan(network, table, sensitivity, picked, budget_ms=budget_ms, planned_ms=planned_ms)


def _round_up(ms: float) -> float:
    """Three digits, never below `ms`: a budget of what the message names must be accepted."""
    step = 10.0 ** (math.floor(math.log10(ms)) - 2)
    return math.ceil(ms / step * (1 - 1e-12)) * step


def _ranks(layer: Layer, table: LatencyTable, sensitivity: Sensitivity) -> list[Rank]:
    """Ranks with both a time below dense and a loss; dense is always one."""
    known = sensitivity.options.get(layer.name, {})
    dense_ms = table.row(layer.spec, DENSE).ms
    return [
        rank
        for rank in table.ranks(layer.spec)
        if rank == DENSE or (rank in known and table.row(layer.spec, rank).ms < dense_ms)
    ]


def reachable_ms(network: Network, table: LatencyTable, sensitivity: Sensitivity) -> float:
    """Predicted milliseconds of the fastest plan."""
    fastest: dict[str, Rank] = {}
    for layer in network.ordered:
        ms = {rank: table.row(layer.spec, rank).ms for rank in _ranks(layer, table, sensitivity)}
        fastest[layer.name] = min(ms, key=ms.__getitem__)
    return table.predict_ms(network, fastest)


def _rank_plan(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    ranks: Mapping[str, Rank],
    *,
    budget_ms: float,
    planned_ms: float,
) -> RankPlan:
    layers = tuple(
        LayerPlan(
            name=layer.name,
            spec=layer.spec,
            rank=ranks[layer.name],
            ms=table.row(layer.spec, ranks[layer.name]).ms,
            dense_ms=table.row(layer.spec, DENSE).ms,
            loss_increase=sensitivity.increase(layer.name, ranks[layer.name]),
        )
        for layer in network.ordered
    )
    outside = [layer.spec for layer in network.layers if not layer.ordered]
    predicted_ms = table.predict_ms(network, ranks)
    return RankPlan(
        network=network.fingerprint,
        network_name=network.name,
        device=table.device.name,
        runtime=table.runtime,
        runtime_version=table.runtime_version,
        precision=table.precision,
        threads=table.threads,
        source=table.source,
        budget_ms=budget_ms,
        planned_ms=planned_ms,
        predicted_ms=predicted_ms,
        dense_ms=table.predict_ms(network, {}),
        layers=layers,
        other_ms=predicted_ms - sum(layer.ms for layer in layers),
        other_params=network.other_params + sum(spec.params() for spec in outside),
        other_macs=sum(spec.macs() for spec in outside),
    )
