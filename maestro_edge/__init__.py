"""maestro_edge: one ordered low-rank training, per-device variants that keep a measured latency budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from maestro_edge.bundling import bundle
    from maestro_edge.devices import connect, discover
    from maestro_edge.errors import MaestroError
    from maestro_edge.ordered import cut, explain, order, trace
    from maestro_edge.planning import measure_sensitivity, plan
    from maestro_edge.profiling import profile
    from maestro_edge.reporting import write_report
    from maestro_edge.runtimes import MeasuringProtocol, export, load
    from maestro_edge.training import Ordering, Target, TrainSet, TrainSettings, recalibrate, train
    from maestro_edge.values import LatencyTable, LayerSpec, Manifest, RankPlan, Variant

_HOMES = {
    "bundling": ("bundle",),
    "devices": ("connect", "discover"),
    "errors": ("MaestroError",),
    "ordered": ("cut", "explain", "order", "trace"),
    "planning": ("measure_sensitivity", "plan"),
    "profiling": ("profile",),
    "reporting": ("write_report",),
    "runtimes": ("MeasuringProtocol", "export", "load"),
    "training": ("Ordering", "Target", "TrainSet", "TrainSettings", "recalibrate", "train"),
    "values": ("LatencyTable", "LayerSpec", "Manifest", "RankPlan", "Variant"),
}

__all__ = [
    "LatencyTable",
    "LayerSpec",
    "MaestroError",
    "Manifest",
    "MeasuringProtocol",
    "Ordering",
    "RankPlan",
    "Target",
    "TrainSet",
    "TrainSettings",
    "Variant",
    "bundle",
    "connect",
    "cut",
    "discover",
    "explain",
    "export",
    "load",
    "measure_sensitivity",
    "order",
    "plan",
    "profile",
    "recalibrate",
    "trace",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Torch alone takes two seconds to import: each name loads its module when it is first used.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"maestro_edge.{module}"), name)
    raise AttributeError(f"module 'maestro_edge' has no attribute {name!r}")
