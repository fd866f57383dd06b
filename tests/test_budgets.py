"""Several budgets, nested plans, the exact solver's gap, and what a plan says when it cannot be made."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maestro_edge.errors import BudgetError, TableError
from maestro_edge.planning import (
    account,
    dense_in_all,
    least_together,
    plan,
    plan_downwards,
    plan_nested,
    reachable_ms,
    uniform_ranks,
    within,
)
from maestro_edge.values import (
    DENSE,
    Alone,
    Budget,
    Cut,
    LatencyRow,
    LatencyTable,
    Network,
    NetworkTiming,
    Quantity,
    Rank,
    RankPlan,
    Sensitivity,
    Timing,
)
from tests.test_planning import INCREASES, NETWORK, SENSITIVITY, TABLE, latency_table, problems, sensitivity


def bound(quantity: Quantity, limit: float) -> Budget:
    return Budget(quantity=quantity, limit=limit)


def order(rank: Rank) -> float:
    return math.inf if rank == DENSE else rank


def never_lower(small: RankPlan, large: RankPlan) -> bool:
    return all(order(rank) <= order(large.ranks[name]) for name, rank in small.ranks.items())


def timed(ranks: Mapping[str, Rank], *, p90: float = 1.1, peak_kib: int, energy_mj: float) -> NetworkTiming:
    """A whole network of the table's own speed, run alone too; its file has 500 bytes beside the weights."""
    ms = TABLE.predict_ms(NETWORK, ranks)
    timing = Timing.of([ms, ms]).model_copy(update={"p90_ms": p90 * ms})
    return NetworkTiming(
        ranks=dict(ranks),
        layers_ms=TABLE.layers_ms(NETWORK, ranks),
        timing=timing,
        alone=Alone(load_ms=1, first_ms=1, peak_kib=peak_kib, energy_mj=energy_mj),
        size_bytes=4 * NETWORK.params(ranks) + 500,
    )


