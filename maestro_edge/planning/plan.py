"""plan(): the rank of every layer under budgets, from a latency table and a sensitivity table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

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

__all__ = ["plan", "plan_nested", "reachable_ms", "within"]

_EXACT_S, _GAP_S = 60.0, 5.0
"""Seconds that the exact solver has for a plan, and to tell how far from the optimum a greedy one is."""

_OF_TIME = ("ms", "p90_ms")

Choice = tuple[LayerSpec, Rank]
Budgets = float | Budget | Sequence[Budget]
Margin = float | Mapping[Quantity, float]
GaugeRanks = Mapping[str, Collection[int]]


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
    problem = _Problem.of(network, table, sensitivity, budgets, margin, gauge)
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
) -> tuple[RankPlan, ...]:
    """plan() for each of `budgets`, in which no layer's rank is lower where all budgets are larger.

    Nested plans share their weights: one file can hold several. They are made from the smallest up, or from the
    largest down where that loses less in all. Budgets of which neither is the larger are not held to each other.

    Raises:
        BudgetError: as plan(), or several quantities are bounded in such a way that no nested choice was found.
        TableError: as plan().
    """
    problems = [_Problem.of(network, table, sensitivity, each, margin, gauge) for each in budgets]
    free = [problem.plan(exact=exact) for problem in problems]
    chains = [_nested(problems, exact, rising=rising) for rising in (True, False)]
    nested = [chain for chain in (free, *chains) if chain is not None and _is_nested(problems, chain)]
    if not nested:
        named = "; ".join(" and ".join(map(str, problem.budgets)) for problem in problems)
        raise BudgetError(f"no nested plans were found for {named}: plan each by itself (--no-nested)")
    found = min(nested, key=lambda chain: sum(item.loss_increase for item in chain))
    # The optimum is that of each budget by itself: the gap tells what nesting costs too.
    return tuple(
        item.model_copy(update={"least_loss": alone.least_loss}) for item, alone in zip(found, free, strict=True)
    )


@dataclass(frozen=True)
class _Problem:
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
    ) -> _Problem:
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
            {layer.name: _choices(layer, table, sensitivity, gauge) for layer in network.ordered},
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
                    self.sensitivity.increase(name, rank),
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
        return self._plan(self.choices, found, bound)

    def plan_between(
        self, at_least: Sequence[Mapping[str, Rank]], at_most: Sequence[Mapping[str, Rank]], *, exact: bool
    ) -> RankPlan:
        """A plan whose ranks are within bounds.

        Raises:
            BudgetError: there is none.
        """
        choices = {
            name: [
                choice
                for choice in found
                if all(_order(choice[1]) >= _order(ranks[name]) for ranks in at_least)
                and all(_order(choice[1]) <= _order(ranks[name]) for ranks in at_most)
            ]
            for name, found in self.choices.items()
        }
        found = self._solved(choices, exact=exact)
        return self._plan(choices, found, found.bound)

    def _solved(self, choices: Mapping[str, Sequence[Choice]], *, exact: bool) -> Solution:
        options = self.options(choices)
        return _exactly(options, self.limits, _EXACT_S) if exact else solve(options, self.limits)

    def _plan(self, choices: Mapping[str, Sequence[Choice]], found: Solution, bound: float) -> RankPlan:
        network, table = self.network, self.table
        picked = {name: choices[name][index] for name, index in zip(choices, found.chosen, strict=True)}
        layers = tuple(
            LayerPlan(
                name=layer.name,
                spec=picked[layer.name][0],
                rank=picked[layer.name][1],
                ms=table.row(*picked[layer.name]).ms,
                dense_ms=table.row(layer.spec, DENSE).ms,
                loss_increase=self.sensitivity.increase(layer.name, picked[layer.name][1]),
            )
            for layer in network.ordered
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
            least_loss=bound,
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
            unit = "milliseconds" if budget.quantity in _OF_TIME else UNITS[budget.quantity]
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


def _order(rank: Rank) -> float:
    return math.inf if rank == DENSE else rank


def _round_up(number: float) -> float:
    """Three digits, never below `number`: a budget of what the message names must be accepted."""
    step = 10.0 ** (math.floor(math.log10(number)) - 2)
    return math.ceil(number / step * (1 - 1e-12)) * step


def _choices(
    layer: Layer, table: LatencyTable, sensitivity: Sensitivity, gauge: GaugeRanks | None
) -> list[Choice]:
    """Ranks with both a time below dense and a loss; dense is always one. The gauge form where it is allowed, has
    a loss, and is faster than both the pair and dense.

    Raises:
        TableError: the layer was not measured dense, or a time is not above 0.
    """
    known = sensitivity.losses.get(layer.name, {})
    dense_ms = table.row(layer.spec, DENSE).ms
    found: list[Choice] = []
    for rank in table.ranks(layer.spec):
        ms = table.row(layer.spec, rank).ms
        if not ms > 0:
            raise TableError(
                f"{table.title}: {layer.name} at rank {rank} takes {ms:g} ms: profile the model again"
            )
        if rank == DENSE or (str(rank) in known and ms < dense_ms):
            found.append((layer.spec, rank))
    allowed = (gauge or {}).get(layer.name, ())
    for rank in table.gauge_ranks(layer.spec):
        pair_ms = min((table.row(*choice).ms for choice in found if choice[1] == rank), default=dense_ms)
        if rank in allowed and str(rank) in known and 0 < table.row(layer.spec.gauged, rank).ms < pair_ms:
            found.append((layer.spec.gauged, rank))
    return found


def reachable_ms(
    network: Network, table: LatencyTable, sensitivity: Sensitivity, *, gauge: GaugeRanks | None = None
) -> float:
    """Predicted milliseconds of the fastest plan."""
    fastest = (
        min(table.row(*choice).ms for choice in _choices(layer, table, sensitivity, gauge))
        for layer in network.ordered
    )
    return account("ms", network, table).whole(sum(fastest))


def _nested(problems: Sequence[_Problem], exact: bool, *, rising: bool) -> list[RankPlan] | None:
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


def _is_nested(problems: Sequence[_Problem], plans: Sequence[RankPlan]) -> bool:
    for problem, made in zip(problems, plans, strict=True):
        for other, larger in zip(problems, plans, strict=True):
            if within(problem.budgets, other.budgets) and any(
                _order(rank) > _order(larger.ranks[name]) for name, rank in made.ranks.items()
            ):
                return False
    return True
