"""Planning: the solver against brute force, plan() and chain() against their promises."""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from maestro_edge.errors import BudgetError, TableError
from maestro_edge.ordered import order, trace
from maestro_edge.planning import Option, chain, plan, reachable_ms, solve, solve_exactly
from maestro_edge.planning.greedy import Knapsack, Solution, hulls
from maestro_edge.training import ChainSampler
from maestro_edge.values import (
    DENSE,
    Calibration,
    Cut,
    DeviceFacts,
    LatencyRow,
    LatencyTable,
    Layer,
    LayerSpec,
    Network,
    Rank,
    Sensitivity,
    Timing,
)

# The solvers. Quarters and eighths add up exactly, so that "over budget" needs no tolerance.

COSTS = st.integers(0, 20).map(lambda n: n / 4)
LOSSES = st.integers(-4, 12).map(lambda n: n / 8)
OPTIONS = st.builds(lambda cost, loss: Option((cost,), loss), COSTS, LOSSES)
TIED = st.builds(
    lambda cost, loss: Option((cost,), loss), st.sampled_from([1.0, 2.0]), st.sampled_from([0.0, 0.5])
)
TABLES = st.lists(st.lists(OPTIONS | TIED, min_size=1, max_size=5), min_size=1, max_size=4)
PAIRED = st.lists(
    st.lists(st.builds(Option, st.tuples(COSTS, COSTS), LOSSES), min_size=1, max_size=4), min_size=1, max_size=4
)
BUDGETS = st.integers(-1, 64).map(lambda n: n / 4)


def option(ms: float, loss: float) -> Option:
    return Option((ms,), loss)


def totals(layers: Sequence[Sequence[Option]], chosen: Sequence[int]) -> list[float]:
    picked = [options[index].costs for options, index in zip(layers, chosen, strict=True)]
    return [sum(costs) for costs in zip(*picked, strict=True)]


def total_ms(layers: Sequence[Sequence[Option]], chosen: Sequence[int]) -> float:
    return sum(totals(layers, chosen))


def total_loss(layers: Sequence[Sequence[Option]], chosen: Sequence[int]) -> float:
    return sum(options[index].loss for options, index in zip(layers, chosen, strict=True))


def least_loss(layers: Sequence[Sequence[Option]], budgets: Sequence[float]) -> float | None:
    """The optimum by trying every combination; None where none keeps the budgets."""
    every = itertools.product(*(range(len(options)) for options in layers))
    held = (
        total_loss(layers, chosen)
        for chosen in every
        if all(total <= budget for total, budget in zip(totals(layers, chosen), budgets, strict=True))
    )
    return min(held, default=None)


def hull(options: Sequence[Option]) -> list[int]:
    problem = Knapsack.of([options], [0.0])
    return [int(index) for index in hulls(problem.costs[0], problem.losses)[0]]


def largest_step(layers: Sequence[Sequence[Option]]) -> float:
    """The most loss that one step down any layer's hull gives up."""
    steps = [
        options[there].loss - options[here].loss
        for options in layers
        for here, there in itertools.pairwise(hull(options))
    ]
    return max(steps, default=0.0)


@settings(deadline=None, max_examples=400)
@given(layers=TABLES, budget_ms=BUDGETS)
@example(layers=[[option(2, 0), option(1, 0)]], budget_ms=1)
@example(layers=[[option(2, 0), option(2, 0.5), option(2, -0.5)]], budget_ms=2)
@example(layers=[[option(1, 0.5), option(2, 0.25), option(3, 0), option(2, 0)]], budget_ms=2)
@example(layers=[[option(3, 0), option(4, 0.25), option(1, 1)]] * 2, budget_ms=4)
def test_the_solvers_against_brute_force(layers: list[list[Option]], budget_ms: float) -> None:
    """They find a plan exactly when there is one; the greedy one is within the LP's bound, the exact one exact."""
    optimum = least_loss(layers, [budget_ms])
    if optimum is None:
        for solver in (solve, solve_exactly):
            with pytest.raises(BudgetError, match="below the smallest total"):
                solver(layers, [budget_ms])
        return

    found, exact = solve(layers, [budget_ms]), solve_exactly(layers, [budget_ms])

    for solution in (found, exact):
        assert total_ms(layers, solution.chosen) <= budget_ms
        assert total_loss(layers, solution.chosen) == pytest.approx(solution.loss)
        assert solution.bound <= optimum + 1e-6
    excess = found.loss - optimum
    assert excess == 0 or 0 < excess < largest_step(layers)
    assert exact.loss == pytest.approx(optimum, abs=1e-6) and exact.bound == pytest.approx(optimum, abs=1e-6)


