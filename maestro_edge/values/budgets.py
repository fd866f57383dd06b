"""Budgets in any quantity, and how what a user gives becomes one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from maestro_edge.errors import BudgetError
from maestro_edge.values.base import UNITS, Quantity, Value

__all__ = ["Budget", "check_budget", "check_budgets"]


class Budget(Value):
    """At most `limit` of one quantity, in its unit."""

    quantity: Quantity
    limit: float = Field(gt=0)

    def __str__(self) -> str:
        return self.say(self.limit, digits=6)

    def say(self, value: float, digits: int = 4) -> str:
        """A number of this quantity, with its unit."""
        scale, unit = UNITS[self.quantity]
        text = f"{value / scale:,.0f}" if abs(value / scale) >= 1000 else f"{value / scale:.{digits}g}"
        return f"{text} {unit}"

    @property
    def tag(self) -> str:
        """Short, for names of files."""
        scale, unit = UNITS[self.quantity]
        return f"{self.limit / scale:g}{unit}".replace(" ", "-")


def check_budget(given: float | str, quantity: Quantity = "ms") -> float:
    """A budget as a positive finite number, in the unit that the quantity is told in.

    Raises:
        BudgetError: it is not.
    """
    value = _positive(given)
    if value is None:
        what = "a time: give positive milliseconds, such as 2.5"
        if quantity not in ("ms", "p90_ms"):
            what = f"an amount of {UNITS[quantity][1]}: give a positive number"
        raise BudgetError(f"a budget of {given!r} is not {what}")
    return value


def check_budgets(budgets: float | str | Budget | Sequence[Budget]) -> tuple[Budget, ...]:
    """Budgets, of which a number stands for milliseconds.

    Raises:
        BudgetError: there is none, one is not positive and finite, or two are of one quantity.
    """
    if isinstance(budgets, Budget):
        return (budgets,)
    if isinstance(budgets, Sequence) and not isinstance(budgets, str):
        quantities = [budget.quantity for budget in budgets]
        twice = next((quantity for quantity in quantities if quantities.count(quantity) > 1), None)
        if twice or not quantities:
            what = f"two budgets of {UNITS[twice][1]}" if twice else "no budget"
            raise BudgetError(f"{what}: give one of each quantity that is bounded")
        return tuple(budgets)
    return (Budget(quantity="ms", limit=check_budget(budgets)),)


def _positive(number: float | str) -> float | None:
    try:
        value = float(number)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and value > 0 else None
