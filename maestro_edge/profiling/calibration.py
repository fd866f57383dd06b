"""From the sum of layers to the whole network: a fit on measured networks, and a check on others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maestro_edge.errors import TableError
from maestro_edge.values import Calibration, LatencyTable, Network, NetworkTiming

__all__ = ["Milliseconds", "calibrated", "fit", "fit_line", "left_out_ms", "recalibrate"]

Milliseconds = npt.NDArray[np.float64]


def fit(network: Network, networks: Sequence[NetworkTiming], rest_ms: float) -> Calibration:
    """Fit slope and intercept on whole networks by least squares of the relative error.

    Raises:
        TableError: fewer than three networks were measured.
    """
    if len(networks) < 3:
        raise TableError(f"{len(networks)} whole networks cannot calibrate two parameters: measure 3 or more")
    summed = np.array([rest_ms + item.layers_ms for item in networks])
    measured = np.array([item.timing.median_ms for item in networks])
    slope, intercept_ms = fit_line(summed, measured)
    return Calibration(
        network=network.fingerprint,
        rest_ms=rest_ms,
        slope=slope,
        intercept_ms=intercept_ms,
        loo_mape=float(np.abs(left_out_ms(summed, measured) / measured - 1).mean()),
        networks=tuple(networks),
    )


def calibrated(table: LatencyTable, network: Network, networks: Sequence[NetworkTiming]) -> LatencyTable:
    """The table with the fit of `networks`, the dense one first: what its layers leave of it is the rest."""
    dense = networks[0]
    rest_ms = max(0.0, dense.timing.median_ms - dense.layers_ms)
    return table.model_copy(update={"calibrations": (fit(network, networks, rest_ms),)})


def fit_line(summed: Milliseconds, measured: Milliseconds) -> tuple[float, float]:
    """Slope and intercept in ms from sums of layers to whole networks, of least relative error."""
    if np.ptp(summed) > 0.05 * summed.max():
        columns = np.stack([summed / measured, 1 / measured], axis=1)
        (slope, intercept), *_ = np.linalg.lstsq(columns, np.ones(len(measured)), rcond=None)
        if slope > 0:
            return float(slope), float(intercept)
    # Networks of nearly one size cannot tell a slope from an intercept: correct the scale alone.
    return float((measured / summed).mean()), 0.0


def left_out_ms(summed: Milliseconds, measured: Milliseconds) -> Milliseconds:
    """What a line fitted to all other networks says of each."""
    found = []
    for index, own in enumerate(summed):
        others = np.arange(len(summed)) != index
        slope, intercept_ms = fit_line(summed[others], measured[others])
        found.append(slope * own + intercept_ms)
    return np.array(found)


def recalibrate(table: LatencyTable, network: Network, measured: Sequence[NetworkTiming]) -> LatencyTable:
    """A table whose fit of `network` also rests on the networks `measured` now."""
    old = table.calibration(network)
    new = fit(network, (*old.networks, *measured), old.rest_ms)
    kept = tuple(c for c in table.calibrations if c.network != network.fingerprint)
    return table.model_copy(update={"calibrations": (*kept, new)})