@settings(deadline=None, max_examples=300)
@given(layers=PAIRED, budgets=st.tuples(BUDGETS, BUDGETS))
@example(layers=[[Option((0.0, 2.0), 0), Option((2.0, 0.0), 0)]], budgets=(1.0, 1.0))
def test_two_budgets_against_brute_force(layers: list[list[Option]], budgets: tuple[float, float]) -> None:
    """The exact solver decides whether there is a plan; what the greedy one finds keeps both budgets."""
    optimum = least_loss(layers, budgets)
    if optimum is None:
        for solver in (solve, solve_exactly):
            with pytest.raises(BudgetError):
                solver(layers, budgets)
        return

    exact = solve_exactly(layers, budgets)
    try:
        found = solve(layers, budgets)
    except BudgetError:
        found = exact  # with several budgets only the exact solver is sure

    for solution in (found, exact):
        kept = zip(totals(layers, solution.chosen), budgets, strict=True)
        assert all(total <= budget for total, budget in kept)
        assert solution.bound <= optimum + 1e-6
    assert exact.loss == pytest.approx(optimum, abs=1e-6) and found.loss >= optimum


@settings(deadline=None)
@given(layers=TABLES)
def test_the_solver_takes_the_least_loss_when_the_budget_allows_it(layers: list[list[Option]]) -> None:
    """No step is taken that the budget does not ask for."""
    best = [min(options, key=lambda option: (option.loss, option.costs)) for options in layers]

    found = solve(layers, [sum(option.costs[0] for option in best)])

    assert found.loss == sum(option.loss for option in best)


@settings(deadline=None)
@given(layers=TABLES)
def test_the_solver_reaches_the_fastest_plan(layers: list[list[Option]]) -> None:
    """The budget of the fastest options together is kept exactly."""
    fastest = sum(min(option.costs[0] for option in options) for options in layers)

    assert total_ms(layers, solve(layers, [fastest]).chosen) == fastest


