"""One ordered network planned for several devices at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_edge.errors import BudgetError, TableError
from maestro_edge.planning import plan, plan_fleet
from maestro_edge.values import DENSE, LatencyTable
from tests.test_planning import INCREASES, NETWORK, TIMES, latency_table, sensitivity

LOSSES = sensitivity(NETWORK, INCREASES)


def device(name: str, times: Sequence[Sequence[float]] = TIMES, *, runtime: str = "executorch") -> LatencyTable:
    table = latency_table(NETWORK, times)
    return table.model_copy(update={"device": table.device.model_copy(update={"name": name}), "runtime": runtime})


def scaled(factor: float, times: Sequence[Sequence[float]] = TIMES) -> list[list[float]]:
    return [[factor * ms for ms in row] for row in times]


def test_devices_of_equal_needs_share_one_plan() -> None:
    """The slower one has the larger budget: one choice serves both, and its plans tell each one's own times."""
    slow = device("pixel-4", scaled(2.0))

    (shared,) = plan_fleet(NETWORK, [device("pixel-8"), slow], LOSSES, [3.5, 7.0])

    assert [item.device for item in shared.plans] == ["pixel-8", "pixel-4"]
    assert [item.ranks for item in shared.plans] == [shared.ranks] * 2
    assert shared.plans[1].predicted_ms == pytest.approx(2 * shared.plans[0].predicted_ms)
    assert shared.ranks == plan(NETWORK, device("pixel-8"), LOSSES, 3.5).ranks


def test_devices_of_other_needs_have_plans_of_their_own() -> None:
    """What the slow one needs would cost the fast one more than the tolerance."""
    fast, slow = plan_fleet(NETWORK, [device("pixel-8"), device("pixel-4", scaled(2.0))], LOSSES, [5.2, 4.0])

    assert set(fast.ranks.values()) == {DENSE}
    assert slow.plans[0].predicted_ms <= 4.0 and slow.ranks != fast.ranks


def test_a_wider_tolerance_shares_more() -> None:
    """Whoever accepts the loss ships one file."""
    tables, budgets = [device("pixel-8"), device("pixel-4", scaled(2.0))], [5.2, 6.0]

    assert len(plan_fleet(NETWORK, tables, LOSSES, budgets)) == 2
    assert len(plan_fleet(NETWORK, tables, LOSSES, budgets, tolerance=1.0)) == 1


def test_files_of_two_runtimes_are_never_shared() -> None:
    """Equal times make no difference."""
    tables = [device("pixel-8"), device("pixel-8", runtime="litert")]

    assert len(plan_fleet(NETWORK, tables, LOSSES, [3.5, 3.5])) == 2


TIMES_OF_ANY = st.lists(st.lists(st.floats(0.1, 5), min_size=4, max_size=4), min_size=2, max_size=2)


@settings(deadline=None, max_examples=60)
@given(
    times=st.lists(TIMES_OF_ANY, min_size=1, max_size=4),
    shares=st.lists(st.floats(0.0, 1.2), min_size=4, max_size=4),
    tolerance=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_every_device_keeps_its_budget_and_its_accuracy(
    times: list[list[list[float]]], shares: list[float], tolerance: float
) -> None:
    """Whatever is shared: each device once, below its budget, within the tolerance of its own best plan."""
    tables = [device(f"phone-{index}", own) for index, own in enumerate(times)]
    fastest = [sum(min(row) for row in own) for own in times]
    dense = [sum(row[-1] for row in own) for own in times]
    budgets = [
        (low + share * max(0.0, high - low)) / 0.98 + 1e-6
        for low, high, share in zip(fastest, dense, shares, strict=False)
    ]

    groups = plan_fleet(NETWORK, tables, LOSSES, budgets, tolerance=tolerance)

    made = {item.device: item for group in groups for item in group.plans}
    assert len(made) == sum(len(group.plans) for group in groups) == len(tables)
    for table, budget in zip(tables, budgets, strict=True):
        item, own = made[table.device.name], plan(NETWORK, table, LOSSES, budget)
        assert item.predicted_ms <= budget * 0.98 * (1 + 1e-9)
        assert all(layer.ms <= layer.dense_ms for layer in item.layers)
        base = LOSSES.base_loss
        assert base + item.loss_increase <= (1 + tolerance) * (base + own.loss_increase) + 1e-9


def test_a_device_out_of_reach_is_named() -> None:
    """The others are not planned without it."""
    with pytest.raises(BudgetError, match="pixel-4/executorch"):
        plan_fleet(NETWORK, [device("pixel-8"), device("pixel-4", scaled(2.0))], LOSSES, [3.5, 1.0])


@pytest.mark.parametrize("count", [0, 1])
def test_every_device_needs_a_budget(count: int) -> None:
    """None is filled in."""
    with pytest.raises(TableError, match="give both for every device"):
        plan_fleet(NETWORK, [device("pixel-8")] * count, LOSSES, [3.5] * 2)
