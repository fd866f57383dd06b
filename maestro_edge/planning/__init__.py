"""Planning: from tables to a rank for every layer."""

from maestro_edge.planning.budgets import account
from maestro_edge.planning.chain import chain
from maestro_edge.planning.exact import solve_exactly
from maestro_edge.planning.fleet import Shared, plan_fleet
from maestro_edge.planning.forms import dense_in_all
from maestro_edge.planning.greedy import Option, Solution, solve
from maestro_edge.planning.interaction import Interaction, corrected, measure_interaction
from maestro_edge.planning.plan import least_together, plan, plan_downwards, plan_nested, reachable_ms, within
from maestro_edge.planning.problem import Budgets
from maestro_edge.planning.sensitivity import measure_sensitivity
from maestro_edge.planning.uniform import uniform_ranks

__all__ = [
    "Budgets",
    "Interaction",
    "Option",
    "Shared",
    "Solution",
    "account",
    "chain",
    "corrected",
    "dense_in_all",
    "least_together",
    "measure_interaction",
    "measure_sensitivity",
    "plan",
    "plan_downwards",
    "plan_fleet",
    "plan_nested",
    "reachable_ms",
    "solve",
    "solve_exactly",
    "uniform_ranks",
    "within",
]
