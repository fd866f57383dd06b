"""The values that pass between the stages: frozen, versioned, saved as JSON, loaded back with a clear error."""

from __future__ import annotations

from maestro_edge.values.base import (
    DENSE,
    NOT_TOLD,
    UNITS,
    Layout,
    Precision,
    Quantity,
    Rank,
    Saved,
    Source,
    Value,
    refuse_unwritable,
    write_atomically,
)
from maestro_edge.values.budgets import Budget, check_budget, check_budgets
from maestro_edge.values.manifests import Choice, Delegation, InputSpec, Manifest, MeasuredMs, Round, Variant
from maestro_edge.values.networks import Layer, LayerSpec, Network
from maestro_edge.values.plans import Cut, LayerPlan, Promise, RankPlan, Sensitivity, Totals, variant_name
from maestro_edge.values.tables import LatencyTable
from maestro_edge.values.timings import (
    Alone,
    Calibration,
    DeviceFacts,
    Estimate,
    LatencyRow,
    NetworkRow,
    NetworkTiming,
    OperatorRow,
    Stated,
    Timing,
)

__all__ = [
    "DENSE",
    "NOT_TOLD",
    "UNITS",
    "Alone",
    "Budget",
    "Calibration",
    "Choice",
    "Cut",
    "Delegation",
    "DeviceFacts",
    "Estimate",
    "InputSpec",
    "LatencyRow",
    "LatencyTable",
    "Layer",
    "LayerPlan",
    "LayerSpec",
    "Layout",
    "Manifest",
    "MeasuredMs",
    "Network",
    "NetworkRow",
    "NetworkTiming",
    "OperatorRow",
    "Precision",
    "Promise",
    "Quantity",
    "Rank",
    "RankPlan",
    "Round",
    "Saved",
    "Sensitivity",
    "Source",
    "Stated",
    "Timing",
    "Totals",
    "Value",
    "Variant",
    "check_budget",
    "check_budgets",
    "refuse_unwritable",
    "variant_name",
    "write_atomically",
]
