"""Ordered layers: making them, cutting them back to stock layers, tracing them."""

from maestro_edge.ordered.conversion import (
    Choice,
    at_ranks,
    cut,
    explain,
    order,
    ordered_layers,
    use_ranks,
)
from maestro_edge.ordered.gauge import Gauge, gauge_layers, gauge_ranks
from maestro_edge.ordered.layers import (
    Ordered,
    OrderedConv1d,
    OrderedConv2d,
    OrderedEmbedding,
    OrderedLinear,
    OrderedSpatialConv2d,
)
from maestro_edge.ordered.modes import evaluating
from maestro_edge.ordered.tracing import trace

__all__ = [
    "Choice",
    "Gauge",
    "Ordered",
    "OrderedConv1d",
    "OrderedConv2d",
    "OrderedEmbedding",
    "OrderedLinear",
    "OrderedSpatialConv2d",
    "at_ranks",
    "cut",
    "evaluating",
    "explain",
    "gauge_layers",
    "gauge_ranks",
    "order",
    "ordered_layers",
    "trace",
    "use_ranks",
]