@settings(deadline=None)
@given(
    layers=st.lists(
        st.lists(st.builds(option, st.floats(1e-3, 1e3), st.floats(-1, 10)), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    share=st.floats(0, 1.2),
)
def test_the_solver_keeps_budgets_that_do_not_add_up_exactly(layers: list[list[Option]], share: float) -> None:
    """Measured times are any floats; the sum is over by rounding at most."""
    fastest = sum(min(option.costs[0] for option in options) for options in layers)
    slowest = sum(max(option.costs[0] for option in options) for options in layers)
    budget_ms = fastest + share * (slowest - fastest)

    found = solve(layers, [budget_ms])

    assert total_ms(layers, found.chosen) <= budget_ms * (1 + 1e-12)


@pytest.mark.parametrize("solver", [solve, solve_exactly])
def test_no_layers_take_no_time(solver: Callable[..., Solution]) -> None:
    """A network without ordered layers has one plan: itself."""
    assert solver([], [0.0]).chosen == []


def test_a_budget_below_the_fastest_plan_is_named_with_it() -> None:
    """Both times are in the message."""
    layers = [[option(3, 0), option(2, 1)], [option(1.5, 0)]]

    with pytest.raises(BudgetError, match=r"3 is below the smallest total, 3\.5"):
        solve(layers, [3])


@settings(deadline=None, max_examples=300)
@given(options=st.lists(OPTIONS | TIED, min_size=1, max_size=12))
def test_a_hull_is_convex_and_falls_from_the_least_loss_to_the_fastest(options: list[Option]) -> None:
    """Each step saves time, costs loss, and costs more per millisecond than the one before."""
    path = [options[index] for index in hull(options)]

    assert path[0] == min(options, key=lambda option: (option.loss, option.costs))
    assert path[-1] == min(options, key=lambda option: (option.costs, option.loss))
    steps = list(itertools.pairwise(path))
    assert all(there.costs < here.costs and there.loss > here.loss for here, there in steps)
    prices = [(there.loss - here.loss) / (here.costs[0] - there.costs[0]) for here, there in steps]
    assert all(earlier < later for earlier, later in itertools.pairwise(prices))


@settings(deadline=None, max_examples=300)
@given(options=st.lists(OPTIONS | TIED, min_size=1, max_size=12))
def test_no_option_lies_below_the_hull(options: list[Option]) -> None:
    """What is left out is no better than the line between two that are kept."""
    path = [options[index] for index in hull(options)]

    for (ms,), loss in options:
        assert ms >= path[-1].costs[0]
        assert loss >= path[0].loss
        for here, there in itertools.pairwise(path):
            if there.costs[0] <= ms <= here.costs[0]:
                share = (here.costs[0] - ms) / (here.costs[0] - there.costs[0])
                assert loss >= here.loss + share * (there.loss - here.loss) - 1e-9


def measured_curve(rng: random.Random, wrong_share: float) -> tuple[list[Option], set[int]]:
    """40 ranks with a falling loss, some of them slower than the next rank up: as devices really measure."""
    clean = [option(0.25 + rank / 32, 4 / rank) for rank in range(1, 41)]
    wrong = set(rng.sample(range(1, 39), round(wrong_share * 40)))
    slower = [
        option(ms + rng.uniform(2, 6) / 32 + len(wrong) / 32, loss) if i in wrong else option(ms, loss)
        for i, ((ms,), loss) in enumerate(clean)
    ]
    return slower, wrong


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32), wrong_share=st.floats(0.08, 0.2), share=st.floats(0, 1))
def test_ranks_that_are_slower_than_larger_ones_do_not_lead_astray(
    seed: int, wrong_share: float, share: float
) -> None:
    """With 8-20 % of the steps going the wrong way the greedy choice is within 3 % of the optimum."""
    rng = random.Random(seed)
    curves = [measured_curve(rng, wrong_share) for _ in range(12)]
    layers = [options for options, _ in curves]
    fastest, slowest = (sum(pick(o.costs[0] for o in options) for options in layers) for pick in (min, max))
    budget_ms = fastest + share * (slowest - fastest)

    found, exact = solve(layers, [budget_ms]), solve_exactly(layers, [budget_ms], timeout_s=10)

    assert all(index not in wrong for index, (_, wrong) in zip(found.chosen, curves, strict=True))
    # Some of these keep HiGHS busy for a minute: its bound is below the optimum, and near it at once.
    assert exact.bound - 1e-9 <= exact.loss <= found.loss <= 1.03 * exact.bound
    clean = [[o for i, o in enumerate(options) if i not in wrong] for options, wrong in curves]
    without = solve_exactly(clean, [budget_ms], timeout_s=10)
    # One optimum lies between both bounds and both losses, which are equal where HiGHS has proven them.
    assert max(exact.bound, without.bound) <= min(exact.loss, without.loss) * (1 + 1e-6)
    assert exact.loss == pytest.approx(
        without.loss, rel=max(1e-6, 1 - min(exact.bound, without.bound) / exact.loss)
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_solver_keeps_two_budgets_near_the_optimum(seed: int) -> None:
    """Milliseconds, and a cost that falls otherwise; both in the middle of what can be reached."""
    rng = random.Random(seed)
    layers = [
        [
            Option((*o.costs, rng.uniform(0.5, 1.5) * (i + 1)), o.loss)
            for i, o in enumerate(measured_curve(rng, 0.1)[0])
        ]
        for _ in range(12)
    ]
    ends = [[sum(pick(o.costs[k] for o in options) for options in layers) for pick in (min, max)] for k in (0, 1)]
    budgets = [low + 0.5 * (high - low) for low, high in ends]

    found, exact = solve(layers, budgets), solve_exactly(layers, budgets)

    assert all(total <= budget for total, budget in zip(totals(layers, found.chosen), budgets, strict=True))
    assert exact.loss - 1e-9 <= found.loss <= 1.03 * exact.loss


def test_a_thousand_layers_of_64_options_are_solved_in_a_second() -> None:
    """Counted in CPU time: budgets from tight to loose."""
    rng = random.Random(0)
    layers = [[option(rng.uniform(0.1, 10), rng.random()) for _ in range(64)] for _ in range(1000)]
    fastest = sum(min(option.costs[0] for option in options) for options in layers)

    for budget_ms in (1.01 * fastest, 2 * fastest, 10 * fastest):
        started = time.process_time()
        found = solve(layers, [budget_ms])
        cpu_s = time.process_time() - started

        assert total_ms(layers, found.chosen) <= budget_ms
        assert cpu_s < 1, f"{cpu_s:.2f} s of CPU time"


# plan()

RANKS: tuple[Rank, ...] = (4, 8, 16, DENSE)


def spec(index: int) -> LayerSpec:
    """A layer of its own shape, so that each has its own rows."""
    return LayerSpec(kind="linear", in_channels=64 + index, out_channels=64)


def network(ordered: int, *, name: str = "small", dense: int = 0) -> Network:
    layers = [Layer(name=f"layer{i}", spec=spec(i), ordered=i < ordered) for i in range(ordered + dense)]
    return Network(name=name, layers=tuple(layers), other_params=10)


def latency_table(
    of: Network,
    times: Sequence[Sequence[float]],
    *,
    rest_ms: float = 0.0,
    slope: float = 1.0,
    intercept_ms: float = 0.0,
    loo_mape: float = 0.0,
) -> LatencyTable:
    """Exact times for each layer's RANKS (dense alone where one time is given), dense last."""
    rows = [
        LatencyRow(spec=layer.spec, rank=rank, method="probe", timing=Timing.of([ms, ms]))
        for layer, row in zip(of.layers, times, strict=True)
        for rank, ms in zip(RANKS[-len(row) :], row, strict=True)
    ]
    fit = Calibration(
        network=of.fingerprint,
        rest_ms=rest_ms,
        slope=slope,
        intercept_ms=intercept_ms,
        loo_mape=loo_mape,
        networks=(),
    )
    return LatencyTable(
        source="measured",
        device=DeviceFacts(name="pixel-8", soc="Tensor G3", arch="aarch64", cores=9, os="Android 15"),
        runtime="executorch",
        runtime_version="1.5.1",
        precision="fp32",
        threads=1,
        created="2026-02-03T10:00:00Z",
        rows=tuple(rows),
        calibrations=(fit,),
    )


def losses_of(of: Network, rises: dict[str, dict[int, float]]) -> Sensitivity:
    """A table with these rises of the loss, known exactly."""
    options = {
        layer: {rank: Cut(loss_increase=rise, loss_se=0, top1_drop=0, top1_se=0, n=8) for rank, rise in by.items()}
        for layer, by in rises.items()
    }
    return Sensitivity(network=of.fingerprint, images=8, base_loss=0.5, base_top1=0.9, n=8, options=options)


def sensitivity(of: Network, increases: Sequence[Sequence[float]]) -> Sensitivity:
    """The rise of the loss at each rank below dense."""
    pairs = zip(of.ordered, increases, strict=True)
    ranks = [rank for rank in RANKS if rank != DENSE]
    return losses_of(of, {layer.name: dict(zip(ranks, rises, strict=True)) for layer, rises in pairs})


TIMES = [[1.0, 1.5, 2.0, 3.0], [0.5, 0.75, 1.0, 2.0]]
INCREASES = [[0.4, 0.2, 0.1], [0.3, 0.2, 0.1]]
NETWORK = network(2)
TABLE = latency_table(NETWORK, TIMES)
SENSITIVITY = sensitivity(NETWORK, INCREASES)


@st.composite
def problems(draw: st.DrawFn, *, least_rise: float = 0.0) -> tuple[Network, LatencyTable, Sensitivity]:
    """A network with any times and calibration, and dense layers among the ordered ones."""
    ordered, dense = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    of = network(ordered, dense=dense)
    ms = st.floats(0.01, 10)
    times = [draw(st.lists(ms, min_size=4, max_size=4)) for _ in range(ordered)]
    times += [[draw(ms)] for _ in range(dense)]
    table = latency_table(
        of,
        times,
        rest_ms=draw(st.floats(0, 5)),
        slope=draw(st.floats(0.5, 2)),
        intercept_ms=draw(st.floats(0, 2)),
        loo_mape=draw(st.floats(0, 0.3)),
    )
    rises = st.lists(st.floats(least_rise, 2), min_size=3, max_size=3)
    return of, table, sensitivity(of, [draw(rises) for _ in range(ordered)])


@settings(deadline=None, max_examples=200)
@given(problem=problems(), budget_ms=st.floats(0.1, 150))
def test_a_plan_keeps_the_budget_less_its_margin_or_says_that_none_can(
    problem: tuple[Network, LatencyTable, Sensitivity], budget_ms: float
) -> None:
    """The prediction of the whole network counts, with rest, slope, intercept and the dense layers."""
    of, table, losses = problem
    margin = min(0.1, max(0.02, table.calibrations[0].loo_mape))
    floor_ms = reachable_ms(of, table, losses)
    assume(not math.isclose(floor_ms, budget_ms * (1 - margin), rel_tol=1e-9))
    if floor_ms > budget_ms * (1 - margin):
        with pytest.raises(BudgetError):
            plan(of, table, losses, budget_ms)
        return

    made = plan(of, table, losses, budget_ms)

    assert made.budget_ms == budget_ms
    assert made.promises[0].planned == pytest.approx(budget_ms * (1 - margin))
    assert made.predicted_ms <= made.promises[0].planned * (1 + 1e-9)
    assert made.predicted_ms == pytest.approx(table.predict_ms(of, made.ranks))
    assert made.dense_ms == pytest.approx(table.predict_ms(of, {}))


@settings(deadline=None, max_examples=200)
@given(problem=problems(), budget_ms=st.floats(0.1, 150))
def test_a_plan_never_takes_an_option_slower_than_dense(
    problem: tuple[Network, LatencyTable, Sensitivity], budget_ms: float
) -> None:
    """Where low ranks take longer, the layer stays one stock layer."""
    of, table, losses = problem
    assume(reachable_ms(of, table, losses) <= 0.9 * budget_ms)

    made = plan(of, table, losses, budget_ms)

    assert all(layer.ms <= layer.dense_ms for layer in made.layers)
    assert [layer.name for layer in made.layers] == [layer.name for layer in of.ordered]


@settings(deadline=None, max_examples=200)
@given(problem=problems(least_rise=-0.1), budget_ms=st.floats(0.1, 150))
@example(
    problem=(NETWORK, latency_table(NETWORK, [[4.0] * 3 + [3.0]] * 2), sensitivity(NETWORK, [[-0.01] * 3] * 2)),
    budget_ms=20,
)
def test_a_plan_never_takes_an_option_slower_than_dense_though_its_loss_is_lower(
    problem: tuple[Network, LatencyTable, Sensitivity], budget_ms: float
) -> None:
    """A cut that lowers the validation loss by chance is no reason to make the network slower."""
    of, table, losses = problem
    assume(reachable_ms(of, table, losses) <= 0.9 * budget_ms)

    made = plan(of, table, losses, budget_ms)

    assert all(layer.ms <= layer.dense_ms for layer in made.layers)


def test_a_budget_of_the_dense_network_leaves_every_layer_dense() -> None:
    """Nothing is cut that need not be."""
    made = plan(NETWORK, TABLE, SENSITIVITY, 5.0, margin=0)

    assert made.ranks == {"layer0": DENSE, "layer1": DENSE}
    assert made.predicted_ms == made.dense_ms == 5.0


def test_dense_is_an_option_where_nothing_was_evaluated() -> None:
    """A layer without losses stays as it is; one with them is cut instead."""
    losses = SENSITIVITY.model_copy(update={"options": {"layer0": SENSITIVITY.options["layer0"]}})

    made = plan(NETWORK, TABLE, losses, 3.5, margin=0)

    assert made.ranks == {"layer0": 8, "layer1": DENSE}


def test_a_rank_without_a_time_or_without_a_loss_is_no_option() -> None:
    """Neither is guessed: rank 4 has no loss, rank 16 no time."""
    of = network(1)
    table = latency_table(of, [[1.0, 2.0, 2.5, 3.0]])
    table = table.model_copy(update={"rows": tuple(row for row in table.rows if row.rank != 16)})
    losses = losses_of(of, {"layer0": {8: 0.2, 16: 0.1}})

    assert plan(of, table, losses, 2.5, margin=0).ranks == {"layer0": 8}
    with pytest.raises(BudgetError):
        plan(of, table, losses, 1.5, margin=0)


def test_a_plan_says_what_each_layer_and_the_rest_cost() -> None:
    """Layers, the parts outside of them and the totals fit together."""
    of = network(2, dense=1)
    table = latency_table(of, [*TIMES, [0.25]], rest_ms=1.0, slope=2.0, intercept_ms=0.5)

    made = plan(of, table, sensitivity(of, INCREASES), 9.0, margin=0)

    chosen = {layer.name: layer for layer in made.layers}
    assert made.predicted_ms == pytest.approx(made.other_ms + sum(layer.ms for layer in made.layers))
    assert made.other_params == 10 + spec(2).params()
    assert made.other_macs == spec(2).macs()
    assert made.totals().params == of.params(made.ranks)
    assert made.totals().macs == of.macs(made.ranks)
    assert made.network == of.fingerprint
    for index, name in enumerate(("layer0", "layer1")):
        rank = made.ranks[name]
        assert chosen[name].ms == TIMES[index][RANKS.index(rank)]
        assert chosen[name].dense_ms == TIMES[index][-1]
        assert chosen[name].loss_increase == pytest.approx([*INCREASES[index], 0][RANKS.index(rank)])


@pytest.mark.parametrize(("loo_mape", "margin"), [(0.0, 0.02), (0.05, 0.05), (0.5, 0.1)])
def test_the_margin_is_the_tables_own_error_within_two_and_ten_percent(loo_mape: float, margin: float) -> None:
    """A table that predicts badly leaves more of the budget free."""
    table = latency_table(NETWORK, TIMES, loo_mape=loo_mape)

    made = plan(NETWORK, table, SENSITIVITY, 4.0)

    assert made.promises[0].planned == pytest.approx(4.0 * (1 - margin))


def test_a_budget_that_no_plan_keeps_names_the_fastest_and_the_device() -> None:
    """The fastest plan takes 1.5 ms, 2 ms with a margin of a quarter."""
    with pytest.raises(BudgetError) as caught:
        plan(NETWORK, TABLE, SENSITIVITY, 1.9, margin=0.25)

    message = str(caught.value)
    assert "1.9 ms is below the fastest plan, 2 ms" in message
    assert "pixel-8/executorch-1.5.1" in message
    assert "raise the budget" in message
    assert "milliseconds" not in message
    assert "\n" not in message


def test_a_budget_a_thousand_times_too_small_brings_a_hint_about_the_unit() -> None:
    """Seconds are the likeliest mistake."""
    with pytest.raises(BudgetError, match="budgets are in milliseconds"):
        plan(NETWORK, TABLE, SENSITIVITY, 0.003)


@settings(deadline=None)
@given(ms=st.floats(1, 100))
@example(ms=3.1449)
def test_the_budget_that_the_message_names_can_be_kept(ms: float) -> None:
    """Who raises the budget to the named time gets a plan."""
    of = network(1)
    table, losses = latency_table(of, [[ms, ms + 1, ms + 2, ms + 3]]), sensitivity(of, INCREASES[:1])
    with pytest.raises(BudgetError) as caught:
        plan(of, table, losses, ms / 2)
    named = re.search(r"fastest plan, (\S+) ms", str(caught.value))
    assert named is not None

    made = plan(of, table, losses, float(named[1]))

    assert made.ranks == {"layer0": 4}


@pytest.mark.parametrize("budget", [0, -1, math.nan, math.inf, "abc"])
def test_a_plan_refuses_a_budget_that_is_no_time(budget: Any) -> None:
    """The same one line as everywhere."""
    with pytest.raises(BudgetError, match="is not a time"):
        plan(NETWORK, TABLE, SENSITIVITY, budget)


def test_the_sensitivity_of_another_network_is_refused() -> None:
    """Losses of other layers say nothing of these."""
    other = network(3)

    with pytest.raises(TableError, match="another network than small"):
        plan(NETWORK, TABLE, sensitivity(other, [*INCREASES, INCREASES[0]]), 5.0)


def test_a_table_without_this_network_is_refused() -> None:
    """Rows alone do not predict a whole network."""
    with pytest.raises(TableError, match="not calibrated for another"):
        plan(network(1, name="another"), TABLE, sensitivity(network(1), INCREASES[:1]), 5.0)


def test_the_reachable_time_is_that_of_the_fastest_options() -> None:
    """Through the whole-network fit."""
    table = latency_table(NETWORK, TIMES, rest_ms=1.0, slope=2.0, intercept_ms=0.5)

    reachable = reachable_ms(NETWORK, table, SENSITIVITY)

    assert reachable == pytest.approx(2 * (1 + 1.0 + 0.5) + 0.5)


# chain()


def test_a_chain_is_nested_and_its_costs_fall(tiny: nn.Module) -> None:
    """Every profile is cheaper than the one before, no rank rises, and a measured table may set the cost."""
    ordered = order(tiny, where=lambda name, _: name in ("conv1", "conv2"))
    network = trace(ordered, (torch.zeros(1, 1, 8, 8),))
    rises = {
        "conv1": {2: 0.5, 4: 0.2, 6: 0.01},
        "conv2": {4: 1.0, 8: 0.6, 16: 0.2, 24: 0.1, 32: 0.05},
    }
    made = losses_of(network, rises)

    profiles = chain(network, made, profiles=5)

    costs = [network.macs(profile) for profile in profiles]
    assert costs == sorted(costs, reverse=True) and costs[0] < network.macs({})
    assert profiles[-1] == {"conv1": 2, "conv2": 4}
    ChainSampler(profiles)
    with pytest.raises(TableError, match="another network"):
        chain(network, made.model_copy(update={"network": "x"}))
