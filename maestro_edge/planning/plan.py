"""plan(): the rank of every layer under a budget, from a latency table and a sensitivity table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from maestro_edge.errors import BudgetError, TableError
from maestro_edge.planning.greedy import Option, solve
from maestro_edge.values import (
    DENSE,
    LatencyTable,
    Layer,
    LayerPlan,
    LayerSpec,
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
    gauge: Mapping[str, Collection[int]] | None = None,
) -> RankPlan:
    """Choose a rank or dense for every ordered layer so that the predicted time keeps `budget_ms`.

    `gauge` tells at which ranks each layer may take its gauge form (see ordered.gauge_ranks()): where the table
    has a time for it, below those of the pair and of the dense layer, that is one more option, of equal loss.

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
    forms = {layer.name: _forms(layer, table, sensitivity, gauge or {}) for layer in network.ordered}
    options = [
        [
            Option((table.row(spec, rank).ms,), sensitivity.increase(layer.name, rank))
            for spec, rank in forms[layer.name]
        ]
        for layer in network.ordered
    ]
    fixed_ms = sum(table.row(layer.spec, DENSE).ms for layer in network.layers if not layer.ordered)
    layers_ms = (planned_ms - calibration.intercept_ms) / calibration.slope - calibration.rest_ms - fixed_ms
    try:
        chosen = solve(options, [layers_ms]).chosen
    except BudgetError:
        floor = reachable_ms(network, table, sensitivity, gauge=gauge)
        hint = " (budgets are in milliseconds)" if floor > 100 * budget_ms else ""
        raise BudgetError(
            f"a budget of {budget_ms:g} ms is below the fastest plan, {_round_up(floor / (1 - margin)):g} ms with "
            f"its margin, on {table.title}{hint}: raise the budget or profile smaller ranks"
        ) from None
    picked = {layer.name: forms[layer.name][index] for layer, index in zip(network.ordered, chosen, strict=True)}
    return _rank_plan(network, table, sensitivity, picked, budget_ms=budget_ms, planned_ms=planned_ms)


def _round_up(ms: float) -> float:
    """Three digits, never below `ms`: a budget of what the message names must be accepted."""
    step = 10.0 ** (math.floor(math.log10(ms)) - 2)
    return math.ceil(ms / step * (1 - 1e-12)) * step


def _ranks(layer: Layer, table: LatencyTable, sensitivity: Sensitivity) -> list[Rank]:
    """Ranks with both a time below dense and a loss; dense is always one."""
    known = sensitivity.losses.get(layer.name, {})
    dense_ms = table.row(layer.spec, DENSE).ms
    return [
        rank
        for rank in table.ranks(layer.spec)
        if rank == DENSE or (str(rank) in known and table.row(layer.spec, rank).ms < dense_ms)
    ]


_Form = tuple[LayerSpec, Rank]


def _forms(
    layer: Layer, table: LatencyTable, sensitivity: Sensitivity, gauge: Mapping[str, Collection[int]]
) -> list[_Form]:
    """The pair's ranks and dense; the gauge form where it is allowed, has a loss, and is faster than both."""
    known = sensitivity.losses.get(layer.name, {})
    found: list[_Form] = [(layer.spec, rank) for rank in _ranks(layer, table, sensitivity)]
    ms = {rank: table.row(spec, rank).ms for spec, rank in found}
    for rank in table.gauge_ranks(layer.spec):
        slowest_ms = min(ms[DENSE], ms.get(rank, ms[DENSE]))
        allowed = rank in gauge.get(layer.name, ()) and str(rank) in known
        if allowed and table.row(layer.spec.gauged, rank).ms < slowest_ms:
            found.append((layer.spec.gauged, rank))
    return found


def _in_forms(network: Network, forms: Mapping[str, _Form]) -> Network:
    return network.in_gauge({name for name, (spec, _) in forms.items() if spec.factors == "gauge"})


def reachable_ms(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    *,
    gauge: Mapping[str, Collection[int]] | None = None,
) -> float:
    """Predicted milliseconds of the fastest plan."""
    fastest = {
        layer.name: min(_forms(layer, table, sensitivity, gauge or {}), key=lambda form: table.row(*form).ms)
        for layer in network.ordered
    }
    return table.predict_ms(_in_forms(network, fastest), {name: rank for name, (_, rank) in fastest.items()})


def _rank_plan(
    network: Network,
    table: LatencyTable,
    sensitivity: Sensitivity,
    forms: Mapping[str, _Form],
    *,
    budget_ms: float,
    planned_ms: float,
) -> RankPlan:
    layers = tuple(
        LayerPlan(
            name=layer.name,
            spec=spec,
            rank=rank,
            ms=table.row(spec, rank).ms,
            dense_ms=table.row(layer.spec, DENSE).ms,
            loss_increase=sensitivity.increase(layer.name, rank),
        )
        for layer in network.ordered
        for spec, rank in (forms[layer.name],)
    )
    outside = [layer.spec for layer in network.layers if not layer.ordered]
    predicted_ms = table.predict_ms(_in_forms(network, forms), {name: rank for name, (_, rank) in forms.items()})
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
