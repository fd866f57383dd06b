"""What may be bounded: how much each choice for a layer adds to it, and what a whole network then comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from maestro_edge.errors import TableError
from maestro_edge.values import DENSE, LatencyTable, LayerSpec, Network, NetworkTiming, Precision, Quantity, Rank

__all__ = ["Account", "account", "default_margin"]

_TIMES = ("ms", "p90_ms", "energy_mj")
_SMALLEST_MARGIN, _LARGEST_MARGIN = 0.02, 0.1
_BYTES_A_PARAMETER: Mapping[Precision, float] = {
    "fp32": 4.0,
    "fp16": 2.0,
    "int8-dynamic": 1.0,
    "int8-static": 1.0,
    "mixed": 4.0,
    "palettised-6bit": 0.75,
    "int4-weights": 0.5,
}


@dataclass(frozen=True)
class Account:
    """One quantity of a network, a line in what its layers add up to: slope * (layers + rest) + intercept."""

    of_layer: Callable[[LayerSpec, Rank], float]
    rest: float
    slope: float
    intercept: float

    def whole(self, layers: float) -> float:
        """The whole network's, of the sum over its ordered layers."""
        return self.slope * (layers + self.rest) + self.intercept

    def of_ranks(self, network: Network, ranks: Mapping[str, Rank]) -> float:
        """The whole network's at `ranks`."""
        return self.whole(
            sum(self.of_layer(layer.spec, ranks.get(layer.name, DENSE)) for layer in network.ordered)
        )

    def layers(self, whole: float) -> float:
        """What the ordered layers may add up to for the whole network to come to `whole`."""
        return (whole - self.intercept) / self.slope - self.rest


def account(quantity: Quantity, network: Network, table: LatencyTable) -> Account:
    """How `quantity` follows from the layers' choices, as far as `table` knows.

    Milliseconds are rows and the whole-network fit. Their 90th percentile is the median ratio of p90 to p50 of
    the networks that were measured, times that; energy and peak memory are lines through those of them that
    were run alone, in milliseconds and in parameters; file bytes are a line in parameters through the files
    that were measured, else so many bytes a parameter. MACs and parameters are counted.

    Raises:
        TableError: the table does not know this quantity.
    """
    outside = [layer.spec for layer in network.layers if not layer.ordered]
    if quantity in _TIMES:
        fit = table.calibration(network)
        rest = fit.rest_ms + sum(table.row(spec, DENSE).ms for spec in outside)
        slope, intercept = _of_time(quantity, table, fit.networks, fit.whole_ms)
        return Account(
            lambda spec, rank: table.row(spec, rank).ms,
            rest,
            slope * fit.slope,
            slope * fit.intercept_ms + intercept,
        )
    if quantity == "macs":
        return Account(lambda spec, rank: spec.macs(rank), sum(spec.macs() for spec in outside), 1.0, 0.0)
    slope, intercept = 1.0, 0.0
    if quantity != "params":
        slope, intercept = _of_params(quantity, network, table)
    rest = network.other_params + sum(spec.params() for spec in outside)
    if quantity == "params":
        return Account(lambda spec, rank: spec.params(rank), rest, slope, intercept)
    return Account(lambda spec, rank: spec.size_bytes(rank) / 4, rest, slope, intercept)


def default_margin(quantity: Quantity, network: Network, table: LatencyTable) -> float:
    """The share of a budget left free for the error of its prediction; nothing of what is counted.

    Of what hangs on time the leave-one-out error of the table's fit, at least 2 % and at most 10 %.
    """
    if quantity in ("macs", "params"):
        return 0.0
    if quantity in ("size_bytes", "memory_bytes"):
        return _SMALLEST_MARGIN
    return min(_LARGEST_MARGIN, max(_SMALLEST_MARGIN, table.calibration(network).loo_mape))


def _of_time(
    quantity: Quantity,
    table: LatencyTable,
    networks: Sequence[NetworkTiming],
    whole_ms: Callable[[float], float],
) -> tuple[float, float]:
    """Slope and intercept from the predicted median in ms."""
    if quantity == "ms":
        return 1.0, 0.0
    if quantity == "p90_ms":
        # A table may be made without whole networks of its own; then it tells nothing of their spread.
        if not networks:
            raise TableError(
                f"{table.title} holds no whole network, so no 90th percentile: profile the model again"
            )
        return median(item.timing.p90_ms / item.timing.median_ms for item in networks), 0.0
    points = [
        (whole_ms(item.layers_ms), item.alone.energy_mj)
        for item in networks
        if item.alone and item.alone.energy_mj
    ]
    if not points:
        raise TableError(f"{table.title} has no energy: budget another quantity, or profile where it can be read")
    return _line(points, 0.0)


def _of_params(quantity: Quantity, network: Network, table: LatencyTable) -> tuple[float, float]:
    """Slope in bytes a parameter, and bytes beside them."""
    slope = _BYTES_A_PARAMETER[table.precision]
    networks = [item for fit in table.calibrations if fit.network == network.fingerprint for item in fit.networks]
    if quantity == "size_bytes":
        known = [(_stored(network, item), item.size_bytes) for item in networks if item.size_bytes]
        return _line(known, slope) if known else (slope, 0.0)
    peaks = [
        (_stored(network, item), 1024.0 * item.alone.peak_kib)
        for item in networks
        if item.alone and item.alone.peak_kib
    ]
    if not peaks:
        raise TableError(f"{table.title} has no peak memory of {network.name}: budget another quantity")
    return _line(peaks, slope)


def _stored(network: Network, item: NetworkTiming) -> float:
    """Parameters, of which one in int8 counts for a quarter."""
    return network.in_int8(item.int8).size_bytes(item.ranks) / 4


def _line(points: Sequence[tuple[float, float]], slope: float) -> tuple[float, float]:
    """Slope and intercept of least squares; where the points cannot tell a slope, or a falling one, the given."""
    x, y = np.array(points, float).T
    if len(points) > 2 and np.ptp(x) > 0.05 * x.max():
        found, intercept = np.polyfit(x, y, 1)
        if found > 0:
            return float(found), float(intercept)
    if slope == 0.0:
        return fmean(y) / fmean(x), 0.0
    return slope, float(np.mean(y - slope * x))
