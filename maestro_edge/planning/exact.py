"""The exact solver of the multiple-choice knapsack: HiGHS on what the greedy choice leaves open."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maestro_edge.errors import BudgetError
from maestro_edge.planning.greedy import Knapsack, Option, Solution, charged, relaxation, solve

__all__ = ["solve_exactly"]


def solve_exactly(
    layers: Sequence[Sequence[Option]], budgets: Sequence[float], *, timeout_s: float = 60.0
) -> Solution:
    """The choice of least loss, every total ≤ its budget, or the best one found in `timeout_s` with its bound.

    An option that at some prices of the costs already brings the bound above the greedy choice's loss is in no
    better choice (reduced-cost fixing: Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, §11): it is left
    out before the mixed-integer program is solved. The bound is HiGHS's.

    Raises:
        BudgetError: no choice keeps all budgets, or none was found in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    problem = Knapsack.of(layers, budgets)
    try:
        greedy: Solution | None = solve(layers, budgets)
    except BudgetError:
        if (problem.least() > problem.limits).any():
            raise
        greedy = None
    open_ = np.isfinite(problem.losses)
    if greedy is not None:
        prices = np.array(greedy.prices)
        cost = charged(problem, prices)
        extra = cost - cost.min(1)[:, None]
        tolerance = 1e-9 * max(1.0, abs(greedy.loss))
        open_ &= relaxation(problem, prices) + extra <= greedy.loss + tolerance
        open_[np.arange(len(layers)), greedy.chosen] = True
    rows, options = np.nonzero(open_)
    if not len(rows):
        return Solution([], 0.0, 0.0, tuple(0.0 for _ in budgets))
    columns = np.arange(len(rows))
    one_each = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(layers), len(rows)))
    # Rows of one size: HiGHS's tolerance is absolute.
    scale = problem.sizes
    shares = problem.costs[:, rows, options] / scale[:, None]
    # Its presolve writes to standard output, and has nothing left to do here.
    found = milp(
        problem.losses[rows, options],
        integrality=np.ones(len(rows)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(shares, -np.inf, problem.limits / scale)],
        options={"time_limit": timeout_s, "mip_rel_gap": 0.0, "presolve": False},
    )
    if found.x is None:
        if greedy is not None:
            return greedy
        if found.status == 2:  # proven
            raise BudgetError("every budget can be kept alone, but no choice keeps all together")
        raise BudgetError(f"no choice that keeps all budgets together was found in {timeout_s:g} s: allow more")
    chosen = np.zeros(len(layers), np.intp)
    taken = found.x > 0.5
    chosen[rows[taken]] = options[taken]
    loss = problem.loss(chosen)
    if greedy is None and not problem.holds(chosen):
        raise BudgetError("the only choice found passes a budget by less than HiGHS can tell: raise the budgets")
    if greedy is not None and (not problem.holds(chosen) or loss > greedy.loss):
        chosen, loss = np.array(greedy.chosen, np.intp), greedy.loss  # HiGHS may pass a budget by its tolerance
    prices_kept = greedy.prices if greedy is not None else tuple(0.0 for _ in budgets)
    bound = found.mip_dual_bound if found.mip_dual_bound is not None else -np.inf
    return Solution(chosen.tolist(), loss, min(loss, float(bound)), prices_kept)
