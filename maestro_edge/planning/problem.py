"""One plan to be made: what each layer may become, what that costs, and the words when nothing fits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from maestro_edge.errors import BudgetError, TableError
from maestro_edge.planning.budgets import Account, account, default_margin
from maestro_edge.planning.exact import solve_exactly
from maestro_edge.planning.greedy import Option, Solution, solve
from maestro_edge.runtimes.silence import silence
from maestro_edge.values import (
    DENSE,
    UNITS,
    Budget,
    LatencyTable,
    Layer,
    LayerPlan,
    LayerSpec,
    Network,
    Promise,
    Quantity,
    Rank,
    RankPlan,
    Sensitivity,
    check_budgets,
)

__all__ = ["Budgets", "Choice", "GaugeRanks", "Margin", "Problem", "choices_of", "height", "solved"]

_EXACT_S, _GAP_S = 60.0, 5.0
"""Seconds that the exact solver has for a plan, and to tell how far from the optimum a greedy one is."""

_OF_TIME = ("ms", "p90_ms")

Choice = tuple[LayerSpec, Rank]
Budgets = float | Budget | Sequence[Budget]
Margin = float | Mapping[Quantity, float]
GaugeRanks = Mapping[str, Collection[int]]


@dataclass(frozen=True)
class Problem:
    """One plan to be made: what each layer may become, and what the layers may add up to."""

    network: Network
    table: LatencyTable
    sensitivity: Sensitivity
    budgets: tuple[Budget, ...]
    margins: tuple[float, ...]
    accounts: tuple[Account, ...]
    choices: Mapping[str, Sequence[Choice]]

    @classmethod
    def of(
        cls,
        network: Network,
        table: LatencyTable,
        sensitivity: Sensitivity,
        budgets: Budgets,
        margin: Margin | None,
        gauge: GaugeRanks | None,
        dense: Collection[str] | None = None,
    ) -> Problem:
        """`dense` names the layers that stay so; all others then are pairs. Raises as plan()."""
        checked = check_budgets(budgets)
        if sensitivity.network != network.fingerprint:
            raise TableError(f"the sensitivity table is of another network than {network.name}: measure it again")
        margins = tuple(_margin(budget, margin, network, table) for budget in checked)
        twice = [name for name, count in Counter(layer.name for layer in network.ordered).items() if count > 1]
        if twice:
            raise TableError(f"{network.name} has two layers named {twice[0]!r}: give every layer its own name")
        return cls(
            network,
            table,
            sensitivity,
            checked,
            margins,
            tuple(account(budget.quantity, network, table) for budget in checked),
            {
                layer.name: _of_one_form(choices_of(layer, table, sensitivity, gauge), layer, dense)
                for layer in network.ordered
            },
        )

    @property
    def limits(self) -> list[float]:
        """What the ordered layers may add up to in each quantity."""
        return [
            each.layers(budget.limit * (1 - margin))
            for each, budget, margin in zip(self.accounts, self.budgets, self.margins, strict=True)
        ]

    def options(self, choices: Mapping[str, Sequence[Choice]]) -> list[list[Option]]:
        return [
            [
                Option(
                    tuple(each.of_layer(spec, rank) for each in self.accounts),
                    self.sensitivity.charge(name, rank, int8=spec.int8),
                )
                for spec, rank in found
            ]
            for name, found in choices.items()
        ]

    def plan(self, *, exact: bool) -> RankPlan:
        try:
            found = self._solved(self.choices, exact=exact)
        except BudgetError:
            raise BudgetError(self._unreachable()) from None
        bound = found.bound if exact else _exactly(self.options(self.choices), self.limits, _GAP_S).bound
        return self.made(self.choices, found, bound)

    def plan_between(
        self, at_least: Sequence[Mapping[str, Rank]], at_most: Sequence[Mapping[str, Rank]], *, exact: bool
    ) -> RankPlan:
        """A plan whose ranks are within bounds.

        Raises:
            BudgetError: there is none.
        """
        bounded = self.between(at_least, at_most)
        found = self._solved(bounded.choices, exact=exact)
        return self.made(bounded.choices, found, found.bound)

    def between(self, at_least: Sequence[Mapping[str, Rank]], at_most: Sequence[Mapping[str, Rank]]) -> Problem:
        """With the choices alone whose ranks are within bounds."""
        choices = {
            name: [
                choice
                for choice in found
                if all(height(choice[1]) >= height(ranks[name]) for ranks in at_least)
                and all(height(choice[1]) <= height(ranks[name]) for ranks in at_most)
            ]
            for name, found in self.choices.items()
        }
        return replace(self, choices=choices)

    def _solved(self, choices: Mapping[str, Sequence[Choice]], *, exact: bool) -> Solution:
        return solved(self.options(choices), self.limits, exact=exact)

    def made(self, choices: Mapping[str, Sequence[Choice]], found: Solution, bound: float) -> RankPlan:
        network, table = self.network, self.table
        picked = {name: choices[name][index] for name, index in zip(choices, found.chosen, strict=True)}
        layers = tuple(
            LayerPlan(
                name=layer.name,
                spec=spec,
                rank=rank,
                ms=table.row(spec, rank).ms,
                dense_ms=table.row(layer.spec, DENSE).ms,
                loss_increase=self.sensitivity.increase(layer.name, rank, int8=spec.int8),
                charge=self.sensitivity.charge(layer.name, rank, int8=spec.int8),
            )
            for layer, (spec, rank) in ((layer, picked[layer.name]) for layer in network.ordered)
        )
        time = account("ms", network, table)
        predicted_ms = time.whole(sum(layer.ms for layer in layers))
        outside = [layer.spec for layer in network.layers if not layer.ordered]
        return RankPlan(
            network=network.fingerprint,
            network_name=network.name,
            device=table.device.name,
            runtime=table.runtime,
            runtime_version=table.runtime_version,
            precision=table.precision,
            threads=table.threads,
            source=table.source,
            promises=tuple(
                Promise(
                    budget=budget,
                    planned=budget.limit * (1 - margin),
                    predicted=each.whole(sum(each.of_layer(*choice) for choice in picked.values())),
                    dense=each.whole(sum(each.of_layer(layer.spec, DENSE) for layer in network.ordered)),
                )
                for budget, margin, each in zip(self.budgets, self.margins, self.accounts, strict=True)
            ),
            least_charge=bound,
            predicted_ms=predicted_ms,
            dense_ms=time.whole(sum(layer.dense_ms for layer in layers)),
            layers=layers,
            other_ms=predicted_ms - sum(layer.ms for layer in layers),
            other_params=network.other_params + sum(spec.params() for spec in outside),
            other_macs=sum(spec.macs() for spec in outside),
        )

    def _unreachable(self) -> str:
        """Which budget binds, and the least that each could be."""
        options, limits = self.options(self.choices), self.limits
        alone = [sum(min(option.costs[i] for option in layer) for layer in options) for i in range(len(limits))]
        asked = [self._asked(i, least) for i, least in enumerate(alone)]
        if len(limits) == 1:
            budget, floor = self.budgets[0], self.accounts[0].whole(alone[0])
            what = "fastest plan" if budget.quantity in _OF_TIME else "smallest plan"
            unit = "milliseconds" if budget.quantity in _OF_TIME else UNITS[budget.quantity][1]
            hint = f" (budgets are in {unit})" if floor > 100 * budget.limit else ""
            return (
                f"a budget of {budget} is below the {what}, {budget.say(asked[0])} with its margin, on "
                f"{self.table.title}{hint}: raise the budget or profile smaller ranks"
            )
        over = [least > limit for least, limit in zip(alone, limits, strict=True)]
        parts = [
            f"{budget} (at least {budget.say(asked[i])} alone{'' if any(over) else self._beside(i, options)})"
            for i, budget in enumerate(self.budgets)
        ]
        binding = [str(budget) for budget, is_over in zip(self.budgets, over, strict=True) if is_over]
        what = f"out of reach is {' and '.join(binding)}" if binding else "each can be kept, but not all together"
        return (
            f"no plan on {self.table.title} keeps {', '.join(parts)}: {what}; raise one or profile smaller ranks"
        )

    def _asked(self, index: int, least: float) -> float:
        """A budget of three digits whose plan can be as small as `least`."""
        return _round_up(self.accounts[index].whole(least) / (1 - self.margins[index]))

    def _beside(self, index: int, options: Sequence[Sequence[Option]]) -> str:
        """The least that one quantity can be while the other budgets are kept."""
        others = [i for i in range(len(self.budgets)) if i != index]
        turned = [
            [Option(tuple(option.costs[i] for i in others), option.costs[index]) for option in layer]
            for layer in options
        ]
        try:
            least = _exactly(turned, [self.limits[i] for i in others], _GAP_S).loss
        except BudgetError:
            return ""
        return f", {self.budgets[index].say(self._asked(index, least))} beside the others"


def solved(options: Sequence[Sequence[Option]], limits: Sequence[float], *, exact: bool) -> Solution:
    """By the greedy solver or the exact one.

    Raises:
        BudgetError: no choice was found.
    """
    return _exactly(options, limits, _EXACT_S) if exact else solve(options, limits)


def _exactly(options: Sequence[Sequence[Option]], limits: Sequence[float], timeout_s: float) -> Solution:
    with silence():  # HiGHS prints of its sub-problems whatever it is told
        return solve_exactly(options, limits, timeout_s=timeout_s)


def _margin(budget: Budget, margin: Margin | None, network: Network, table: LatencyTable) -> float:
    given = margin.get(budget.quantity) if isinstance(margin, Mapping) else margin
    if given is None:
        return default_margin(budget.quantity, network, table)
    if not 0 <= given < 1:
        raise BudgetError(f"a margin of {given} is not a share of the budget: give one from 0 to below 1")
    return given


def height(rank: Rank) -> float:
    """To compare ranks: dense is above all."""
    return math.inf if rank == DENSE else rank


def _round_up(number: float) -> float:
    """Three digits, never below `number`: a budget of what the message names must be accepted."""
    step = 10.0 ** (math.floor(math.log10(number)) - 2)
    return math.ceil(number / step * (1 - 1e-12)) * step


def choices_of(
    layer: Layer, table: LatencyTable, sensitivity: Sensitivity, gauge: GaugeRanks | None
) -> list[Choice]:
    """Ranks with both a time below dense and a loss; dense is always one. The gauge form where it is allowed, has
    a loss, and is faster than both the pair and dense; int8 where it has a loss, and is faster than fp32.

    Raises:
        TableError: the layer was not measured dense, or a time is not above 0.
    """
    known = sensitivity.options.get(layer.name, {})
    dense_ms = table.row(layer.spec, DENSE).ms
    found: list[Choice] = []
    for rank in table.ranks(layer.spec):
        ms = table.row(layer.spec, rank).ms
        if not ms > 0:
            raise TableError(
                f"{table.title}: {layer.name} at rank {rank} takes {ms:g} ms: profile the model again"
            )
        if rank == DENSE or (rank in known and ms < dense_ms):
            found.append((layer.spec, rank))
    allowed = (gauge or {}).get(layer.name, ())
    for rank in table.gauge_ranks(layer.spec):
        pair_ms = min((table.row(*choice).ms for choice in found if choice[1] == rank), default=dense_ms)
        if rank in allowed and rank in known and 0 < table.row(layer.spec.gauged, rank).ms < pair_ms:
            found.append((layer.spec.gauged, rank))
    rounded = sensitivity.int8.get(layer.name, {})
    return found + [(layer.spec.quantised, rank) for rank in table.int8_ranks(layer.spec) if rank in rounded]


def _of_one_form(choices: list[Choice], layer: Layer, dense: Collection[str] | None) -> list[Choice]:
    """All of them where `dense` is None; else dense alone for the layers it names, and pairs alone for others."""
    if dense is None:
        return choices
    stock = [choice for choice in choices if choice[0] == layer.spec]
    pairs = [] if layer.name in dense else [choice for choice in stock if choice[1] != DENSE]
    return pairs or [choice for choice in stock if choice[1] == DENSE]
