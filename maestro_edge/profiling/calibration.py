"""From the sum of layers to the whole network: a fit on measured networks, and a check on others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from maestro_edge.errors import TableError
from maestro_edge.values import Calibration, LatencyTable, Network, NetworkTiming

__all__ = ["fit", "recalibrate"]


def fit(network: Network, networks: Sequence[NetworkTiming], rest_ms: float) -> Calibration:
    """Fit slope and intercept on whole networks by least squares of the relative error.

    Raises:
        TableError: fewer than three networks were measured.
    """
    if len(networks) < 3:
        raise TableError(f"{len(networks)} whole networks cannot calibrate two parameters: measure 3 or more")
    slope, intercept_ms = _line(networks, rest_ms)
    errors = []
    for index, left_out in enumerate(networks):
        others = [*networks[:index], *networks[index + 1 :]]
        a, b = _line(others, rest_ms)
        measured = left_out.timing.median_ms
        errors.append(abs(a * (rest_ms + left_out.layers_ms) + b - measured) / measured)
    return Calibration(
        network=network.fingerprint,
        rest_ms=rest_ms,
        slope=slope,
        intercept_ms=intercept_ms,
        loo_mape=fmean(errors),
        networks=tuple(networks),
    )


def _line(networks: Sequence[NetworkTiming], rest_ms: float) -> tuple[float, float]:
    summed = np.array([rest_ms + item.layers_ms for item in networks])
    measured = np.array([item.timing.median_ms for item in networks])
    if np.ptp(summed) > 0.05 * summed.max():
        columns = np.stack([summed / measured, 1 / measured], axis=1)
        (slope, intercept), *_ = np.linalg.lstsq(columns, np.ones(len(networks)), rcond=None)
        if slope > 0:
            return float(slope), float(intercept)
    # Networks of nearly one size cannot tell a slope from an intercept: correct the scale alone.
    return float((measured / summed).mean()), 0.0


def recalibrate(table: LatencyTable, network: Network, measured: Sequence[NetworkTiming]) -> LatencyTable:
    """A table whose fit of `network` also rests on the networks `measured` now."""
    old = table.calibration(network)
    new = fit(network, (*old.networks, *measured), old.rest_ms)
    kept = tuple(c for c in table.calibrations if c.network != network.fingerprint)
    return table.model_copy(update={"calibrations": (*kept, new)})