def known() -> LatencyTable:
    """A table whose networks tell p90 (1.1 times the median), energy (3 mJ + 2 mJ a ms), memory and file size."""
    networks = []
    for rank in (4, 8, 16, DENSE):
        ranks: dict[str, Rank] = {"layer0": rank, "layer1": rank}
        energy_mj = 3 + 2 * TABLE.predict_ms(NETWORK, ranks)
        networks.append(timed(ranks, peak_kib=4 * NETWORK.params(ranks) // 1024 + 2000, energy_mj=energy_mj))
    fit = TABLE.calibrations[0].model_copy(update={"networks": tuple(networks)})
    return TABLE.model_copy(update={"calibrations": (fit,)})


KNOWN = known()
QUANTITIES: dict[Quantity, float] = {
    "p90_ms": 1.1 * 3.5,
    "size_bytes": 500 + 4 * (NETWORK.params({}) - 400),
    "memory_bytes": 1024 * 2000 + 4 * (NETWORK.params({}) - 400),
    "macs": NETWORK.macs({}) - 400,
    "params": NETWORK.params({}) - 400,
    "energy_mj": 3 + 2 * 3.5,
}


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_can_be_bounded(quantity: Quantity) -> None:
    """The plan is below dense in what is bounded, keeps the budget, and tells both."""
    budget = bound(quantity, QUANTITIES[quantity])

    made = plan(NETWORK, KNOWN, SENSITIVITY, budget, margin=0)

    (promise,) = made.promises
    assert promise.budget == budget and promise.planned == budget.limit
    assert promise.predicted <= budget.limit * (1 + 1e-9) < promise.dense
    assert promise.predicted == pytest.approx(account(quantity, NETWORK, KNOWN).of_ranks(NETWORK, made.ranks))
    assert any(rank != DENSE for rank in made.ranks.values())


def test_accounts_are_what_the_tables_networks_show() -> None:
    """Counts are exact; p90, energy, memory and file size follow the lines through the measured networks."""
    ranks: dict[str, Rank] = {"layer0": 8, "layer1": DENSE}
    ms, params = TABLE.predict_ms(NETWORK, ranks), NETWORK.params(ranks)
    expected: dict[Quantity, float] = {
        "ms": ms,
        "p90_ms": 1.1 * ms,
        "energy_mj": 3 + 2 * ms,
        "params": params,
        "macs": NETWORK.macs(ranks),
        "size_bytes": 4 * params + 500,
        "memory_bytes": 4 * params + 1024 * 2000,
    }

    for quantity, value in expected.items():
        rel = 1e-3 if quantity == "memory_bytes" else 1e-9  # the peaks are whole KiB
        assert account(quantity, NETWORK, KNOWN).of_ranks(NETWORK, ranks) == pytest.approx(value, rel=rel)


@pytest.mark.parametrize(
    ("quantity", "told"), [("energy_mj", "no energy"), ("memory_bytes", "no peak memory"), ("p90_ms", "no whole")]
)
def test_a_quantity_that_the_table_does_not_know_is_refused(quantity: Quantity, told: str) -> None:
    """Nothing is guessed; file bytes alone follow from the parameters."""
    with pytest.raises(TableError, match=told):
        plan(NETWORK, TABLE, SENSITIVITY, bound(quantity, 1e9))
    assert account("size_bytes", NETWORK, TABLE).of_ranks(NETWORK, {}) == 4 * NETWORK.params({})


def test_several_budgets_hold_together() -> None:
    """A budget in ms that leaves layer0 at rank 16, and one in parameters that takes more."""
    macs = NETWORK.macs({"layer0": 4, "layer1": 4}) + 100

    alone = plan(NETWORK, TABLE, SENSITIVITY, 4.5, margin=0)
    both = plan(NETWORK, TABLE, SENSITIVITY, [bound("ms", 4.5), bound("macs", macs)], margin=0)

    assert NETWORK.macs(alone.ranks) > macs >= NETWORK.macs(both.ranks)
    assert both.predicted_ms <= 4.5 and both.charge >= alone.charge
    assert [promise.budget.quantity for promise in both.promises] == ["ms", "macs"]
    assert (both.name, both.budget_ms) == (f"executorch-4.5ms-{macs / 1e6:g}MMACs", 4.5)


def test_budgets_out_of_reach_say_which_bind_and_how_small_each_can_be() -> None:
    """One line; what it names as reachable can be planned."""
    smallest = NETWORK.params({"layer0": 4, "layer1": 4})
    with pytest.raises(BudgetError) as caught:
        plan(NETWORK, TABLE, SENSITIVITY, [bound("ms", 3), bound("params", smallest - 1)], margin=0)

    message = str(caught.value)
    assert re.search(rf"out of reach is {smallest - 1:,} parameters;", message)
    assert "3 ms (at least 1.5 ms alone)" in message and "\n" not in message


def opposed() -> tuple[LatencyTable, Sensitivity]:
    """Rank 8 of each layer is slow, rank 16 has more parameters: a fast plan is never the smallest."""
    times = [[3.0, 2.9, 1.0, 3.1], [2.0, 1.9, 0.5, 2.1]]
    return latency_table(NETWORK, times), sensitivity(NETWORK, INCREASES)


def test_budgets_that_only_fail_together_say_what_each_leaves_the_other() -> None:
    """Both are reachable alone; the message names the least of each beside the other, which can be planned."""
    table, losses = opposed()
    params = NETWORK.params({"layer0": 8, "layer1": 8})
    with pytest.raises(BudgetError) as caught:
        plan(NETWORK, table, losses, [bound("ms", 2.0), bound("params", params)], margin=0)

    message = str(caught.value)
    assert "each can be kept, but not all together" in message
    told = re.findall(r"alone, (\S+) \w+ beside the others", message)
    named = [float(number.replace(",", "")) for number in told]
    assert len(named) == 2
    assert plan(NETWORK, table, losses, [bound("ms", named[0]), bound("params", params)], margin=0)
    assert plan(NETWORK, table, losses, [bound("ms", 2.0), bound("params", named[1])], margin=0)


@pytest.mark.parametrize("budgets", [[], [bound("ms", 1), bound("ms", 2)]])
def test_no_budget_and_two_of_one_quantity_are_refused(budgets: list[Budget]) -> None:
    """Which of the two was meant is not guessed."""
    with pytest.raises(BudgetError, match="one of each quantity"):
        plan(NETWORK, TABLE, SENSITIVITY, budgets)


def test_a_budget_far_above_dense_brings_a_hint_about_the_unit() -> None:
    """Microseconds, or bytes for kB: a plan is made, and bounds nothing."""
    wide = plan(NETWORK, TABLE, SENSITIVITY, 5000.0)

    assert set(wide.ranks.values()) == {DENSE}
    assert wide.hints() == (
        "a budget of 5,000 ms is 1000 times what the dense network takes, 5 ms: was another unit meant?",
    )
    assert plan(NETWORK, TABLE, SENSITIVITY, 50.0).hints() == ()


def spread(problem: tuple[Network, LatencyTable, Sensitivity], shares: Sequence[float]) -> list[float]:
    """Budgets at these shares of the way from the fastest plan to dense."""
    of, table, losses = problem
    low, high = reachable_ms(of, table, losses), table.predict_ms(of, {})
    return [low + share * (high - low) + 1e-6 for share in shares]


@settings(deadline=None, max_examples=60)
@given(problem=problems(least_rise=-0.1), shares=st.lists(st.floats(0, 1.2), min_size=2, max_size=5))
def test_larger_budgets_never_lower_a_rank(
    problem: tuple[Network, LatencyTable, Sensitivity], shares: Sequence[float]
) -> None:
    """Whatever the staircase, the order of the budgets and their distances; every budget holds."""
    of, table, losses = problem
    budgets = spread(problem, shares)
    assume(all(budget > 0 for budget in budgets))

    made = plan_nested(of, table, losses, budgets, margin=0)
    free = [plan(of, table, losses, budget, margin=0) for budget in budgets]

    for budget, item, alone in zip(budgets, made, free, strict=True):
        assert item.budget_ms == budget and item.predicted_ms <= budget * (1 + 1e-9)
        assert item.least_charge == alone.least_charge
        for other, larger in zip(budgets, made, strict=True):
            assert budget > other or never_lower(item, larger)


@settings(deadline=None, max_examples=60)
@given(problem=problems(), share=st.floats(0, 1.2))
def test_the_gap_is_a_bound_and_the_exact_plan_has_none(
    problem: tuple[Network, LatencyTable, Sensitivity], share: float
) -> None:
    """The greedy plan is at most its gap above the exact one."""
    of, table, losses = problem
    low, high = reachable_ms(of, table, losses), table.predict_ms(of, {})
    budget_ms = low + share * (high - low) + 1e-6

    greedy = plan(of, table, losses, budget_ms, margin=0)
    exact = plan(of, table, losses, budget_ms, margin=0, exact=True)

    assert exact.gap <= 1e-6
    assert exact.charge <= greedy.charge + 1e-9
    assert greedy.charge - greedy.gap <= exact.charge + 1e-6


@settings(deadline=None, max_examples=60)
@given(problem=problems(least_rise=-0.1), shares=st.lists(st.floats(0.05, 1.2), min_size=2, max_size=4))
def test_plans_can_stand_on_one_share_of_all_ranks(
    problem: tuple[Network, LatencyTable, Sensitivity], shares: Sequence[float]
) -> None:
    """The floors of larger budgets are nowhere lower; plans on them keep their budgets and tell the real gap."""
    of, table, losses = problem
    budgets = spread(problem, shares)
    assume(all(budget > 0 for budget in budgets))
    floors = [uniform_ranks(of, table, losses, budget, margin=0) for budget in budgets]
    assume(all(table.predict_ms(of, f) <= budget for f, budget in zip(floors, budgets, strict=True)))

    made = plan_nested(of, table, losses, budgets, margin=0, floors=floors)

    for budget, floor, item in zip(budgets, floors, made, strict=True):
        assert item.predicted_ms <= budget * (1 + 1e-9)
        assert all(order(rank) >= order(floor[name]) for name, rank in item.ranks.items())
        assert item.least_charge == plan(of, table, losses, budget, margin=0).least_charge
        for other, above in zip(budgets, floors, strict=True):
            assert budget > other or all(order(rank) <= order(above[name]) for name, rank in floor.items())


def pairs_of(item: RankPlan) -> set[str]:
    return {name for name, rank in item.ranks.items() if rank != DENSE}


@settings(deadline=None, max_examples=60)
@given(problem=problems(least_rise=-0.1), shares=st.lists(st.floats(0, 1.2), min_size=1, max_size=5))
def test_plans_can_agree_on_which_layers_are_pairs(
    problem: tuple[Network, LatencyTable, Sensitivity], shares: Sequence[float]
) -> None:
    """However many budgets: every one that can be kept alone is kept, nested, in the forms that were chosen."""
    of, table, losses = problem
    budgets = spread(problem, shares)
    assume(all(budget > 0 for budget in budgets))

    dense = dense_in_all(of, table, losses, budgets, margin=0)
    made = plan_nested(of, table, losses, budgets, margin=0, dense=dense)

    for budget, item in zip(budgets, made, strict=True):
        assert item.predicted_ms <= budget * (1 + 1e-9)
        assert {layer.name for layer in of.ordered} - pairs_of(item) == dense
        assert all(
            budget > other or never_lower(item, larger) for other, larger in zip(budgets, made, strict=True)
        )


@settings(deadline=None, max_examples=40)
@given(problem=problems(least_rise=-0.1), shares=st.tuples(st.floats(0, 0.6), st.floats(0.6, 1.2)))
def test_the_forms_are_those_in_which_nested_plans_lose_least(
    problem: tuple[Network, LatencyTable, Sensitivity], shares: tuple[float, float]
) -> None:
    """As trying all pairs of nested plans finds."""
    of, table, losses = problem
    small, large = spread(problem, shares)
    assume(small > 0)

    found = dense_in_all(of, table, losses, [large, small], margin=0, exact=True)

    names = [layer.name for layer in of.ordered]
    ways = []
    for layer in of.ordered:
        dense_ms = table.row(layer.spec, DENSE).ms
        ranks = [rank for rank in (4, 8, 16) if table.row(layer.spec, rank).ms < dense_ms]
        ways.append([(DENSE, DENSE), *itertools.combinations_with_replacement(ranks, 2)])
    least: dict[frozenset[str], float] = {}
    for way in itertools.product(*ways):
        plans = [dict(zip(names, ranks, strict=True)) for ranks in zip(*way, strict=True)]
        if all(table.predict_ms(of, each) <= ms for each, ms in zip(plans, (small, large), strict=True)):
            dense = frozenset(name for name in names if plans[0][name] == DENSE)
            loss = sum(losses.charge(name, rank) for each in plans for name, rank in each.items())
            least[dense] = min(loss, least.get(dense, math.inf))
    assert least[found] <= min(least.values()) + 1e-6


def lossy(item: RankPlan, loss: float) -> RankPlan:
    cut = Cut(loss_increase=loss, loss_se=0, top1_drop=0, top1_se=0, n=1)
    return item.model_copy(update={"measured_loss": cut})


@settings(deadline=None, max_examples=60)
@given(problem=problems(), shares=st.lists(st.floats(0.05, 1.2), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_of_several_sets_the_plans_that_lose_least_and_are_nested_are_taken(
    problem: tuple[Network, LatencyTable, Sensitivity], shares: Sequence[float], seed: int
) -> None:
    """As trying all combinations finds; without nesting each budget has its own best."""
    of, table, losses = problem
    budgets = spread(problem, shares)
    assume(all(budget > 0 for budget in budgets) and len(set(budgets)) == len(budgets))
    floors = [uniform_ranks(of, table, losses, budget, margin=0) for budget in budgets]
    assume(all(table.predict_ms(of, f) <= budget for f, budget in zip(floors, budgets, strict=True)))
    draw = random.Random(seed)
    sets = [
        [lossy(item, draw.random()) for item in plan_nested(of, table, losses, budgets, margin=0, floors=under)]
        for under in (None, floors)
    ]

    found = least_together(sets)
    free = least_together(sets, nested=False)

    def loss(plans: Sequence[RankPlan]) -> float:
        return sum(item.measured_loss.loss_increase for item in plans if item.measured_loss)

    def is_nested(plans: Sequence[RankPlan]) -> bool:
        rising = sorted(plans, key=lambda item: item.budget_ms or 0)
        return all(never_lower(small, large) for small, large in itertools.pairwise(rising))

    every = list(itertools.product(*zip(*sets, strict=True)))
    assert [item.budget_ms for item in found] == [item.budget_ms for item in free] == budgets
    assert is_nested(found)
    assert loss(found) == pytest.approx(min(loss(plans) for plans in every if is_nested(plans)))
    assert loss(free) == pytest.approx(min(map(loss, every)))


@settings(deadline=None, max_examples=60)
@given(problem=problems(), shares=st.lists(st.floats(0.05, 1.2), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_from_the_largest_budget_down_the_better_of_two_plans_is_taken(
    problem: tuple[Network, LatencyTable, Sensitivity], shares: Sequence[float], seed: int
) -> None:
    """What is measured decides at every budget, and each plan keeps its budget under the one before."""
    of, table, losses = problem
    budgets = spread(problem, shares)
    assume(all(budget > 0 for budget in budgets) and len(set(budgets)) == len(budgets))
    floors = [uniform_ranks(of, table, losses, budget) for budget in budgets]
    draw, tried = random.Random(seed), dict[float, list[RankPlan]]()

    def measure(item: RankPlan) -> RankPlan:
        found = lossy(item, draw.random())
        tried.setdefault(item.budget_ms or 0, []).append(found)
        return found

    made = plan_downwards(of, table, losses, budgets, floors, tried=measure)

    assume(made)
    for budget, item in zip(budgets, made, strict=True):
        assert item.predicted_ms <= budget * (1 + 1e-9)
        assert item == min(tried[budget], key=lambda each: each.measured_loss.loss_increase)  # type: ignore[union-attr]
    falling = sorted(zip(budgets, floors, made, strict=True), key=lambda each: -each[0])
    for (_, _, large), (budget, floor, small) in itertools.pairwise(falling):
        assert never_lower(small, large)
        on_floor = [
            each
            for each in tried[budget]
            if all(order(each.ranks[n]) >= min(order(r), order(large.ranks[n])) for n, r in floor.items())
        ]
        assert on_floor or len(tried[budget]) == 1


def test_plans_from_the_top_are_none_where_a_budget_is_not_within_the_next() -> None:
    macs, ms = Budget(quantity="macs", limit=10**9), Budget(quantity="ms", limit=100)
    floors = [uniform_ranks(NETWORK, TABLE, SENSITIVITY, each) for each in (macs, ms)]

    assert plan_downwards(NETWORK, TABLE, SENSITIVITY, [macs, ms], floors, tried=lambda item: lossy(item, 0)) == []


def test_the_share_is_as_large_as_the_budget_allows() -> None:
    """Dense where dense is allowed, the smallest ranks where nothing fits, and between as large as can be."""
    dense_ms = TABLE.predict_ms(NETWORK, {})
    between = uniform_ranks(NETWORK, TABLE, SENSITIVITY, 0.8 * dense_ms, margin=0)

    assert set(uniform_ranks(NETWORK, TABLE, SENSITIVITY, dense_ms, margin=0).values()) == {DENSE}
    smallest = uniform_ranks(NETWORK, TABLE, SENSITIVITY, 1e-6, margin=0)
    assert smallest == {layer.name: min(TABLE.ranks(layer.spec), key=order) for layer in NETWORK.ordered}
    assert TABLE.predict_ms(NETWORK, between) <= 0.8 * dense_ms
    assert any(order(rank) > order(smallest[name]) for name, rank in between.items())
    assert len(set(between.values())) == 1  # its layers are alike


def doubtful(losses: Sensitivity, *layers: str) -> Sensitivity:
    """With a standard error at every rank of these layers."""
    options = {
        layer: {r: cut.model_copy(update={"loss_se": 0.05 if layer in layers else 0.0}) for r, cut in cuts.items()}
        for layer, cuts in losses.options.items()
    }
    return losses.model_copy(update={"options": options})


def test_a_fall_of_the_loss_is_no_reason_to_cut_and_doubt_costs() -> None:
    """With a budget that dense keeps nothing is cut; of two equal rises the surer one is taken."""
    lucky = doubtful(sensitivity(NETWORK, [[-0.1, -0.2, -0.3]] * 2), "layer0", "layer1")
    even = doubtful(sensitivity(NETWORK, [[0.1, 0.1, 0.1]] * 2), "layer0")
    times = [[1.0, 1.5, 2.0, 3.0], [1.0, 1.5, 2.0, 3.0]]

    assert set(plan(NETWORK, TABLE, lucky, 5.0, margin=0).ranks.values()) == {DENSE}
    made = plan(NETWORK, latency_table(NETWORK, times), even, 5.0, margin=0)
    assert made.ranks["layer0"] == DENSE and made.ranks["layer1"] != DENSE
    assert (made.loss_increase, made.charge) == pytest.approx((0.1, 0.1))


def test_within_compares_budgets_quantity_by_quantity() -> None:
    """A tighter set keeps a wider one; sets that bound other things do not compare."""
    both = bound("ms", 2), bound("params", 100)

    assert within([bound("ms", 1)], [bound("ms", 2)]) and within(both, [bound("ms", 2)])
    assert not within([bound("ms", 2)], both) and not within([bound("ms", 3)], [bound("ms", 2)])


def test_ranks_can_be_held_between_those_of_other_plans() -> None:
    """As a plan that is made again in a family of nested ones."""
    made = plan(NETWORK, TABLE, SENSITIVITY, 3.5, margin=0, at_least=[{"layer0": 8, "layer1": 16}])

    assert order(made.ranks["layer0"]) >= 8 and order(made.ranks["layer1"]) >= 16
    with pytest.raises(BudgetError):
        plan(NETWORK, TABLE, SENSITIVITY, 3.5, margin=0, at_least=[{"layer0": DENSE, "layer1": 8}])


@pytest.mark.parametrize("ms", [0.0, -1.0])
def test_a_table_with_a_time_that_is_none_is_refused(ms: float) -> None:
    """A layer cannot take 0 ms: it was not measured, or fused away; plans would pile onto it."""
    row = TABLE.rows[0]
    timing = Timing.of([1.0, 1.0]).model_copy(update={"median_ms": ms})
    broken = LatencyRow.model_construct(spec=row.spec, rank=row.rank, method=row.method, timing=timing)
    table = TABLE.model_copy(update={"rows": (broken, *TABLE.rows[1:])})

    with pytest.raises(TableError, match=rf"layer0 at rank 4 takes {ms:g} ms: profile the model again"):
        plan(NETWORK, table, SENSITIVITY, 4.0)


def test_two_layers_of_one_name_are_refused() -> None:
    """A plan could not tell them apart."""
    twin = NETWORK.layers[0]
    network = NETWORK.model_copy(update={"layers": (twin, twin)})
    losses = SENSITIVITY.model_copy(update={"network": network.fingerprint})
    fit = TABLE.calibrations[0].model_copy(update={"network": network.fingerprint})

    with pytest.raises(TableError, match="two layers named 'layer0'"):
        plan(network, TABLE.model_copy(update={"calibrations": (fit,)}), losses, 4.0)
