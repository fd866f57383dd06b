"""Planning: from tables to a rank for every layer."""

from maestro_edge.planning.chain import chain
from maestro_edge.planning.greedy import Option, solve
from maestro_edge.planning.plan import plan, reachable_ms
from maestro_edge.planning.sensitivity import measure_sensitivity

__all__ = ["Option", "chain", "measure_sensitivity", "plan", "reachable_ms", "solve"]
