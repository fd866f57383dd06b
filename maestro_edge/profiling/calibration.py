"""From the sum of layers to the whole network: a fit on measured networks, and a check on others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from maestro_edge.errors import TableError
from maestro_edge.values import Calibration, LatencyTable, Network, NetworkTiming

__all__ = [
    "Milliseconds",
    "calibrated",
    "fit",
    "fit_kinds",
    "fit_line",
    "kinds_left_out_ms",
    "left_out_ms",
    "recalibrate",
]

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


def fit_kinds(summed: Milliseconds, measured: Milliseconds) -> tuple[Milliseconds, float]:
    """A slope for each kind of operator and an intercept in ms, from sums of (networks, kinds) to whole networks.

    What is lost between operators, and between timing each and running all, differs from kind to kind. Of least
    relative error; a ridge (Hoerl and Kennard, Technometrics 1970) takes slopes to be near that of fit_line() for
    all kinds together, give or take as much as that is, where the networks do not tell more. Of one kind it is
    that line.
    """
    slope, intercept_ms = fit_line(summed.sum(1), measured)
    line = np.array([*np.full(summed.shape[1], slope), intercept_ms])
    columns = np.column_stack([summed, np.ones(len(measured))]) / measured[:, None]
    left = 1 - columns @ line
    variance = float(left @ left) / max(1, len(measured) - 2)
    ridge = np.array([*np.full(summed.shape[1], variance / slope**2), 0.0]) + 1e-12
    found = line + np.linalg.solve(columns.T @ columns + np.diag(ridge), columns.T @ left)
    return found[:-1], float(found[-1])


def kinds_left_out_ms(
    summed: Milliseconds, measured: Milliseconds, predicted: Milliseconds | None = None
) -> Milliseconds:
    """What fit_kinds() of all other networks says of each, of its own sums or those `predicted` of it."""
    found = []
    for index, own in enumerate(summed if predicted is None else predicted):
        others = np.arange(len(measured)) != index
        slopes, intercept_ms = fit_kinds(summed[others], measured[others])
        found.append(own @ slopes + intercept_ms)
    return np.array(found)


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
