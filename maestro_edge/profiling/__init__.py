"""Profiling: latency tables measured on a device, and what they predict for whole networks."""

from maestro_edge.profiling.answers import answered_table
from maestro_edge.profiling.calibration import fit, recalibrate
from maestro_edge.profiling.governor import governor
from maestro_edge.profiling.measuring import Conditions, measure_calmly
from maestro_edge.profiling.networks import NetworkPredictor
from maestro_edge.profiling.options import random_ranks, rank_options
from maestro_edge.profiling.predictor import Predictor, complete
from maestro_edge.profiling.probes import write_probes
from maestro_edge.profiling.session import measure_networks, profile
from maestro_edge.profiling.transfer import Transfer

__all__ = [
    "Conditions",
    "NetworkPredictor",
    "Predictor",
    "Transfer",
    "answered_table",
    "complete",
    "fit",
    "governor",
    "measure_calmly",
    "measure_networks",
    "profile",
    "random_ranks",
    "rank_options",
    "recalibrate",
    "write_probes",
]
